"""Removing what a sandbox left: processes, namespaces, pinned eBPF objects, files. Safe to repeat.

The same code ends a living sandbox (after its processes were asked nicely) and clears up after one that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from services.common.errors import CiliateError, Conflict, Unavailable
from services.sandbox import cgroups, netns, state
from services.sandbox.processes import end_recorded

RELAY_PORT = 4245
"""What the stock `hubble` tries first; the first sandbox on a machine gets it, others a free one."""
WEB_PORT = 4246
"""Likewise for the relay's page."""
_LOCK = Path("/run/ciliate/sandbox.lock")


@contextlib.asynccontextmanager
async def machine_lock() -> AsyncIterator[None]:
    """Held while sandboxes are claimed or swept, so that two starts at once do not clear each other away."""
    _LOCK.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


async def remove(name: str) -> None:
    """Remove everything of the sandbox `name`. Its supervisor must be dead, or be the caller."""
    paths = state.Paths(name)
    end_recorded(paths.ledger)
    await asyncio.to_thread(cgroups.remove, paths.cgroup)
    shutil.rmtree(paths.bpffs, ignore_errors=True)
    await netns.destroy(paths.netns_prefix)
    shutil.rmtree(paths.root, ignore_errors=True)  # last: while it is there, the next start tries again


async def claim(name: str) -> state.SandboxState:
    """Make the sandbox ours: clear what dead ones left, refuse where one of that name lives.

    Returns the first state, already on disk. Raises `Conflict`.
    """
    paths = state.Paths(state.check_name(name))
    async with machine_lock():
        for other in list(state.names()):
            if not _alive(other):
                await remove(other)
        if paths.state.exists():
            raise Conflict(f"sandbox {name!r} is running already; end it with: ciliate sandbox down --name {name}")
        paths.root.mkdir(parents=True, mode=0o700)
        pid, others = os.getpid(), [state.load(other) for other in state.names() if _alive(other)]
        # Chosen here, under the lock: another sandbox that starts now has not bound its ports yet.
        relay_tcp = _address(RELAY_PORT, {other.relay_tcp for other in others})
        web = _address(WEB_PORT, {other.web for other in others})
        start = state.start_time(pid) or 0
        claimed = state.SandboxState(name, pid, start, str(paths.control), relay_tcp=relay_tcp, web=web)
        claimed.save(paths.state)
        return claimed


def _address(wanted: int, taken: set[str]) -> str:
    """An address on loopback with the wanted port, where that is free and no other sandbox's."""
    return f"127.0.0.1:{_free_port(0 if f'127.0.0.1:{wanted}' in taken else wanted)}"


def _free_port(wanted: int) -> int:
    """`wanted` if it is free on loopback, else any port that is."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise Unavailable("no TCP port is free on 127.0.0.1")


def _alive(name: str) -> bool:
    try:
        return state.load(name).alive
    except CiliateError:
        return False
