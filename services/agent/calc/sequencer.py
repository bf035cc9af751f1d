"""In which order changes reach the kernel: the only place that knows.

While changes are being written every packet must meet either the old or the new verdict:

1. Rule sets of HTTP and of names, because entries name them by number.
2. Service backends, their look-up tables and client ranges, then frontends: a frontend never counts a slot that is
   not there.
3. Policy entries, denies first, before any address means an identity that they are about. Then the names that are
   known already get their new identities.
4. The address table, both ways: an address moves from one fully policed identity to another in one write. Around it
   the parts of identities: they are known before the address, and forgotten after it. Then endpoints that begin to look
   at them.
5. Removals of policy entries of living groups, now that nothing new relies on them.
6. Endpoints: the new revision makes connections ask again, so all that they may find must be in place, and what they
   must not find must be gone.
7. Egress gateways: they concern packets that policy lets go.
8. What is left behind: frontends, then all that is behind them; endpoints' addresses; entries of dead groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.agent.calc.maps import Change, HttpRulesets, MapName, NameRules, NamesMoved, Put, Remove
from services.agent.calc.table import Table

SERVICE_MAPS: tuple[MapName, ...] = ("backends", "backend_slots", "maglev", "source_ranges", "revnat", "services")
"""Frontends come last and go first: they count slots and say which of the others are looked at."""


@dataclass(slots=True)
class PolicyChanges:
    """Changes of the policy map; the last word about a key counts."""

    puts: dict[bytes, tuple[bytes, bool]] = field(default_factory=dict)
    """key -> (value, whether it denies)"""
    removals: dict[bytes, None] = field(default_factory=dict)
    """Of groups that live on."""
    remains: dict[bytes, None] = field(default_factory=dict)
    """Of groups that are gone, or of parts that a group looks at no more: its endpoints must be told first."""
    rulesets: HttpRulesets | None = None
    names: NameRules | None = None
    names_moved: bool = False
    """Whether toFQDNs selectors are others than before."""

    def put(self, key: bytes, value: bytes, *, deny: bool) -> None:
        """The map shall hold this."""
        self.removals.pop(key, None)
        self.remains.pop(key, None)
        self.puts[key] = (value, deny)

    def remove(self, key: bytes) -> None:
        """The map shall not hold this."""
        self.puts.pop(key, None)
        self.removals[key] = None

    def leave(self, key: bytes) -> None:
        """The map shall not hold this, once no endpoint asks for it."""
        self.puts.pop(key, None)
        self.remains[key] = None

    def written(self) -> list[Change]:
        """What is put, denies first: between two writes too much may be denied, never too much allowed."""
        return [
            Put("policy", key, value)
            for first in (True, False)
            for key, (value, deny) in self.puts.items()
            if deny is first
        ]


def _removed(keys: Iterable[bytes]) -> list[Change]:
    return [Remove("policy", key) for key in keys]


def sequence(
    policy: PolicyChanges,
    ipcache: tuple[list[Change], list[Change]],
    parts: tuple[list[Change], list[Change]],
    looking: list[Change],
    endpoints: dict[MapName, Table],
    services: dict[MapName, Table],
    egress: tuple[list[Change], list[Change]],
) -> list[Change]:
    """One list, safe to apply from the front."""
    backend = {name: table.take() for name, table in services.items()}
    local = {name: table.take() for name, table in endpoints.items()}
    ordered: list[Change] = [change for change in (policy.rulesets, policy.names) if change is not None]
    for name in SERVICE_MAPS:
        ordered += backend[name][0]
    ordered += policy.written()
    if policy.names is not None and policy.names_moved:
        ordered.append(NamesMoved(policy.names))
    ordered += parts[0]
    ordered += ipcache[0] + ipcache[1]
    ordered += parts[1]
    ordered += looking
    ordered += _removed(policy.removals)
    for name in ("bandwidth", "http_visible_pods"):
        ordered += local[name][0] + local[name][1]
    ordered += local["endpoints"][0] + local["endpoint_addrs"][0] + local["endpoint_ifs"][0]
    ordered += egress[0] + egress[1]
    for name in reversed(SERVICE_MAPS):
        ordered += backend[name][1]
    ordered += local["endpoint_ifs"][1] + local["endpoint_addrs"][1] + local["endpoints"][1]
    ordered += _removed(policy.remains)
    return ordered
