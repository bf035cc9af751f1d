"""Hostile and mistaken input: refused with the field and the fix; roles do what they may."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import Denied, Invalid
from services.common.pb.identity.v1 import identity_pb2 as pb
from services.common.tls import PeerIdentity
from services.identity.access import require_node, require_reader
from services.identity.requests import (
    matches,
    read_endpoint,
    read_filter,
    read_labels,
    read_node,
    read_prefix,
    reserved_id,
)
from services.model.labels import Labels


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "reserved:init"),
        (["k8s:app=web"] * 257, "257 of them"),
        (["k8s:"], "key is empty"),
        (["k8s:a=b c"], "white space"),
        (["k8s:a=\x00"], "unprintable"),
        (["k8s:a=1", "k8s:a=2"], "two values"),
        (["app=web"], "no source"),
        (["any:app=web"], "no source"),
        (["cidr:10.0.0.0/8"], "node-local"),
        (["fqdn:example.com", "k8s:a=b"], "node-local"),
        (["reserved:host", "k8s:a=b"], "reserved labels stand for fixed identities"),
        (["reserved:nobody"], "reserved labels stand for fixed identities"),
        ([f"k8s:a{index}={'x' * 900}" for index in range(20)], "bytes together"),
    ],
)
def test_labels_that_make_no_identity(texts: list[str], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        read_labels(texts)


def test_labels_of_reserved_identities_have_their_numbers() -> None:
    assert reserved_id(read_labels(["reserved:host"])) == 1
    assert reserved_id(read_labels(["reserved:remote-node", "reserved:kube-apiserver"])) == 7
    assert reserved_id(read_labels(["k8s:app=web"])) is None


@given(st.lists(st.text(max_size=40), max_size=6))
def test_any_text_is_labels_or_a_refusal(texts: list[str]) -> None:
    try:
        labels = read_labels(texts)
    except Invalid:
        return
    assert Labels.from_canonical(labels.canonical()) == labels


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [([], True), (["app=web"], True), (["k8s:app=web"], True), (["cni:app=web"], False), (["any:app=db"], False)],
)
def test_filters(wanted: list[str], expected: bool) -> None:
    assert matches(read_filter(wanted), Labels.parse(["k8s:app=web", "k8s:tier=1"])) is expected


@pytest.mark.parametrize("node", ["", "-a", "a/b", "a b", "a" * 254, "n\n", "é"])
def test_nodes_that_are_none(node: str) -> None:
    with pytest.raises(Invalid, match=r"^node: "):
        read_node(node)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1", "must be one address"),
        ("10.0.0.0/24", "must be one address: write /32"),
        ("10.0.0.1/24", "not an address prefix"),
        ("0.0.0.0/0", "must be one address"),
        ("127.0.0.1/32", "cannot be a workload"),
        ("ff02::1/128", "cannot be a workload"),
        ("::ffff:10.0.0.1/128", "write 10.0.0.1/32"),
        ("web", "not an address prefix"),
    ],
)
def test_prefixes_that_are_no_address(text: str, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        read_prefix(text, "prefix")


def test_prefixes_have_one_form() -> None:
    assert read_prefix("FD00:0::1/128", "prefix") == "fd00::1/128"


def endpoint(**fields: object) -> pb.Endpoint:
    return pb.Endpoint(**({"prefix": "10.0.0.1/32", "identity": 300, "node": "a"} | fields))


def test_an_endpoint_is_kept_as_it_was_sent() -> None:
    sent = endpoint(tunnel_endpoint="192.0.2.1", key=3, namespace="default", pod="web-1")
    assert pb.Endpoint.FromString(read_endpoint(sent).value) == sent


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"identity": 0}, "endpoint.identity: 0"),
        ({"identity": 1}, "registered as 6"),
        ({"identity": 2}, "registered as 6"),
        ({"identity": 99}, "cannot be registered"),
        ({"identity": 1 << 24}, "no cluster identity"),
        ({"node": ""}, "node: empty"),
        ({"tunnel_endpoint": "node1"}, "endpoint.tunnel_endpoint"),
        ({"pod": "a\nb"}, "endpoint.pod"),
        ({"namespace": "x" * 254}, "endpoint.namespace"),
    ],
)
def test_endpoints_that_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        read_endpoint(endpoint(**fields))


def test_an_agent_acts_for_its_own_node_only() -> None:
    require_node(PeerIdentity("agent", "a"), "a")
    require_node(None, "a")
    with pytest.raises(Denied, match="of node 'b'"):
        require_node(PeerIdentity("agent", "b"), "a")
    for role in ("client", "relay", "operator", "identity"):
        with pytest.raises(Denied, match="only read"):
            require_node(PeerIdentity(role, "a"), "a")


@pytest.mark.parametrize("role", ["agent", "client", "relay", "operator"])
def test_every_role_reads(role: str) -> None:
    require_reader(PeerIdentity(role, ""))
