"""`ciliate-agent cleanup`: take everything of ours off a node, in this network namespace; for when the agent is gone.

Order: first the network configuration, so that no new pod comes; then hooks, devices and routes; the pins last. Every
step is safe to repeat, and one that fails keeps none of the others from being taken. Pods that run keep their
interfaces and lose policy, Services and the way to other nodes: end them, or let another network take them over.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from services.agent.datapath import attach, detach
from services.common.errors import CiliateError, Conflict

PLUGIN = "ciliate-cni"
_KEPT = ("sandbox", "sandbox.lock", "log")
"""Names in the run folder that are no agent's."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where an agent leaves things; "" = do not look there."""

    cni_conf_dir: str = "/etc/cni/net.d"
    cni_bin_dir: str = "/opt/cni/bin"
    pins: str = "/sys/fs/bpf/ciliate"
    run_dir: str = "/run/ciliate"
    cache_dir: str = "/var/cache/ciliate"
    overlay_device: str = attach.VXLAN


async def clean(places: Places) -> tuple[list[str], list[str]]:
    """(what was removed, what failed and why), in words."""
    done: list[str] = []
    failed: list[str] = []

    async def step(what: str, work: Callable[[], Awaitable[Sequence[str]]]) -> None:
        try:
            done.extend(await work())
        except NetlinkError as error:
            failed.append(f"{what}: {error}")
        except (OSError, CiliateError) as error:
            failed.append(f"{what}: {error}")

    await step("CNI configuration", lambda: _files(_cni_files(places)))
    await step("programs on devices", _filters)
    await step("overlay device", lambda: _overlay(places.overlay_device))
    await step("routes", _routes)
    await step("pinned programs and maps", lambda: _trees([Path(places.pins)] if places.pins else []))
    await step("sockets and state", lambda: _trees(_state(places)))
    return done, failed


def _cni_files(places: Places) -> Iterator[Path]:
    """Configurations that are ours by what is in them, then the plugin."""
    folder = Path(places.cni_conf_dir)
    for path in sorted(folder.glob("*.conflist")) if places.cni_conf_dir and folder.is_dir() else ():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
            if json.loads(path.read_text(encoding="utf-8"))["plugins"][0]["type"] == PLUGIN:
                yield path
    plugin = Path(places.cni_bin_dir) / PLUGIN
    if places.cni_bin_dir and plugin.is_file():
        yield plugin


async def _files(paths: Iterator[Path]) -> list[str]:
    done = []
    for path in paths:
        path.unlink()
        done.append(str(path))
    return done


async def _filters() -> list[str]:
    return [f"{program} on {device}" for device, program in await detach.detach_all()]


async def _overlay(name: str) -> list[str]:
    async with attach.netlink() as ipr:
        there = bool(await ipr.link_lookup(ifname=name))
    await attach.remove_vxlan(name)
    return [f"device {name}"] if there else []


async def _routes() -> list[str]:
    return [f"route to {destination}" for destination in await detach.remove_routes()]


def _state(places: Places) -> list[Path]:
    run_dir = Path(places.run_dir)
    found = [path for path in sorted(run_dir.iterdir()) if path.name not in _KEPT] if run_dir.is_dir() else []
    return [*(found if places.run_dir else []), *([Path(places.cache_dir)] if places.cache_dir else [])]


async def _trees(paths: Sequence[Path]) -> list[str]:
    """Links that are pinned end with their pins: XDP, programs on cgroups."""
    done = []
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            await asyncio.to_thread(shutil.rmtree, path)
        elif path.exists() or path.is_symlink():
            path.unlink()
        else:
            continue
        done.append(str(path))
    return done


def running(run_dir: str) -> list[str]:
    """Agents that live: those whose socket takes connections. They would put everything back."""
    found = []
    places = [Path(run_dir) / "agent.sock", *sorted(Path(run_dir).glob("*/agent.sock"))] if run_dir else []
    for path in places:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(path))
            found.append(path.parent.name)
    return found


def main(arguments: Sequence[str]) -> int:
    """Entry point; exit status 1 where something could not be removed."""
    parser = argparse.ArgumentParser(prog="ciliate-agent cleanup", description=__doc__)
    defaults: dict[str, Any] = {name: getattr(Places(), name) for name in Places.__slots__}
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=value, help="default: %(default)s; empty = leave it")
    places = Places(**vars(parser.parse_args(arguments)))
    try:
        if alive := running(places.run_dir):
            raise Conflict(f"an agent runs here ({', '.join(alive)}): it would put everything back; end it first")
        done, failed = asyncio.run(clean(places))
    except CiliateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for text in done:
        print(f"removed {text}")
    for text in failed:
        print(f"error: {text}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
