"""HTTP rule sets on their way into the kernel: compiled to tables, written in one swap, mistakes kept for people."""

from __future__ import annotations

from collections.abc import Mapping

from services.agent.calc.http import compile_rulesets
from services.agent.calc.maps import HttpRulesets
from services.agent.datapath.http_tables import HttpTableWriter
from services.agent.datapath.maps import PinnedMap


class HttpPolicy:
    """What the sink calls before it writes entries that name rule sets."""

    def __init__(self, maps: Mapping[str, PinnedMap]) -> None:
        self._writer = HttpTableWriter(maps)
        self.errors: tuple[str, ...] = ()

    def write(self, change: HttpRulesets) -> None:
        """Put all rule sets in force at once; a rule that cannot be compiled allows nothing and is reported."""
        tables = compile_rulesets(change.rulesets)
        self.errors = tuple(message for messages in tables.errors.values() for message in messages)
        self._writer.write(tables)
