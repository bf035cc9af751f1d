"""Reconcilers and the sink over an in-memory map: what fails is kept, what is there is compared."""

from __future__ import annotations

from services.agent.calc.maps import MAP_NAMES, Change, HttpRulesets, Put, Remove
from services.agent.datapath.fake_map import FakeMap
from services.agent.datapath.reconcile import MapReconciler
from services.agent.datapath.sink import DatapathSink
from services.agent.datapath.syscall import MapType


def test_prune_writes_the_difference_only() -> None:
    target = FakeMap("policy")
    target.entries = {b"same": b"1", b"changed": b"1", b"stale": b"1"}
    reconciler = MapReconciler(target)
    assert reconciler.prune({b"same": b"1", b"changed": b"2", b"new": b"1"}) == (2, 1)
    assert target.entries == {b"same": b"1", b"changed": b"2", b"new": b"1"}
    assert reconciler.prune(dict(target.entries)) == (0, 0)


def test_failures_are_kept_and_tried_again() -> None:
    target = FakeMap("policy", max_entries=2)
    reconciler = MapReconciler(target)
    assert not reconciler.apply({b"a": b"1", b"b": b"1", b"c": b"1"})
    assert reconciler.errors == 1
    assert "full" in reconciler.last_error
    assert not reconciler.retry()
    # The newest wish counts: what is deleted meanwhile is not written later.
    reconciler.apply({}, [b"a"])
    assert b"a" not in reconciler.pending
    assert reconciler.retry()
    assert target.entries == {b"b": b"1", b"c": b"1"}


def test_a_failed_removal_is_tried_again() -> None:
    target = FakeMap("policy")
    target.entries = {b"a": b"1"}
    reconciler = MapReconciler(target)
    target.broken = True
    assert not reconciler.apply({}, [b"a"])
    target.broken = False
    assert reconciler.retry()
    assert target.entries == {}


def test_zero_entries_of_arrays_are_absent() -> None:
    target = FakeMap("endpoints", kind=MapType.ARRAY)
    target.entries = {b"1": b"\0\0", b"2": b"x\0"}
    assert MapReconciler(target).read_actual() == {b"2": b"x\0"}


class Journal(FakeMap):
    """Remembers calls across maps."""

    calls: list[tuple[str, str, int]] = []

    def update_batch(self, entries: object) -> None:
        assert isinstance(entries, dict)
        self.calls.append((self.name, "put", len(entries)))
        super().update_batch(entries)

    def delete_batch(self, keys: object) -> None:
        assert isinstance(keys, list)
        self.calls.append((self.name, "remove", len(keys)))
        super().delete_batch(keys)


def test_sink_keeps_the_order_and_batches_runs() -> None:
    Journal.calls = []
    sink = DatapathSink(
        {name: Journal(name) for name in MAP_NAMES},
        lambda rules: Journal.calls.append(("http", "rules", len(rules.rulesets))),
    )
    changes: list[Change] = [
        Put("policy", b"a", b"1"),
        Put("policy", b"b", b"1"),
        HttpRulesets({}),
        Put("policy", b"c", b"1"),
        Remove("policy", b"a"),
        Put("endpoints", b"e", b"1"),
    ]
    assert sink.apply(changes)
    assert Journal.calls == [
        ("policy", "put", 2),
        ("http", "rules", 0),
        ("policy", "put", 1),
        ("policy", "remove", 1),
        ("endpoints", "put", 1),
    ]
    assert (sink.pending, sink.errors) == (0, {})


def test_resync_makes_every_map_equal() -> None:
    maps = {name: FakeMap(name) for name in MAP_NAMES}
    maps["services"].entries = {b"old": b"1"}
    sink = DatapathSink(maps)
    done = sink.resync({"policy": {b"p": b"1"}, "services": {b"new": b"1"}})
    assert done["services"] == (1, 1)
    assert maps["services"].entries == {b"new": b"1"}
    assert maps["policy"].entries == {b"p": b"1"}
