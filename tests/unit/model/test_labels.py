"""Labels: reading, canonical form, the identity filter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.model.label_filter import LabelFilter
from services.model.labels import Label, LabelError, Labels, pod_identity_labels


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("k8s:app=web", Label("k8s", "app", "web")),
        ("app=web", Label("unspec", "app", "web")),
        ("reserved:host", Label("reserved", "host")),
        ("$host", Label("reserved", "host")),
        ("app=a:b", Label("unspec", "app", "a:b")),
        ("app.kubernetes.io/name=x", Label("unspec", "app.kubernetes.io/name", "x")),
        ("cidr:10.0.0.0/8", Label("cidr", "10.0.0.0/8")),
        ("foo:bar=x", Label("unspec", "foo:bar", "x")),
        ("k8s:a=b=c", Label("k8s", "a", "b=c")),
    ],
)
def test_parse(text: str, expected: Label) -> None:
    assert Label.parse(text) == expected


@pytest.mark.parametrize("text", ["", "=x", "k8s:", "k8s:=v", "a b=c", "a=\n", "x" * 2000])
def test_what_is_no_label(text: str) -> None:
    with pytest.raises(LabelError):
        Label.parse(text)


def test_two_values_for_one_key_are_refused() -> None:
    with pytest.raises(LabelError, match="two values"):
        Labels.parse(["k8s:a=1", "k8s:a=2"])
    assert len(Labels.parse(["k8s:a=1", "any:a=2", "k8s:a=1"])) == 2


keys = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":=$"), min_size=1, max_size=8)
label_sets = st.dictionaries(keys, st.text("abc;%:=", max_size=5), max_size=5).map(
    lambda found: Labels(Label("k8s", key, value) for key, value in found.items())
)


@given(label_sets, label_sets)
def test_the_canonical_form_is_the_set(one: Labels, other: Labels) -> None:
    assert Labels.from_canonical(one.canonical()) == one
    assert (one.canonical() == other.canonical()) == (one == other)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("app", True),
        ("app.kubernetes.io/name", True),
        ("io.kubernetes.pod.namespace", True),
        ("io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name", True),
        ("pod-template-hash", False),
        ("statefulset.kubernetes.io/pod-name", False),
        ("kubernetes.io/hostname", False),
        ("topology.kubernetes.io/zone", False),
        ("failure-domain.beta.kubernetes.io/zone", False),
        ("annotation.x", False),
    ],
)
def test_default_filter(key: str, expected: bool) -> None:
    assert LabelFilter().accepts(Label("k8s", key, "v")) is expected


def test_user_patterns() -> None:
    assert not LabelFilter(["!team"]).accepts(Label("k8s", "team", "x"))
    whitelist = LabelFilter(["app$"])
    assert whitelist.accepts(Label("k8s", "app", "x"))
    assert not whitelist.accepts(Label("k8s", "role", "x"))
    assert whitelist.accepts(Label("reserved", "host"))
    with pytest.raises(ValueError, match="label filter pattern"):
        LabelFilter(["("])


def test_pod_labels() -> None:
    labels = pod_identity_labels({"app": "web"}, "shop", {"kubernetes.io/metadata.name": "shop"}, "sa", "c1")
    assert labels.texts() == (
        "k8s:app=web",
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop",
        "k8s:io.cilium.k8s.policy.cluster=c1",
        "k8s:io.cilium.k8s.policy.serviceaccount=sa",
        "k8s:io.kubernetes.pod.namespace=shop",
    )
