"""Whether Services are balanced at the socket on this node, and the hooks if so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from services.agent.datapath.cgroup import SocketHooks, whole_tree
from services.agent.datapath.loader_client import Loaded
from services.agent.datapath.units import SOCKET
from services.agent.server.state import component
from services.common.errors import CiliateError, Unavailable
from services.common.log import get_logger
from services.common.pb.agent.v1 import agent_pb2 as pb

Mode = Literal["auto", "on", "off"]


class SocketBalancing:
    """`mode` auto: where the kernel has it, found out by trying; on: or fail. Raises CiliateError for `on` only.

    Without it Services are translated packet by packet, for pods alone.
    """

    def __init__(self, mode: Mode, cgroup_root: str, loaded: Loaded) -> None:
        self._mode, self._log = mode, get_logger("sockets")
        self._root = Path(loaded.root)
        self._cgroup = Path(cgroup_root)
        self.reason = "off: the configuration says so" if mode == "off" else ""
        """Why not; empty when it is on."""
        if mode != "off":
            self._try(lambda: self._probe(loaded, cgroup_root))

    def _probe(self, loaded: Loaded, cgroup_root: str) -> None:
        if SOCKET in loaded.refused:
            raise Unavailable(f"this kernel refuses its programs: {loaded.refused[SOCKET].splitlines()[0]}")
        self._cgroup = Path(cgroup_root) if cgroup_root else whole_tree()
        self._hooks.probe()

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except CiliateError as error:
            if self._mode == "on":
                raise
            self.reason = f"off: {error}"
            self._log.warning("no load balancing at sockets", reason=str(error))

    @property
    def _hooks(self) -> SocketHooks:
        return SocketHooks(self._root, self._cgroup)

    @property
    def enabled(self) -> bool:
        """Whether sockets are connected to backends."""
        return not self.reason

    def enforce(self) -> None:
        """The maps say what they should: put the hooks, replace those of an earlier agent, or take them away."""
        if self.enabled:
            self._try(self._hooks.attach)
        if not self.enabled:
            self._hooks.detach()

    def check(self) -> pb.Component:
        """For the status."""
        good = self.reason or f"{len(self._hooks.attached)} hooks on {self._cgroup}"
        return component("sockets", {}, good=good)
