"""A reader at any cursor that the journal covers ends up knowing what everybody knows."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from services.identity.journal import Journal
from services.identity.keys import Keys
from services.identity.state import (
    Change,
    EndpointChange,
    IdentityChange,
    State,
    coalesce,
    difference,
    everything,
)
from services.identity.store import Entry, Event, Removed

KEYS = Keys()

Known = dict[tuple[type, int | str], object]


def learn(known: Known, changes: Iterable[Change]) -> Known:
    """What a reader knows after being told `changes`."""
    result = dict(known)
    for change in changes:
        if change[1] is None:
            result.pop((type(change), change[0]), None)
        else:
            result[type(change), change[0]] = change[1]
    return result


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Events on a few keys, one per revision, so that keys come, change, go and come back."""
    keys = [KEYS.identity(300), KEYS.identity(301), KEYS.endpoint("10.0.0.1/32"), KEYS.endpoint("10.0.0.2/32")]
    events: list[Event] = []
    for revision in range(1, draw(st.integers(1, 30)) + 1):
        key = draw(st.sampled_from(keys))
        value = draw(st.sampled_from([None, b"k8s:a=1;", b"k8s:a=2;"]))
        events.append(Removed(key, revision) if value is None else Entry(key, value, revision))
    return events


@given(histories(), st.integers(1, 40), st.data())
def test_every_covered_cursor_ends_at_the_truth(events: list[Event], limit: int, data: st.DataObject) -> None:
    gap = data.draw(st.integers(0, len(events)), label="events missed and learnt by difference")
    start = data.draw(st.integers(0, len(events) - gap), label="first event missed")
    truth = [State(KEYS)]
    known: list[Known] = [{}]
    for event in events:
        state = State(KEYS)
        for earlier in events[: event.mod_revision]:
            state.apply(earlier)
        truth.append(state)
        known.append(learn({}, everything(state)))

    journal, state = Journal(limit), State(KEYS)
    journal.begin(0)
    for event in events[:start]:
        change = state.apply(event)
        journal.append(event.mod_revision, [(event.mod_revision, change)] if change else [])
    if gap:
        journal.jump(start + gap, difference(truth[start], truth[start + gap]))
        state = truth[start + gap]
    for event in events[start + gap :]:
        change = state.apply(event)
        journal.append(event.mod_revision, [(event.mod_revision, change)] if change else [])

    assert len(journal) <= limit + limit // 4
    for cursor in range(len(events) + 1):
        if journal.covers(cursor):
            assert learn(known[cursor], journal.since(cursor)) == known[-1]


def test_a_cursor_inside_a_gap_is_refused_but_its_edges_are_not() -> None:
    journal = Journal(10)
    journal.begin(5)
    journal.jump(9, [])
    assert [cursor for cursor in range(4, 11) if journal.covers(cursor)] == [5, 9, 10]


def test_trimming_raises_the_floor() -> None:
    journal = Journal(4)
    for revision in range(1, 7):
        journal.append(revision, [(revision, IdentityChange(300 + revision, "k8s:a;"))])
    assert (len(journal), journal.floor, journal.head) == (4, 2, 6)
    assert not journal.covers(1)
    assert [change[0] for change in journal.since(4)] == [305, 306]


def test_another_history_voids_everything() -> None:
    journal = Journal(4)
    journal.append(7, [(7, IdentityChange(300, "k8s:a;"))])
    journal.restart(3)
    assert (journal.history, journal.head, journal.floor, len(journal)) == (1, 3, 3, 0)


def test_additions_come_before_what_needs_them_and_removals_after() -> None:
    changes: list[Change] = [
        IdentityChange(300, None),
        EndpointChange("10.0.0.1/32", None),
        EndpointChange("10.0.0.2/32", b"row"),
        IdentityChange(301, "k8s:a;"),
    ]
    assert coalesce(changes) == [changes[3], changes[2], changes[1], changes[0]]


def test_only_the_latest_counts() -> None:
    assert coalesce([IdentityChange(300, "k8s:a;"), IdentityChange(300, None)]) == [IdentityChange(300, None)]
