"""What a replica knows: identities, references, address rows, node leases. Pure: events in, changes out.

Reference counts are kept here rather than asked from etcd, because the collector and `Get` need them and they must
be readable while etcd is away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from services.identity.keys import EndpointKey, IdentityKey, Keys, LeaseKey, ReferenceKey, StateKey
from services.identity.store import Entry, Event


class IdentityChange(NamedTuple):
    """An identity stands for these labels (canonical), or is gone."""

    id: int
    canonical: str | None


class EndpointChange(NamedTuple):
    """A prefix has this row (a serialised Endpoint message), or none any more."""

    prefix: str
    row: bytes | None


Change = IdentityChange | EndpointChange
"""What agents are told. References and leases are the service's own business."""


class Row(NamedTuple):
    """A row of the address table with the revision it was written at."""

    value: bytes
    mod_revision: int


class State:
    """Mirror of the keys under `state/`. Feed it with `apply` in etcd's order."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.identities: dict[int, str] = {}
        self.by_labels: dict[str, int] = {}
        self.references: dict[int, set[str]] = {}
        self.claims: dict[str, dict[int, int]] = {}
        """Node -> identity -> revision at which the node last claimed it."""
        self.unreferenced: dict[int, int] = {}
        """Identity -> revision at which its last reference went; what the collector starts its clock from."""
        self.rows: dict[str, Row] = {}
        self.leases: dict[str, int] = {}
        self.reference_count = 0

    def apply(self, event: Event) -> Change | None:
        """Take in one event; returns what agents should hear of it."""
        key = self._keys.parse(event.key)
        if key is None:
            return None
        if isinstance(event, Entry):
            return self._put(key, event)
        return self._remove(key, event.mod_revision)

    def _put(self, key: StateKey, entry: Entry) -> Change | None:
        match key:
            case IdentityKey(number):
                canonical = entry.value.decode()
                if self.identities.get(number) == canonical:
                    return None
                self._forget_labels(number)
                self.identities[number] = canonical
                self.by_labels[canonical] = number
                if number not in self.references:
                    self.unreferenced[number] = entry.mod_revision
                return IdentityChange(number, canonical)
            case ReferenceKey(number, node):
                nodes = self.references.setdefault(number, set())
                self.reference_count += node not in nodes
                nodes.add(node)
                self.claims.setdefault(node, {})[number] = entry.mod_revision
                self.unreferenced.pop(number, None)
            case EndpointKey(prefix):
                known = self.rows.get(prefix)
                self.rows[prefix] = Row(entry.value, entry.mod_revision)
                return None if known and known.value == entry.value else EndpointChange(prefix, entry.value)
            case LeaseKey(node):
                self.leases[node] = int(entry.value)
        return None

    def _remove(self, key: StateKey, revision: int) -> Change | None:
        match key:
            case IdentityKey(number):
                self._forget_labels(number)
                self.unreferenced.pop(number, None)
                return IdentityChange(number, None) if self.identities.pop(number, None) is not None else None
            case ReferenceKey(number, node):
                self._drop_reference(number, node, revision)
            case EndpointKey(prefix):
                return EndpointChange(prefix, None) if self.rows.pop(prefix, None) else None
            case LeaseKey(node):
                self.leases.pop(node, None)
        return None

    def _drop_reference(self, number: int, node: str, revision: int) -> None:
        nodes = self.references.get(number)
        if nodes is None or node not in nodes:
            return
        nodes.remove(node)
        claimed = self.claims[node]
        del claimed[number]
        if not claimed:
            del self.claims[node]
        self.reference_count -= 1
        if not nodes:
            del self.references[number]
            if number in self.identities:
                self.unreferenced[number] = revision

    def _forget_labels(self, number: int) -> None:
        canonical = self.identities.get(number)
        if canonical is not None and self.by_labels.get(canonical) == number:
            del self.by_labels[canonical]


def difference(old: State, new: State) -> Iterator[Change]:
    """What agents who know `old` must hear to know `new`."""
    for number, canonical in new.identities.items():
        if old.identities.get(number) != canonical:
            yield IdentityChange(number, canonical)
    for prefix, row in new.rows.items():
        known = old.rows.get(prefix)
        if known is None or known.value != row.value:
            yield EndpointChange(prefix, row.value)
    yield from (EndpointChange(prefix, None) for prefix in old.rows if prefix not in new.rows)
    yield from (IdentityChange(number, None) for number in old.identities if number not in new.identities)


def everything(state: State) -> Iterator[Change]:
    """The whole state as changes from nothing; identities before the rows that name them."""
    yield from (IdentityChange(number, canonical) for number, canonical in list(state.identities.items()))
    yield from (EndpointChange(prefix, row.value) for prefix, row in list(state.rows.items()))


def coalesce(changes: Iterable[Change]) -> list[Change]:
    """The latest change per identity and prefix, in the order that keeps references whole.

    New identities before the rows that name them; rows go before the identities they named.
    """
    latest: dict[tuple[type, int | str], Change] = {(type(change), change[0]): change for change in changes}
    return sorted(latest.values(), key=_rank)


def _rank(change: Change) -> int:
    match change:
        case IdentityChange(_, None):
            return 3
        case IdentityChange():
            return 0
        case EndpointChange(_, None):
            return 2
        case EndpointChange():
            return 1
