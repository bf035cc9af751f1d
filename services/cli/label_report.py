"""Label cardinality: which label keys make how many identities, and which of them no policy asks for. Pure.

In: identities with their labels, and the keys that policies use. Out: a row per key, and what leaving keys out would
save. Every identity costs each node map entries and memory, so a key without use is worth a pattern that excludes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.model.labels import SOURCE_ANY, SOURCE_CIDR, SOURCE_CIDR_GROUP, SOURCE_FQDN, SOURCE_RESERVED

NOT_OF_PODS = frozenset({SOURCE_RESERVED, SOURCE_CIDR, SOURCE_CIDR_GROUP, SOURCE_FQDN})
"""Sources of labels that no pod has: they cannot be left out."""


@dataclass(frozen=True, slots=True)
class KeyUse:
    """One label key. `without`: identities that would remain if the key were left out of identities."""

    key: str
    identities: int
    values: int
    without: int
    policies: tuple[str, ...]

    def as_item(self, total: int) -> dict[str, Any]:
        """For tables and programs."""
        return {
            "key": self.key,
            "identities": self.identities,
            "values": self.values,
            "without": self.without,
            "saved": total - self.without,
            "policies": list(self.policies),
            "used": bool(self.policies),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """`without_unused`: identities that would remain if all keys that no policy uses were left out together."""

    total: int
    keys: tuple[KeyUse, ...]
    without_unused: int

    @property
    def unused(self) -> tuple[str, ...]:
        """Keys of identities that no policy uses."""
        return tuple(each.key for each in self.keys if not each.policies and each.identities)


def report(identities: Iterable[Sequence[str]], used: Mapping[str, Iterable[str]]) -> Report:
    """Compare identities, given as label texts, with policies: name -> the keys that it uses (`k8s:app`, `any:app`)."""
    sets = {frozenset(labels) for labels in identities}
    names: dict[str, set[str]] = {}
    for policy, keys in used.items():
        for key in keys:
            names.setdefault(key, set()).add(policy)
    by_key: dict[str, dict[frozenset[str], list[str]]] = {}
    for labels in sets:
        for label in labels:
            by_key.setdefault(key_of(label), {}).setdefault(labels, []).append(label)
    known = {key for key in by_key if not _foreign(key)}
    asked = {key for key in names if not _foreign(key) and not _is_known(key, known)}
    rows = [_row(key, by_key.get(key, {}), sets, names) for key in known | asked]
    unused = {row.key for row in rows if not row.policies}
    rest = {frozenset(label for label in labels if key_of(label) not in unused) for labels in sets}
    rows.sort(key=lambda row: (row.without, -row.values, row.key))
    return Report(len(sets), tuple(rows), len(rest))


def _row(
    key: str, having: Mapping[frozenset[str], list[str]], sets: set[frozenset[str]], names: Mapping[str, set[str]]
) -> KeyUse:
    # Only those that have the key become something else; some become what others are already.
    shorter = {labels.difference(own) for labels, own in having.items()}
    without = len(sets) - len(having) + sum(1 for each in shorter if each not in sets)
    values = len({label for own in having.values() for label in own})
    users = names.get(key, set()) | names.get(f"{SOURCE_ANY}:{key.partition(':')[2]}", set())
    return KeyUse(key, len(having), values, without, tuple(sorted(users)))


def _is_known(key: str, known: Iterable[str]) -> bool:
    source, _, name = key.partition(":")
    return any(each == key or (source == SOURCE_ANY and each.partition(":")[2] == name) for each in known)


def _foreign(key: str) -> bool:
    return key.partition(":")[0] in NOT_OF_PODS


def key_of(label: str) -> str:
    """`k8s:app` of `k8s:app=web`."""
    return label.partition("=")[0]


def exclusion(key: str) -> str:
    """The pattern for `identity_label_patterns` that leaves a key out."""
    return f"!{re.escape(key.partition(':')[2])}$"
