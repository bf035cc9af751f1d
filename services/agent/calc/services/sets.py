"""Sets of backends in the kernel's maps: slots, look-up tables, client ranges.

A backend keeps its slot for as long as it can: one that goes gives its slot to the last one, so that a change writes a
few entries and moves nobody else, however many there are. Frontends (which count the slots) are the caller's business.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from services.agent.abi.lb import MAGLEV_PIECE
from services.agent.calc.maps import MapName
from services.agent.calc.services import maglev
from services.agent.calc.services.entries import (
    PLACE,
    backend_key,
    backend_slot_key,
    maglev_key,
    source_range_key,
    u32,
)
from services.agent.calc.table import Table
from services.model.addresses import IPNetwork

SET_MAPS: tuple[MapName, ...] = ("backends", "backend_slots", "maglev", "source_ranges")
MAX_BACKENDS = 65_535
"""Of one set: slots have 16 bits in look-up tables and in conntrack."""
Member = bytes
"""A backend as the map has it (`entries.backend_value`): begins with its address and port."""
M = TypeVar("M", bound=Hashable)


@dataclass(frozen=True, slots=True)
class SetSpec:
    """What a set should be. `members` are sorted and no more than `MAX_BACKENDS`."""

    members: tuple[Member, ...] = ()
    affinity: bool = False
    maglev_size: int = 0
    """0 = nobody asks its look-up table."""
    maglev_seed: int = 0
    ranges: tuple[IPNetwork, ...] = ()


@dataclass(frozen=True, slots=True)
class _Written:
    spec: SetSpec
    slots: tuple[Member, ...] = ()


_NOTHING = _Written(SetSpec())


def keep_slots(before: Sequence[M], wanted: Sequence[M]) -> list[M]:
    """`wanted` in slots 0, 1, ...: each where it was if that is still within the count, holes filled by those that are
    new and then by those from the end."""
    left = set(wanted)
    slots: list[M | None] = []
    for member in before:
        slots.append(member if member in left else None)
        left.discard(member)
    moving = [member for member in wanted if member in left]
    moving += [member for member in slots[len(wanted) :] if member is not None]
    slots = slots[: len(wanted)] + [None] * (len(wanted) - len(slots))
    following = iter(moving)
    return [member if member is not None else next(following) for member in slots]


class BackendSets:
    """Desired content of the sets' maps."""

    def __init__(self, capacity: int) -> None:
        self.tables: dict[MapName, Table] = {name: Table(name) for name in SET_MAPS}
        self._capacity = capacity
        self._written: dict[int, _Written] = {}

    def has_room(self, number: int, count: int) -> bool:
        """Whether a set of so many backends fits into the map."""
        known = self._written.get(number)
        used = len(self.tables["backends"].desired) - (len(known.slots) if known else 0)
        return used + count <= self._capacity

    def put(self, number: int, spec: SetSpec) -> None:
        """The set with this number shall be so."""
        known = self._written.get(number)
        if known is not None and known.spec == spec:
            return
        before = known or _NOTHING
        slots = tuple(keep_slots(before.slots, spec.members))
        # Most sets are in order: then one tuple is enough.
        after = self._written[number] = _Written(spec, spec.members if slots == spec.members else slots)
        self._write_slots(number, before, after)
        self._write_places(number, before, after)
        self._write_lookup(number, before, after)
        self._write_ranges(number, before.spec.ranges, spec.ranges)

    def drop(self, number: int) -> None:
        """No such set; unknown ones are fine."""
        if number in self._written:
            self.put(number, SetSpec())
            del self._written[number]

    def members(self, number: int) -> tuple[Member, ...]:
        """Those that new connections get, sorted."""
        return self._written.get(number, _NOTHING).spec.members

    def _write_slots(self, number: int, before: _Written, after: _Written) -> None:
        table = self.tables["backends"]
        old = before.slots
        for slot, member in enumerate(after.slots):
            if slot >= len(old) or old[slot] != member:
                table.put(backend_key(number, slot), member)
        for slot in range(len(after.slots), len(old)):
            table.remove(backend_key(number, slot))

    def _write_places(self, number: int, before: _Written, after: _Written) -> None:
        """Where each backend is, for clients that remember addresses."""
        if not (before.spec.affinity or after.spec.affinity):
            return
        table = self.tables["backend_slots"]
        new = {member[:PLACE]: slot for slot, member in enumerate(after.slots)} if after.spec.affinity else {}
        old = {member[:PLACE]: slot for slot, member in enumerate(before.slots)} if before.spec.affinity else {}
        for place, slot in new.items():
            if old.get(place) != slot:
                table.put(backend_slot_key(number, place), u32(slot))
        for place in old.keys() - new.keys():
            table.remove(backend_slot_key(number, place))

    def _write_lookup(self, number: int, before: _Written, after: _Written) -> None:
        spec, was = after.spec, before.spec
        size = spec.maglev_size if spec.members else 0
        old_size = was.maglev_size if was.members else 0
        if (size, spec.maglev_seed, after.slots) == (old_size, was.maglev_seed, before.slots):
            return
        table = self.tables["maglev"]
        count = 0
        if size:
            where = {member: slot for slot, member in enumerate(after.slots)}
            names = [member[:PLACE] for member in spec.members]
            filled = maglev.fill(names, size, spec.maglev_seed)
            parts = maglev.pieces(filled, [where[member] for member in spec.members])
            count = len(parts)
            for piece, raw in enumerate(parts):
                table.put(maglev_key(number, piece), raw)
        for piece in range(count, len(maglev_pieces(old_size))):
            table.remove(maglev_key(number, piece))

    def _write_ranges(self, number: int, before: tuple[IPNetwork, ...], after: tuple[IPNetwork, ...]) -> None:
        table = self.tables["source_ranges"]
        for network in set(before) - set(after):
            table.remove(source_range_key(number, network))
        for network in set(after):
            table.put(source_range_key(number, network), u32(1))


def maglev_pieces(size: int) -> range:
    """The pieces that a look-up table has."""
    return range(-(-size // MAGLEV_PIECE))
