"""The mirror's memory: what each event does, and what agents are told of it."""

from __future__ import annotations

from services.identity.keys import Keys
from services.identity.state import EndpointChange, IdentityChange, State
from services.identity.store import Entry, Removed

KEYS = Keys()
WEB = "k8s:app=web;"


def state_with(*entries: Entry) -> State:
    state = State(KEYS)
    for entry in entries:
        state.apply(entry)
    return state


def identity(revision: int = 1) -> Entry:
    return Entry(KEYS.identity(300), WEB.encode(), revision)


def reference(node: str, revision: int = 1) -> Entry:
    return Entry(KEYS.reference(300, node), b"", revision, 7)


def test_an_identity_is_found_both_ways_and_told_once() -> None:
    state = State(KEYS)
    assert state.apply(identity()) == IdentityChange(300, WEB)
    assert state.apply(identity(2)) is None
    assert (state.identities, state.by_labels) == ({300: WEB}, {WEB: 300})
    assert state.apply(Removed(KEYS.identity(300), 3)) == IdentityChange(300, None)
    assert (state.identities, state.by_labels) == ({}, {})
    assert state.apply(Removed(KEYS.identity(300), 4)) is None


def test_an_identity_is_unreferenced_from_its_last_reference_on() -> None:
    state = state_with(identity(1))
    assert state.unreferenced == {300: 1}
    state.apply(reference("a", 2))
    state.apply(reference("b", 3))
    assert state.unreferenced == {}
    state.apply(Removed(KEYS.reference(300, "a"), 4))
    assert (state.unreferenced, state.claims) == ({}, {"b": {300: 3}})
    state.apply(reference("b", 5))
    assert state.claims == {"b": {300: 5}}, "claimed again"
    state.apply(Removed(KEYS.reference(300, "b"), 6))
    assert (state.unreferenced, state.reference_count) == ({300: 6}, 0)
    assert state.claims == {}


def test_a_reference_that_comes_before_its_identity_counts() -> None:
    state = state_with(reference("a", 1), identity(2))
    assert (state.unreferenced, state.references) == ({}, {300: {"a"}})


def test_references_and_leases_are_not_told() -> None:
    state = state_with(identity())
    assert state.apply(reference("a", 2)) is None
    assert state.apply(Entry(KEYS.lease("a"), b"77", 3, 77)) is None
    assert state.leases == {"a": 77}
    assert state.apply(Removed(KEYS.lease("a"), 4)) is None
    assert state.leases == {}


def test_rows_are_told_when_their_content_changes() -> None:
    state, key = State(KEYS), KEYS.endpoint("10.0.0.1/32")
    assert state.apply(Entry(key, b"one", 1)) == EndpointChange("10.0.0.1/32", b"one")
    assert state.apply(Entry(key, b"one", 2)) is None
    assert state.rows["10.0.0.1/32"].mod_revision == 2
    assert state.apply(Entry(key, b"two", 3)) == EndpointChange("10.0.0.1/32", b"two")
    assert state.apply(Removed(key, 4)) == EndpointChange("10.0.0.1/32", None)
