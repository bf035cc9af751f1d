"""The API server by its name: on a node, on this node, outside of the cluster, moving, and gone."""

from __future__ import annotations

import ipaddress

from services.agent.calc.engine import Engine
from services.model.identity import NumericIdentity, Reserved
from services.model.objects import Deleted, EndpointSlice, IpDeleted, IpEntry, IpUpserted, ObjectKey, Upserted
from services.model.services import SliceEndpoint

KEY = ObjectKey("EndpointSlice", "default", "kubernetes")


def engine() -> Engine:
    return Engine("n1", sources=())


def at(*addresses: str, service: str = "kubernetes", name: str = "kubernetes") -> Upserted:
    endpoints = tuple(SliceEndpoint((ipaddress.ip_address(address),)) for address in addresses)
    return Upserted(EndpointSlice("default", name, service, (("https", 6443, 6),), endpoints, 4))


def node(address: str, name: str, identity: int = Reserved.REMOTE_NODE) -> IpUpserted:
    return IpUpserted(IpEntry(ipaddress.ip_network(address), NumericIdentity(identity), name))


def called(engine: Engine) -> dict[str, list[str]]:
    """Addresses of identities that have the label -> those identities' other labels."""
    engine.flush()
    found = {}
    for number, party in engine.parties().items():
        labels = engine._identities.labels(number)
        assert labels is not None
        if "reserved:kube-apiserver" in labels.texts():
            prefixes = [str(p) for p, row in engine._ipcache._rows.items() if row.identity == number]
            prefixes += [str(p) for p, local in engine._ipcache._local.items() if local == number]
            if prefixes:
                others = [text for text in labels.texts() if text != "reserved:kube-apiserver"]
                found[",".join(sorted(prefixes))] = others
        del party
    return found


def test_on_a_node_it_is_a_remote_node_as_well() -> None:
    one = engine()
    one.apply(node("10.1.0.1/32", "control"))
    one.apply(node("10.1.0.2/32", "worker"))
    one.apply(at("10.1.0.1"))
    assert called(one) == {"10.1.0.1/32": ["reserved:remote-node"]}
    two = engine()
    for update in (at("10.1.0.1"), node("10.1.0.1/32", "control")):
        two.apply(update)
    assert called(two) == {"10.1.0.1/32": ["reserved:remote-node"]}, "in whatever order it is told"


def test_outside_of_the_cluster_it_is_world_as_well() -> None:
    one = engine()
    one.apply(at("203.0.113.7"))
    assert called(one) == {"203.0.113.7/32": ["cidr:203.0.113.7/32", "reserved:world-ipv4"]}
    one.apply(at("203.0.113.8"))
    assert list(called(one)) == ["203.0.113.8/32"]
    one.apply(Deleted(KEY))
    assert called(one) == {}


def test_on_this_node_the_host_has_the_label_besides() -> None:
    one = engine()
    one.apply(node("10.1.0.1/32", "n1", Reserved.HOST))
    one.apply(at("10.1.0.1"))
    assert called(one) == {"10.1.0.1/32": ["reserved:host"]}
    one.apply(at("10.1.0.9"))
    assert list(called(one)) == ["10.1.0.9/32"]


def test_a_node_that_joins_or_leaves_under_its_address() -> None:
    one = engine()
    one.apply(at("10.1.0.1"))
    one.apply(node("10.1.0.1/32", "control"))
    assert called(one) == {"10.1.0.1/32": ["reserved:remote-node"]}
    one.apply(IpDeleted(ipaddress.ip_network("10.1.0.1/32")))
    assert called(one) == {"10.1.0.1/32": ["cidr:10.1.0.1/32", "reserved:world-ipv4"]}


def test_several_slices_and_those_of_other_services() -> None:
    one = engine()
    one.apply(at("203.0.113.7"))
    one.apply(at("203.0.113.8", name="kubernetes-2"))
    one.apply(at("203.0.113.9", service="web", name="web"))
    assert sorted(called(one)) == ["203.0.113.7/32", "203.0.113.8/32"]
    one.apply(at("203.0.113.8", name="kubernetes-2", service="web"))
    assert sorted(called(one)) == ["203.0.113.7/32"]


def test_a_row_of_a_node_is_as_it_was_when_the_api_server_moves_away() -> None:
    one = engine()
    one.apply(node("10.1.0.1/32", "control"))
    one.apply(at("10.1.0.1"))
    one.apply(at("10.1.0.2"))
    one.flush()
    row = one._ipcache.row(ipaddress.ip_network("10.1.0.1/32"))
    assert row is not None
    assert row.identity == Reserved.REMOTE_NODE
