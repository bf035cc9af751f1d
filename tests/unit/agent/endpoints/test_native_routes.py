"""Which routes native routing wants, by state: nodes, their pod ranges, the address table."""

from __future__ import annotations

import ipaddress

import pytest

from services.agent.endpoints.native_routes import NativeRoutes
from services.agent.endpoints.routes import Route, RouteTable
from services.model.identity import NumericIdentity
from services.model.objects import (
    Deleted,
    IpDeleted,
    IpEntry,
    IpUpserted,
    KubeNode,
    ObjectKey,
    Update,
    Upserted,
)

UPLINK = 3
FOUR, SIX = ipaddress.ip_address("172.30.0.1"), ipaddress.ip_address("fd00:172:30::1")


def node(name: str, *addresses: str, ranges: tuple[str, ...] = ()) -> Update:
    return Upserted(
        KubeNode(
            name,
            addresses=tuple(ipaddress.ip_address(a) for a in addresses),
            pod_ranges=tuple(ipaddress.ip_network(r) for r in ranges),
        )
    )


def gone(name: str) -> Update:
    return Deleted(ObjectKey("Node", "", name))


def row(prefix: str, node: str, tunnel: str = "172.30.0.2", pod: str = "p") -> Update:
    return IpUpserted(
        IpEntry(ipaddress.ip_network(prefix), NumericIdentity(300), node, ipaddress.ip_address(tunnel), "default", pod)
    )


def lost(prefix: str) -> Update:
    return IpDeleted(ipaddress.ip_network(prefix))


def routes(*updates: Update, direct: bool = True) -> tuple[dict[str, str], NativeRoutes]:
    """Remote range -> next hop, after these updates."""
    table = RouteTable()
    own = [ipaddress.ip_network("10.244.1.0/24"), ipaddress.ip_network("fd00:10:244:1::/64")]
    native = NativeRoutes(table, "node1", UPLINK, [FOUR, SIX], own, direct=direct)
    for update in updates:
        native.observe(update)
    found = {}
    for prefix, route in table.desired.items():
        if prefix in own:
            assert route == Route()  # nowhere but in the pods that are here
            continue
        assert route.oif == UPLINK
        assert route.source == (FOUR if prefix.version == 4 else SIX)
        found[str(prefix)] = str(route.via)
    return found, native


NODE2 = node("node2", "172.30.0.2", "fd00:172:30::2", ranges=("10.244.2.0/24", "fd00:10:244:2::/64"))
BOTH = {"10.244.2.0/24": "172.30.0.2", "fd00:10:244:2::/64": "fd00:172:30::2"}


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        pytest.param([], {}, id="nobody"),
        pytest.param([NODE2], BOTH, id="a node and its ranges"),
        pytest.param([NODE2, NODE2], BOTH, id="told twice"),
        pytest.param([NODE2, gone("node2")], {}, id="a node is gone"),
        pytest.param([NODE2, row("10.244.2.7/32", "node2"), lost("10.244.2.7/32")], BOTH, id="pods change nothing"),
        pytest.param(
            [row("10.244.2.7/32", "node2")], {"10.244.2.7/32": "172.30.0.2"}, id="a pod without a Node object"
        ),
        pytest.param([row("10.244.2.7/32", "node2"), NODE2], BOTH, id="the range replaces the pods' own routes"),
        pytest.param(
            [NODE2, row("10.244.2.7/32", "node2"), gone("node2")],
            {"10.244.2.7/32": "172.30.0.2"},
            id="pods that are still in the table keep theirs",
        ),
        pytest.param([row("10.244.2.7/32", "node2"), lost("10.244.2.7/32")], {}, id="and lose it with their row"),
        pytest.param(
            [NODE2, row("10.99.0.1/32", "node2")], BOTH | {"10.99.0.1/32": "172.30.0.2"}, id="outside of ranges"
        ),
        pytest.param(
            [row("fd00:9::1/128", "node2"), row("fd00:172:30::2/128", "node2", pod="")],
            {"fd00:9::1/128": "fd00:172:30::2"},
            id="an address of the other family from the node's own rows",
        ),
        pytest.param([row("fd00:9::1/128", "node2")], {}, id="no address of that family: no route"),
        pytest.param(
            [NODE2, node("node2", "172.30.0.9", ranges=("10.244.2.0/24",))], {"10.244.2.0/24": "172.30.0.9"}, id="moved"
        ),
        pytest.param([node("node1", "172.30.0.1", ranges=("10.244.1.0/24",))], {}, id="this node"),
        pytest.param([row("10.244.1.7/32", "node1")], {}, id="this node's pods"),
    ],
)
def test_states(updates: list[Update], expected: dict[str, str]) -> None:
    assert routes(*updates)[0] == expected


def test_the_network_routes_unless_asked() -> None:
    assert routes(NODE2, row("10.99.0.1/32", "node2"), direct=False)[0] == {}


@pytest.mark.parametrize(
    ("ranges", "problem"),
    [
        (("0.0.0.0/0",), "172.30.0.1 in it"),
        (("172.30.0.2/31",), "172.30.0.2 in it"),
        (("10.244.0.0/16",), "overlaps this node's own"),
    ],
)
def test_ranges_that_would_cut_off_nodes_are_refused(ranges: tuple[str, ...], problem: str) -> None:
    found, native = routes(node("node2", "172.30.0.2", ranges=ranges))
    assert found == {}
    assert problem in native.errors["node node2"]
    native.observe(NODE2)
    assert native.errors == {}
