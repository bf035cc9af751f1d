"""One policy id: the endpoints that share an identity and named ports share these entries, however many they are.

Compiled per direction as an any-peer trie and one trie per identity that some rule names. Identities that the same
rules match share one trie object, so memory and work follow the number of different cases, not of identities.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from services.agent.abi.endpoints import EndpointFlags
from services.agent.calc.binding import Bound, Program
from services.agent.calc.peer_index import PeerIndex
from services.model.identity import Reserved, is_refined
from services.model.objects import ObjectKey
from services.model.verdict import Direction
from services.policy.compile import NOTHING, Piece, Template, function_of, slots
from services.policy.conflicts import Conflict
from services.policy.l7 import L7
from services.policy.peers import Party, PortNames

Signature = tuple[tuple[Bound, tuple[Piece, ...]], ...]
NO_ENTRIES: Template = ()
ANY_IDENTITY = 0


@dataclass(frozen=True, slots=True)
class GroupKey:
    """What endpoints must have in common to share policy entries."""

    identity: int
    ports: tuple[tuple[str, int, int], ...] = ()
    """(name, protocol, number) of named container ports, sorted: named ingress ports are the subject's own."""
    host: bool = field(default=False, repr=False)
    """The node itself. Not part of the representation, which numbers are made of: those of pods stay what they were."""

    @property
    def name(self) -> str:
        """What its number is made of."""
        return "host" if self.host else repr(self)

    def port_names(self) -> PortNames:
        """The ports arranged for look-ups."""
        found: dict[tuple[str, int], set[int]] = {}
        for name, protocol, number in self.ports:
            found.setdefault((name, protocol), set()).add(number)
        return {key: frozenset(numbers) for key, numbers in found.items()}


HOST_KEY = GroupKey(Reserved.HOST, host=True)
"""The node's own group."""


class Side:
    """One direction of a group: identity -> entries."""

    def __init__(self) -> None:
        self._program = Program()
        self._any = NOTHING
        self.refines = False
        """Whether some rule may tell pods of one identity apart: only then has it entries for parts of identities."""
        self._cache: dict[Signature, Template] = {}
        self.templates: dict[int, Template] = {}
        self.entries = 0
        """How many map entries the templates make."""

    @property
    def program(self) -> Program:
        """The rules as they are compiled now."""
        return self._program

    def load(self, program: Program, index: PeerIndex, parties: Mapping[int, Party]) -> dict[int, Template]:
        """Compile other rules from scratch; the former templates of identities whose entries changed."""
        before = self.templates
        self._program = program
        self.refines = program.refines
        self._cache = {}
        self._any = function_of(program.anyone)
        after: dict[int, Template] = {}
        any_template = slots(self._any)
        if any_template:
            after[ANY_IDENTITY] = any_template
        matched: dict[int, list[Bound]] = {}
        for bound in program.bound:
            for number in {number for peer in bound.peers for number in index.members(peer)}:
                if is_refined(number) and not self.refines:
                    continue
                matched.setdefault(number, []).append(bound)
        for number, found in matched.items():
            template = self._compile(found, parties[number].ports)
            if template:
                after[number] = template
        self.templates = after
        self.entries = sum(len(template) for template in after.values())
        return {
            number: before.get(number, NO_ENTRIES)
            for number in before.keys() | after.keys()
            if before.get(number, NO_ENTRIES) != after.get(number, NO_ENTRIES)
        }

    def update(self, number: int, index: PeerIndex, party: Party | None) -> Template | None:
        """Compile one identity anew; its former template if the entries changed, else None."""
        before = self.templates.get(number, NO_ENTRIES)
        after = NO_ENTRIES
        if party is not None and (self.refines or not is_refined(number)):
            found = [b for b in self._program.bound if any(index.has(peer, number) for peer in b.peers)]
            after = self._compile(found, party.ports) if found else NO_ENTRIES
        if after == before:
            return None
        if after:
            self.templates[number] = after
        else:
            del self.templates[number]
        self.entries += len(after) - len(before)
        return before

    def _compile(self, found: Iterable[Bound], ports: PortNames) -> Template:
        signature = tuple((bound, bound.resolved(ports)) for bound in found)
        template = self._cache.get(signature)
        if template is None:
            own = [piece for bound, named in signature for piece in (*bound.pieces, *named)]
            template = self._cache[signature] = slots(function_of([*self._program.anyone, *own]), self._any)
        return template

    def l7(self) -> set[L7]:
        """Every L7 rule set that entries name, and perhaps some that they named since the rules changed."""
        distinct = (*self._cache.values(), self.templates.get(ANY_IDENTITY, NO_ENTRIES))
        return {slot.value.l7 for template in distinct for slot in template if slot.value.l7 is not None}


@dataclass(slots=True)
class Group:
    """A policy id and what it is made of."""

    key: GroupKey
    policy_id: int
    revision: int = 0
    applied: set[ObjectKey] = field(default_factory=set)
    """Policies with a spec that selects the group."""
    isolating: dict[Direction, tuple[ObjectKey, ...]] = field(default_factory=dict)
    """Policies because of which a direction is closed."""
    enforced: dict[Direction, bool] = field(default_factory=dict)
    sides: dict[Direction, Side] = field(default_factory=lambda: {direction: Side() for direction in Direction})
    names: frozenset[tuple[str, int]] = frozenset()
    """Port names of destinations that its rules use."""
    conflicts: tuple[Conflict, ...] = ()
    """Why its rules cannot be compiled: it then keeps those that it had, and is closed if it never had any."""
    conflicting_since: int = 0
    """The revision since which they cannot; 0 = they can."""
    realised: bool = False
    """Whether its rules were ever compiled."""
    endpoints: set[int] = field(default_factory=set)
    full: bool = False
    """Whether its entries do not fit the map; it then has none and denies everything."""

    def flags(self) -> EndpointFlags:
        """What endpoints must look at."""
        flags = EndpointFlags(0)
        if self.sides[Direction.INGRESS].refines:
            flags |= EndpointFlags.REFINE_INGRESS
        if self.sides[Direction.EGRESS].refines:
            flags |= EndpointFlags.REFINE_EGRESS
        if self.sides[Direction.EGRESS].program.by_name:
            flags |= EndpointFlags.FQDN
        return flags

    def size(self) -> int:
        """How many map entries it takes."""
        return sum(side.entries for side in self.sides.values())
