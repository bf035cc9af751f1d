"""Rules about names on their way into the kernel: compiled to a table, written in one swap, errors kept for people."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from services.agent.calc.maps import NameRules, NamesMoved
from services.agent.calc.names import compile_table
from services.agent.datapath.maps import PinnedMap
from services.agent.datapath.name_tables import Lifetimes, NameTableWriter


class NamePolicy:
    """What the sink calls before it writes entries that name rule sets, and when names change their identities."""

    def __init__(self, maps: Mapping[str, PinnedMap], lifetimes: Lifetimes) -> None:
        self._writer = NameTableWriter(maps, lifetimes)
        self.errors: tuple[str, ...] = ()

    def write(self, change: NameRules | NamesMoved) -> None:
        """Put all rules in force at once, or go through the names that are known."""
        if isinstance(change, NamesMoved):
            self._classify(change.rules)
            return
        table = compile_table(change.rulesets, change.fqdn, change.identities)
        self.errors = table.errors
        self._writer.write(table)

    def _classify(self, rules: NameRules) -> None:
        @cache
        def identity(name: str) -> int:
            return rules.identities.get(rules.fqdn.matching(name), 0)

        self._writer.classify(identity)
