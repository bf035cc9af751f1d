"""What happens when the policy map is too small: computed before anything is written, never found out halfway.

Groups that fit are served, the smallest first; the others get two entries instead of all of theirs, which deny
everything and name no policy but this state. So no endpoint ever runs on a part of its policy.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.agent.calc.catalogue import FULL_RULE
from services.agent.calc.group import Group, GroupKey
from services.model.verdict import Direction
from services.policy.compile import Effect, Slot, Template, Value

POLICY_CAPACITY = 262_144
"""Entries of the policy map (`bpf/lib/policy.h`)."""
CLOSED: Template = (Slot(0, 0, 0, Value(Effect.DENY, FULL_RULE)),)


def overflowing(groups: Iterable[Group], capacity: int) -> set[GroupKey]:
    """The groups that find no room, the same ones for the same groups."""
    room = capacity
    found: set[GroupKey] = set()
    for group in sorted(groups, key=lambda group: (group.size(), group.policy_id)):
        # Every group keeps at least the two entries that close it.
        room -= max(group.size(), len(Direction))
        if room < 0:
            found.add(group.key)
    return found


def describe(group: Group, sizes: Iterable[tuple[int, str]]) -> str:
    """For people: which endpoints are closed, and which peers make so many entries."""
    largest = ", ".join(f"{text} ({count} identities)" for count, text in sorted(sizes, reverse=True)[:3])
    endpoints = ", ".join(str(number) for number in sorted(group.endpoints))
    return (
        f"endpoints {endpoints} need {group.size()} policy entries and find no room: all their traffic is denied; "
        f"the peers that match most: {largest or 'none'}"
    )
