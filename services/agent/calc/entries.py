"""Templates of groups -> changes of the policy map: keys, values, and the numbers of L7 rule sets that values carry."""

from __future__ import annotations

from services.agent.calc.group import ANY_IDENTITY, Group, GroupKey
from services.agent.calc.maps import policy_entry, policy_key
from services.agent.calc.name_sets import NameSets
from services.agent.calc.pressure import CLOSED
from services.agent.calc.rulesets import Rulesets
from services.agent.calc.sequencer import PolicyChanges
from services.model.identity import is_refined
from services.model.verdict import Direction
from services.policy.compile import Effect, Slot, Template
from services.policy.l7 import HTTP, L7


class Entries:
    """Collects changes since they were last taken, and which groups they are about."""

    def __init__(self) -> None:
        self.rulesets, self.name_sets = Rulesets(), NameSets()
        self.touched: set[GroupKey] = set()
        self._changes = PolicyChanges()

    def take(self) -> PolicyChanges:
        """The changes since the last call."""
        changes, self._changes = self._changes, PolicyChanges()
        return changes

    def write(self, group: Group, direction: Direction, number: int, before: Template, after: Template) -> None:
        """The difference of one identity's entries."""
        self.touched.add(group.key)
        kept = {(slot.protocol, slot.port, slot.bits) for slot in after}
        known = set(before)
        # Endpoints that stop looking at parts of identities must not find one half gone before they are told.
        left = is_refined(number) and not group.sides[direction].refines
        remove = self._changes.leave if left else self._changes.remove
        for slot in before:
            if (slot.protocol, slot.port, slot.bits) not in kept:
                remove(policy_key(group.policy_id, direction, number, slot))
        for slot in after:
            if slot not in known:
                key = policy_key(group.policy_id, direction, number, slot)
                self._changes.put(key, self.value(slot, number), deny=slot.value.effect != Effect.ALLOW)

    def drop(self, group: Group) -> None:
        """Everything of a group that no endpoint obeys any more."""
        for key, _, _ in keys_of(group):
            self._changes.remains[key] = None

    def value(self, slot: Slot, number: int) -> bytes:
        """The value of one slot of an identity's trie."""
        ruleset = 0 if slot.value.l7 is None else self._ruleset(slot.value.l7)
        return policy_entry(slot, ruleset, any_peer=number == ANY_IDENTITY)

    def _ruleset(self, l7: L7) -> int:
        """The number that entries carry; 0 where there is none, and the traffic is refused."""
        if l7.by_names:
            return self.name_sets.take(l7) or 0
        return self.rulesets.take(l7.http_rules()) or 0 if l7.kind == HTTP else 0


def keys_of(group: Group) -> list[tuple[bytes, Slot, int]]:
    """(key, slot, identity) of every entry that a group should have; of a closed one those that close it."""
    return [
        (policy_key(group.policy_id, direction, number, slot), slot, number)
        for direction, side in group.sides.items()
        for number, template in ({ANY_IDENTITY: CLOSED} if group.full else side.templates).items()
        for slot in template
    ]
