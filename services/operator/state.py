"""How the operator is: for probes and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from services.common.kube.resources import Resource
from services.operator.cache import Cache
from services.operator.chore import Chore
from services.operator.definitions import Installer
from services.operator.leader import Leader
from services.operator.tidier import Tidier


@dataclass(slots=True)
class State:
    """Filled while this replica leads."""

    chores: list[Chore] = field(default_factory=list)
    caches: Mapping[Resource, Cache] = field(default_factory=dict)
    installer: Installer | None = None
    tidier: Tidier | None = None

    def problems(self) -> dict[str, str]:
        """What does not work, by component."""
        found = {f"cache:{each.resource.kind}": each.problem for each in self.caches.values() if each.problem}
        for chore in self.chores:
            found |= {f"{chore.name}: {where}": what for where, what in chore.failures.items()}
        if self.tidier and self.tidier.problem:
            found["tidier"] = self.tidier.problem
        if self.installer:
            found |= {f"definition:{name}": problem for name, problem in self.installer.problems.items()}
        return found

    def problem_of(self, leader: Leader) -> Callable[[], str]:
        """For the readiness probe: a replica is ready that leads, or sees who does."""

        def problem() -> str:
            if leader.leading or (leader.holder and not leader.problem):
                return ""
            return leader.problem or "nobody leads yet"

        return problem
