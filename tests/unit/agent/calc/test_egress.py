"""Egress gateways by state: policies, nodes, pods and addresses in; entries of the map out."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

import pytest

from services.agent.abi.egress import SOURCE_BITS, EgressEntry, EgressFlags, EgressKey
from services.agent.calc.egress import merge
from services.agent.calc.engine import Engine
from services.agent.calc.maps import Put, Remove
from services.model.addresses import from_bytes, key_to_prefix
from services.model.identity import Identity, NumericIdentity, Reserved
from services.model.labels import Labels
from services.model.objects import (
    Deleted,
    IdentityUpserted,
    IpDeleted,
    IpEntry,
    IpUpserted,
    KubeNode,
    NodeAddresses,
    ObjectKey,
    PolicyObject,
    Update,
    Upserted,
)
from services.policy.egress_gateway import EgressGatewayPolicy, Gateway, read_egress_gateway_policy
from services.policy.selectors import Selector

KIND = "CiliumEgressGatewayPolicy"
CLIENT, OTHER = NumericIdentity(300), NumericIdentity(301)


def identity(number: NumericIdentity, app: str, namespace: str = "default") -> Update:
    texts = [f"k8s:app={app}", f"k8s:io.kubernetes.pod.namespace={namespace}"]
    return IdentityUpserted(Identity(number, Labels.parse([*texts, "k8s:io.cilium.k8s.namespace.labels.team=red"])))


def pod(address: str, node: str, number: NumericIdentity = CLIENT, name: str = "p") -> Update:
    tunnel = ipaddress.ip_address(f"172.30.0.{node[-1]}")
    return IpUpserted(IpEntry(ipaddress.ip_network(address), number, node, tunnel, "default", name))


def own(address: str, node: str) -> Update:
    tunnel = ipaddress.ip_address(f"172.30.0.{node[-1]}")
    return IpUpserted(IpEntry(ipaddress.ip_network(address), NumericIdentity(Reserved.REMOTE_NODE), node, tunnel))


def node(name: str, **labels: str) -> Update:
    return Upserted(KubeNode(name, labels, (ipaddress.ip_address(f"172.30.0.{name[-1]}"),)))


def document(name: str, destinations: list[str], **spec: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "selectors": [{"podSelector": {"matchLabels": {"app": "client"}}}],
        "destinationCIDRs": destinations,
        "egressGateway": {"nodeSelector": {"matchLabels": {"gw": "yes"}}},
    }
    return {"apiVersion": "cilium.io/v2", "kind": KIND, "metadata": {"name": name}, "spec": whole | spec}


def policy(name: str, destinations: list[str], **spec: Any) -> Update:
    return Upserted(PolicyObject(ObjectKey(KIND, "", name), document(name, destinations, **spec)))


CLUSTER: list[Update] = [
    node("node1"),
    node("node2", gw="yes"),
    node("node3", gw="yes"),
    *(own(f"172.30.0.{n}/32", f"node{n}") for n in (1, 2, 3)),
    *(own(f"fd00:172:30::{n}/128", f"node{n}") for n in (1, 2, 3)),
    identity(CLIENT, "client"),
    identity(OTHER, "other"),
    pod("10.244.3.3/32", "node3"),
    pod("10.244.3.4/32", "node3", OTHER),
]
ADDRESSES = NodeAddresses(
    {"eth0": (ipaddress.ip_address("172.30.0.2"),), "eth1": (ipaddress.ip_address("198.51.100.7"),)}, "eth0"
)


def entries(table: Mapping[bytes, bytes]) -> dict[str, str]:
    """ "pod -> destination": what becomes of it."""
    found = {}
    for raw, value in table.items():
        key, entry = EgressKey.unpack(raw), EgressEntry.unpack(value)
        gateway, address = (from_bytes(bytes(part)) if any(part) else None for part in (entry.gateway, entry.address))
        if entry.flags & EgressFlags.EXCLUDED:
            way = "normal"
        elif entry.flags & EgressFlags.HERE:
            way = f"as {address}" if address else "no address"
        else:
            way = f"to {gateway}" if gateway else "no gateway"
        prefix = key_to_prefix(key.prefixlen - SOURCE_BITS, bytes(key.destination))
        found[f"{from_bytes(bytes(key.source))} -> {prefix}"] = way
    return found


def run(name: str, *updates: Update, native: bool = False) -> dict[str, str]:
    """One flush at the end, and one after every update: the same in the end."""
    engine, stepwise = (Engine(name, sources=(), native_routing=native, uplink=4) for _ in range(2))
    written: dict[bytes, bytes] = {}
    for update in [*CLUSTER, *updates]:
        engine.apply(update)
        stepwise.apply(update)
        for change in stepwise.flush():
            if isinstance(change, Put) and change.map == "egress_gateway":
                written[change.key] = change.value
            elif isinstance(change, Remove) and change.map == "egress_gateway":
                del written[change.key]
    engine.flush()
    assert engine.desired()["egress_gateway"] == written
    return entries(written)


OWN_OF_2 = ("172.30.0.2/32", "fd00:172:30::2/128")
ONE = policy("one", ["203.0.113.0/24"])
IP = policy(
    "one",
    ["203.0.113.0/24"],
    egressGateway={"nodeSelector": {"matchLabels": {"gw": "yes"}}, "egressIP": "198.51.100.7"},
)


@pytest.mark.parametrize(
    ("where", "updates", "expected"),
    [
        pytest.param("node3", [], {}, id="no policy"),
        pytest.param("node3", [ONE], {"10.244.3.3 -> 203.0.113.0/24": "to 172.30.0.2"}, id="the first node by name"),
        pytest.param("node1", [ONE], {}, id="a node that is neither"),
        pytest.param("node2", [ONE, ADDRESSES], {"10.244.3.3 -> 203.0.113.0/24": "as 172.30.0.2"}, id="the gateway"),
        pytest.param("node2", [IP, ADDRESSES], {"10.244.3.3 -> 203.0.113.0/24": "as 198.51.100.7"}, id="its egressIP"),
        pytest.param("node2", [IP], {"10.244.3.3 -> 203.0.113.0/24": "no address"}, id="which it does not have"),
        pytest.param(
            "node2",
            [policy("one", ["203.0.113.0/24"], egressGateway={"nodeSelector": {}, "interface": "eth1"}), ADDRESSES],
            {},
            id="an empty node selector selects all: node1 is the first",
        ),
        pytest.param(
            "node3",
            [ONE, Deleted(ObjectKey("Node", "", "node2")), ADDRESSES],
            {"10.244.3.3 -> 203.0.113.0/24": "as 172.30.0.2"},
            id="the next node when one is gone",
        ),
        pytest.param(
            "node3",
            [ONE, node("node2"), node("node3")],
            {"10.244.3.3 -> 203.0.113.0/24": "no gateway"},
            id="no node is selected",
        ),
        pytest.param(
            "node3",
            [
                ONE,
                node("node3"),
                *(IpDeleted(ipaddress.ip_network(a)) for a in ("172.30.0.2/32", "fd00:172:30::2/128")),
            ],
            {"10.244.3.3 -> 203.0.113.0/24": "no gateway"},
            id="the selected node is not alive",
        ),
        pytest.param("node3", [ONE, Deleted(ObjectKey(KIND, "", "one"))], {}, id="withdrawn"),
        pytest.param("node3", [ONE, IpDeleted(ipaddress.ip_network("10.244.3.3/32"))], {}, id="pod gone"),
        pytest.param(
            "node3",
            [policy("one", ["0.0.0.0/0"], excludedCIDRs=["10.0.0.0/8"])],
            {"10.244.3.3 -> 0.0.0.0/0": "to 172.30.0.2", "10.244.3.3 -> 10.0.0.0/8": "normal"},
            id="exclusions",
        ),
        pytest.param("node3", [policy("one", ["2001:db8::/32"])], {}, id="a family that no pod has"),
        pytest.param(
            "node3",
            [policy("one", ["203.0.113.0/24"], selectors=[{"namespaceSelector": {"matchLabels": {"team": "red"}}}])],
            {
                "10.244.3.3 -> 203.0.113.0/24": "to 172.30.0.2",
                "10.244.3.4 -> 203.0.113.0/24": "to 172.30.0.2",
            },
            id="by the namespace's labels",
        ),
        pytest.param(
            "node3",
            [
                policy(
                    "one",
                    ["203.0.113.0/24"],
                    selectors=[{"podSelector": {}, "nodeSelector": {"matchLabels": {"gw": "no"}}}],
                )
            ],
            {},
            id="pods of nodes that are not selected",
        ),
    ],
)
def test_entries(where: str, updates: list[Update], expected: dict[str, str]) -> None:
    assert run(where, *updates) == expected


def test_native_routing_goes_to_the_gateway_of_the_pods_family() -> None:
    updates = [ONE, pod("fd00:3::3/128", "node3"), policy("six", ["2001:db8::/32"])]
    found = run("node3", *updates, native=True)
    assert found["10.244.3.3 -> 203.0.113.0/24"] == "to 172.30.0.2"
    assert found["fd00:3::3 -> 2001:db8::/32"] == "to fd00:172:30::2"


def made(name: str, destinations: list[str], excluded: list[str] | None = None) -> EgressGatewayPolicy:
    prefixes = [tuple(ipaddress.ip_network(text) for text in texts) for texts in (destinations, excluded or [])]
    return EgressGatewayPolicy(name, (), prefixes[0], prefixes[1], (Gateway(Selector()),))


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        ([made("a", ["10.0.0.0/8"]), made("b", ["10.1.0.0/16"])], {"10.0.0.0/8": "a", "10.1.0.0/16": "b"}),
        ([made("b", ["10.0.0.0/8"]), made("a", ["10.0.0.0/8"])], {"10.0.0.0/8": "a"}),
        ([made("a", ["10.0.0.0/8"], ["10.1.0.0/16"])], {"10.0.0.0/8": "a", "10.1.0.0/16": ""}),
        (
            [made("a", ["10.0.0.0/8"], ["10.1.0.0/16"]), made("b", ["0.0.0.0/0"])],
            {"0.0.0.0/0": "b", "10.0.0.0/8": "a", "10.1.0.0/16": "b"},
        ),
        (
            [made("a", ["10.1.0.0/16"]), made("b", ["10.0.0.0/8"], ["10.1.2.0/24"])],
            {"10.0.0.0/8": "b", "10.1.0.0/16": "a", "10.1.2.0/24": "a"},
        ),
        ([made("a", ["10.0.0.0/8"], ["10.0.0.0/8"])], {"10.0.0.0/8": ""}),
    ],
)
def test_several_policies(policies: list[EgressGatewayPolicy], expected: dict[str, str]) -> None:
    assert {str(prefix): name for prefix, name in merge(policies).items()} == expected


def test_what_is_wrong_is_told() -> None:
    engine = Engine("node2", sources=())
    for update in [*CLUSTER, IP, policy("bad", ["10.0.0.0"])]:
        engine.apply(update)
    engine.flush()
    bad, one = engine.egress_gateways()
    assert (bad.name, bad.pods) == ("bad", 0)
    assert "spec.destinationCIDRs[0]" in bad.problems[0]
    assert (one.pods, one.gateways, one.address) == (1, ("node2",), "")
    assert "does not have 198.51.100.7" in one.problems[0]
    engine.apply(ADDRESSES)
    engine.flush()
    assert [status.problems for status in engine.egress_gateways() if status.name == "one"] == [()]


def test_a_document_reads_back() -> None:
    found = read_egress_gateway_policy(PolicyObject(ObjectKey(KIND, "", "x"), document("x", ["10.0.0.0/8"])))
    assert [str(prefix) for prefix in found.destinations] == ["10.0.0.0/8"]
