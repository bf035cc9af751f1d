"""Which namespaces flows were seen in lately (the Hubble API, 4.3).

Learned from whole segments: a namespace counts as seen when the newest row of a segment that names it was. So it may be
told a little longer than an hour, never shorter, also when the store keeps less.
"""

from __future__ import annotations

from services.flows.store import FlowStore, Segment

LIFETIME_NS = 3600 * 10**9

Name = tuple[str, str]
"""(cluster, namespace); the cluster `default` has no name."""


class Namespaces:
    """Of one store."""

    def __init__(self, store: FlowStore) -> None:
        self._store = store
        self._seen: dict[Name, int] = {}
        store.evicting.append(self._learn)

    def _learn(self, segment: Segment) -> None:
        parties = self._store.dictionaries.parties
        for number in segment.uses.held("parties").tolist():
            party = parties[number]
            if party is not None and party.namespace:
                name = ("" if party.cluster == "default" else party.cluster, party.namespace)
                self._seen[name] = max(self._seen.get(name, 0), segment.max_time)

    def seen(self, now_ns: int) -> list[Name]:
        """Those of the last hour, sorted."""
        for segment in self._store.segments:
            if segment.max_time >= now_ns - LIFETIME_NS:
                self._learn(segment)
        self._seen = {name: last for name, last in self._seen.items() if last >= now_ns - LIFETIME_NS}
        return sorted(self._seen)
