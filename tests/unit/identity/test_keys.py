"""Every key reads back as what it was built from, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.identity.keys import EndpointKey, IdentityKey, Keys, LeaseKey, ReferenceKey, label_texts
from services.model.labels import Label, Labels

KEYS = Keys("/x")
NODES = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True)


@given(st.integers(256, (1 << 24) - 1), NODES)
def test_keys_read_back(number: int, node: str) -> None:
    assert KEYS.parse(KEYS.identity(number)) == IdentityKey(number)
    assert KEYS.parse(KEYS.reference(number, node)) == ReferenceKey(number, node)
    assert KEYS.parse(KEYS.lease(node)) == LeaseKey(node)
    assert KEYS.parse(KEYS.endpoint("fd00::1/128")) == EndpointKey("fd00::1/128")


@given(st.integers(256, (1 << 24) - 1), st.integers(256, (1 << 24) - 1), NODES)
def test_a_reference_is_in_the_range_of_its_own_identity_only(number: int, other: int, node: str) -> None:
    first, end = KEYS.references(number)
    assert (first <= KEYS.reference(other, node) < end) == (number == other)


@pytest.mark.parametrize(
    "key", [b"/x/state/mark", b"/x/state/id/abc", b"/x/state/ref/00000256", b"/x/state/ref/256/", b"/x/state/new/1"]
)
def test_a_key_of_another_version_is_skipped(key: bytes) -> None:
    assert KEYS.parse(key) is None


def test_what_is_mirrored_is_one_range_and_the_value_keys_are_outside() -> None:
    first, end = KEYS.state
    inside = [KEYS.identity(300), KEYS.reference(300, "n"), KEYS.endpoint("10.0.0.1/32"), KEYS.lease("n"), KEYS.mark]
    assert all(first <= key < end for key in inside)
    assert not any(first <= key < end for key in (KEYS.labels("k8s:a=b;"), KEYS.history))


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=12)


@given(st.lists(st.tuples(TEXT, TEXT), max_size=5, unique_by=lambda pair: pair[0]))
def test_label_texts_are_what_the_labels_say(pairs: list[tuple[str, str]]) -> None:
    labels = Labels(Label("k8s", key, value) for key, value in pairs)
    assert tuple(label_texts(labels.canonical())) == labels.texts()
