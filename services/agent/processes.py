"""The processes behind the sockets of this node, for flows: the hooks, the kernel's records, who owns a namespace.

    connect, bind ─ bpf/process.c ─▶ ring `process_events`, map `listeners` ─▶ ProcessTable ─▶ a column of every flow

Nothing is decided by it. A kernel or a cgroup that does not take the hooks costs the names and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from services.agent.abi.endpoints import HOST_ENDPOINT
from services.agent.abi.process import PROCESS, ProcessSettings
from services.agent.datapath.cgroup import SocketHooks, find_cgroup2, whole_tree
from services.agent.datapath.loader_client import Loaded
from services.agent.datapath.maps import PinnedMap
from services.agent.datapath.units import PROCESS as UNIT
from services.agent.datapath.units import PROCESS_HOOKS
from services.agent.events.inspection import Inspector
from services.agent.events.processes import ProcessTable
from services.agent.events.reader import RingReader
from services.agent.refusals import Owners
from services.agent.server.state import component
from services.common.errors import CiliateError, NotFound, Unavailable
from services.common.log import get_logger
from services.common.pb.agent.v1 import agent_pb2 as pb
from services.flows.columns import Array
from services.flows.dictionary import Dictionaries

BATCH = 8192
MAPS = ("process_config", "process_events", "listeners")
FIRST_NAMESPACE = 0xEFFFFFFC
"""Inode of the process namespace that a node boots with: its numbers are the kernel's own."""


class Processes:
    """`wanted` false, or a kernel without it: no hooks, no names, and the status says why."""

    def __init__(self, loaded: Loaded, cgroup_root: str, *, wanted: bool) -> None:
        self._loaded, self._cgroup_root, self._log = loaded, cgroup_root, get_logger("processes")
        self._ring: RingReader | None = None
        self._maps: Mapping[str, PinnedMap] = {}
        self.table: ProcessTable | None = None
        self.reason = "" if wanted else "off: the configuration says so"
        """Why not; empty when it is on."""

    def open(self, dictionaries: Dictionaries, owners: Owners) -> None:
        """Read what earlier agents left, and from now on the ring."""
        if self.reason:
            return
        try:
            if UNIT in self._loaded.refused:
                raise Unavailable(f"this kernel refuses its programs: {self._loaded.refused[UNIT].splitlines()[0]}")
            self._maps = {name: PinnedMap(self._loaded.map(name)) for name in MAPS}
            self._maps["process_config"].update_batch({bytes(4): _namespace().pack()})
            self._ring = RingReader.open(self._maps["process_events"].fd, PROCESS)
        except CiliateError as error:
            self.reason = f"off: {error}"
            return
        inspector = Inspector(_cgroup_tree())
        self.table = ProcessTable(dictionaries, lambda cookie: _endpoint(owners, cookie), inspector.inspect)
        self.table.take(_records(value for _, value in self._maps["listeners"].items()))

    def take(self) -> None:
        """What has been bound and connected since."""
        if self._ring is not None and self.table is not None:
            while len(records := self._ring.read(BATCH)):
                self.table.take(records)

    def enforce(self) -> None:
        """Put the hooks, replace those of an earlier agent, or take them away."""
        hooks = SocketHooks(Path(self._loaded.root), Path(self._cgroup_root or "/"), PROCESS_HOOKS)
        if not self.reason:
            try:
                cgroup = Path(self._cgroup_root) if self._cgroup_root else whole_tree()
                hooks = SocketHooks(Path(self._loaded.root), cgroup, PROCESS_HOOKS)
                hooks.attach()
            except CiliateError as error:
                self.reason = f"off: {error}"
                self._log.warning("no processes in flows", reason=str(error))
        if self.reason:
            hooks.detach()

    def check(self) -> pb.Component:
        """For the status."""
        return component("processes", {}, good=self.reason or "known to flows")

    def close(self) -> None:
        """Let go of ring and maps; the hooks stay."""
        if self._ring is not None:
            self._ring.close()
        for opened in self._maps.values():
            opened.close()


def _namespace() -> ProcessSettings:
    found = os.stat("/proc/self/ns/pid")
    return (
        ProcessSettings()
        if found.st_ino == FIRST_NAMESPACE
        else ProcessSettings(device=found.st_dev, inode=found.st_ino)
    )


def _cgroup_tree() -> Path | None:
    try:
        return find_cgroup2()
    except NotFound:
        return None


def _endpoint(owners: Owners, cookie: int) -> int | None:
    owner = owners.of(cookie)
    return None if owner is None else owner.id or HOST_ENDPOINT


def _records(values: Iterable[bytes]) -> Array:
    return np.frombuffer(b"".join(values), PROCESS)
