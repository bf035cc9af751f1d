"""HTTP rule sets on their way into the kernel: compiled to tables, written in one swap, mistakes kept for people. And
the ports whose requests are told without any policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.agent.abi.layout import be16
from services.agent.calc.http import compile_rulesets
from services.agent.calc.maps import HttpRulesets
from services.agent.datapath.http_tables import HttpTableWriter
from services.agent.datapath.maps import PinnedMap
from services.agent.datapath.reconcile import MapReconciler


class HttpPolicy:
    """What the sink calls before it writes entries that name rule sets."""

    def __init__(
        self, maps: Mapping[str, PinnedMap], visible_ports: Iterable[int] = (), *, traces: bool = True
    ) -> None:
        """`traces`: tell which trace a request says it belongs to."""
        self._writer = HttpTableWriter(maps, traces=traces)
        self.errors: tuple[str, ...] = ()
        wanted = {be16(port).to_bytes(4, "little"): (1).to_bytes(4, "little") for port in visible_ports}
        MapReconciler(maps["http_visible"]).prune(wanted)

    def write(self, change: HttpRulesets) -> None:
        """Put all rule sets in force at once; a rule that cannot be compiled allows nothing and is reported."""
        tables = compile_rulesets(change.rulesets)
        self.errors = tuple(message for messages in tables.errors.values() for message in messages)
        self._writer.write(tables)
