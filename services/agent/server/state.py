"""The agent's own condition: when it became ready, how its parts are, what it counts. `app` writes, people read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.common.pb.agent.v1 import agent_pb2 as pb

Check = Callable[[], pb.Component]


def process_age() -> float:
    """Seconds since this process was started."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class AgentState:
    """`components` are asked each time; `errors` of sources are told apart from those of policies."""

    node: str
    cluster: str
    version: str
    ready: bool = False
    ready_after: float = 0.0
    checks: list[Check] = field(default_factory=list)
    reporting: list[Callable[[], Mapping[str, str]]] = field(default_factory=list)
    counters: list[Callable[[], Mapping[str, int]]] = field(default_factory=list)
    when_ready: list[Callable[[], None]] = field(default_factory=list)
    lost: Callable[[], Mapping[str, int]] = dict
    connections: Callable[[], pb.ConnectionTable] = pb.ConnectionTable
    rule_errors: Callable[[], tuple[str, ...]] = tuple

    def become_ready(self) -> None:
        """Every endpoint is enforced as the cluster's state demands; said once."""
        if not self.ready:
            self.ready, self.ready_after = True, process_age()
            for call in self.when_ready:
                call()


def component(name: str, problems: Mapping[str, str], starting: bool = False, good: str = "") -> pb.Component:
    """A part that is fine unless it has problems."""
    if problems:
        where, what = next(iter(problems.items()))
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        text = what if where in what else f"{where}: {what}"
        return pb.Component(name=name, health=pb.HEALTH_DEGRADED, message=text + more)
    return pb.Component(name=name, health=pb.HEALTH_STARTING if starting else pb.HEALTH_OK, message=good)
