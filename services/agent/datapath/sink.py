"""Where calc's changes end: applied to the maps in their order, runs of one map in one batch.

calc.Engine.flush() -> [Change] -> DatapathSink.apply -> MapReconciler per map -> kernel
calc.Engine.desired() (after a restart) -> DatapathSink.resync
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from services.agent.calc.maps import MAP_NAMES, Change, HttpRulesets, MapName, NameRules, NamesMoved, Put, Remove
from services.agent.calc.sequencer import SERVICE_MAPS
from services.agent.datapath.reconcile import MapAccess, MapReconciler

RESYNC_ORDER: tuple[MapName, ...] = (
    "policy",
    "refined",
    "ipcache",
    "endpoints",
    "endpoint_addrs",
    "endpoint_ifs",
    "egress_gateway",
    "bandwidth",
    "http_visible_pods",
)
"""What others refer to comes first (see calc.sequencer)."""


class DatapathSink:
    """All maps that calc writes. `write_rulesets` installs HTTP rule sets; they precede entries that name them.
    `write_names` does the same with rules about names, and gives known names their identities."""

    def __init__(
        self,
        maps: Mapping[str, MapAccess],
        write_rulesets: Callable[[HttpRulesets], None] | None = None,
        write_names: Callable[[NameRules | NamesMoved], None] | None = None,
    ) -> None:
        self.reconcilers: dict[MapName, MapReconciler] = {name: MapReconciler(maps[name]) for name in MAP_NAMES}
        self._write_rulesets = write_rulesets
        self._write_names = write_names

    def apply(self, changes: Sequence[Change]) -> bool:
        """Apply in order. False: something failed; it is counted, kept, and `retry` tries it again."""
        ok = True
        run: list[Put | Remove] = []
        for change in changes:
            if not isinstance(change, Put | Remove):
                ok = self._flush(run) and ok
                run = []
                self._write_rules(change)
                continue
            if run and (run[0].map != change.map or type(run[0]) is not type(change)):
                ok = self._flush(run) and ok
                run = []
            run.append(change)
        return self._flush(run) and ok

    def _write_rules(self, change: HttpRulesets | NameRules | NamesMoved) -> None:
        if isinstance(change, HttpRulesets):
            if self._write_rulesets is not None:
                self._write_rulesets(change)
        elif self._write_names is not None:
            self._write_names(change)

    def _flush(self, run: list[Put | Remove]) -> bool:
        if not run:
            return True
        reconciler = self.reconcilers[run[0].map]
        puts = {change.key: change.value for change in run if isinstance(change, Put)}
        return reconciler.apply(puts, [change.key for change in run if isinstance(change, Remove)])

    def resync(
        self,
        desired: Mapping[MapName, Mapping[bytes, bytes]],
        rulesets: HttpRulesets | None = None,
        names: NameRules | None = None,
    ) -> dict[MapName, tuple[int, int]]:
        """Make all maps equal to what should be: after a restart, or when in doubt. Returns what was written and
        removed per map."""
        for rules in (rulesets, names):
            if rules is not None:
                self._write_rules(rules)
        # Services go on all the time: what frontends refer to is written before them, and removed after them.
        found = {name: self.reconcilers[name].compare(desired.get(name, {})) for name in SERVICE_MAPS}
        for name, (puts, _) in found.items():
            self.reconcilers[name].apply(puts)
        done = {name: self.reconcilers[name].prune(desired.get(name, {})) for name in RESYNC_ORDER}
        for name, (_, removals) in reversed(found.items()):
            self.reconcilers[name].apply({}, removals)
        if names is not None:
            self._write_rules(NamesMoved(names))
        return done | {name: (len(puts), len(removals)) for name, (puts, removals) in found.items()}

    def retry(self) -> bool:
        """Try again what failed; True when nothing is pending."""
        for reconciler in self.reconcilers.values():
            reconciler.retry()
        return self.pending == 0

    @property
    def pending(self) -> int:
        """Entries that the kernel has not taken yet."""
        return sum(len(reconciler.pending) for reconciler in self.reconcilers.values())

    @property
    def errors(self) -> dict[str, tuple[int, str]]:
        """Map -> (failed calls, the last message), where there were any."""
        return {name: (r.errors, r.last_error) for name, r in self.reconcilers.items() if r.errors}
