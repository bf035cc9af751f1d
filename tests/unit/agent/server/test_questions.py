"""Questions to policy through the introspection API's messages: who is meant, what is answered, what is refused."""

from __future__ import annotations

import ipaddress
import json
from types import SimpleNamespace
from typing import Any

import pytest

from services.agent.calc.endpoints import Audit
from services.agent.calc.engine import Engine
from services.agent.server import questions
from services.common.errors import Invalid, NotFound
from services.common.pb.agent.v1 import agent_pb2 as pb
from services.model.identity import Identity, NumericIdentity
from services.model.labels import pod_identity_labels
from services.model.objects import (
    ContainerPort,
    Deleted,
    IdentityUpserted,
    IpEntry,
    IpUpserted,
    KubeNode,
    ObjectKey,
    Pod,
    PolicyObject,
    Upserted,
)
from services.policy.verdict import Mode

WEB, CLIENT = NumericIdentity(300), NumericIdentity(301)
PODS = (("web-1", WEB, "10.0.0.1"), ("web-2", WEB, "10.0.1.1"), ("client", CLIENT, "10.0.0.9"))


def document(ingress: list[Any], name: str = "p") -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": ingress},
    }


FROM_CLIENT = [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": "http"}]}]


@pytest.fixture
def knowledge() -> Any:
    """Two replicas and a client; clients may use the port called http."""
    engine = Engine("node1", sources=())
    entries = {}
    pods = []
    for name, number, text in PODS:
        app = name.split("-")[0]
        labels = pod_identity_labels({"app": app}, "default", {})
        engine.apply(IdentityUpserted(Identity(number, labels)))
        entry = IpEntry(ipaddress.ip_network(text), number, "node2", None, "default", name)
        entries[entry.prefix] = entry
        engine.apply(IpUpserted(entry))
        ports = (ContainerPort("http", 8080, 6),) if app == "web" else ()
        pods.append(Pod("default", name, ports=ports, workload=("Deployment", app)))
        engine.apply(Upserted(pods[-1]))
    engine.apply(Upserted(PolicyObject(ObjectKey("NetworkPolicy", "default", "p"), document(FROM_CLIENT))))
    engine.flush()
    return SimpleNamespace(
        engine=engine,
        identities=SimpleNamespace(entries=entries),
        manager=SimpleNamespace(endpoints={}),
        pods=SimpleNamespace(all=lambda: pods),
    )


def asked(source: str, destination: str, port: int = 8080) -> pb.Connection:
    return pb.Connection(source=pb.Peer(name=source), destination=pb.Peer(name=destination), protocol=6, port=port)


@pytest.mark.parametrize("source", ["client", "default/client", "10.0.0.9"])
@pytest.mark.parametrize("destination", ["web-1", "web", "10.0.1.1"])
def test_pods_workloads_and_addresses(knowledge: Any, source: str, destination: str) -> None:
    found = questions.explain(knowledge, asked(source, destination))
    assert found.passes
    assert found.source == "default/client"
    assert found.destination.startswith("default/web-")
    assert [each.direction for each in found.directions] == ["egress", "ingress"]
    assert [list(rule.failed) for rule in found.directions[1].considered] == [[]]


@pytest.mark.parametrize("source", ["world", "8.8.8.8", "2001:db8::1", "remote-node", "web-2"])
def test_others_are_dropped_and_told_the_nearest_rule(knowledge: Any, source: str) -> None:
    found = questions.explain(knowledge, asked(source, "web-1"))
    assert not found.passes
    ingress = found.directions[1]
    assert found.source == ("default/web-2" if source == "web-2" else source)
    assert (ingress.answer.fate, list(ingress.nearest.failed)) == ("dropped by default", ["peer"])
    assert (ingress.nearest.rule.name, ingress.nearest.rule.path) == ("p", "spec.ingress[0]")
    assert [rule.name for rule in ingress.isolating] == ["p"]
    assert found.directions[0].has_policy == (source == "web-2")


@pytest.mark.parametrize(
    ("source", "identity"),
    [("world", 2), ("world-ipv4", 9), ("world-ipv6", 10), ("8.8.8.8", 9), ("2001:db8::1", 10), ("remote-node", 6)],
)
def test_the_outside_has_the_numbers_that_flows_show(knowledge: Any, source: str, identity: int) -> None:
    assert questions.explain(knowledge, asked(source, "web-1")).source_identity == identity
    knowledge.engine._ipcache.set_prefix(ipaddress.ip_network("8.8.0.0/16"), 1 << 24)
    known = questions.explain(knowledge, asked("8.8.8.8", "web-1"))
    assert known.source_identity == 1 << 24, "a prefix that a policy names"


def test_the_node_reaches_its_pods(knowledge: Any) -> None:
    assert questions.explain(knowledge, asked("host", "web-1", 1)).passes


@pytest.mark.parametrize(
    ("connection", "error", "words"),
    [
        (asked("nobody", "web"), NotFound, "source: 'nobody'"),
        (asked("client", "other/web"), NotFound, "destination: 'other/web'"),
        (asked("client", "web", 70000), Invalid, "port: 70000"),
        (pb.Connection(source=pb.Peer(identity=999, labels=["a b"])), Invalid, "source.labels"),
        (pb.Connection(source=pb.Peer(address="x")), Invalid, "source: 'x' is no address"),
    ],
)
def test_what_is_nobody(knowledge: Any, connection: pb.Connection, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        questions.explain(knowledge, connection)


def simulated(knowledge: Any, **fields: Any) -> pb.SimulatePolicyResponse:
    return questions.Replay(knowledge, pb.SimulatePolicyRequest(**fields)).run()


def test_a_simulation_changes_nothing(knowledge: Any) -> None:
    before = knowledge.engine.policies()
    flow = pb.RecordedFlow(connection=asked("client", "web-1"), direction="ingress", forwarded=True)
    same = pb.RecordedFlow(connection=asked("web-2", "web-1"), direction="ingress", forwarded=False)
    found = simulated(knowledge, documents=[json.dumps(document([]))], flows=[same, flow])
    assert [(list(flip.source), flip.ports) for flip in found.flips] == [(["default/client"], "8080/TCP")]
    assert [each.flow for each in found.flows] == [1]
    assert found.complete
    assert knowledge.engine.policies() == before
    assert not knowledge.engine.flush()
    gone = simulated(knowledge, deletions=["NetworkPolicy default/p"])
    assert any("world (IPv4)" in flip.source for flip in gone.flips)


def test_a_block_that_cuts_through_replicas_tells_them_apart(knowledge: Any) -> None:
    block = [{"from": [{"ipBlock": {"cidr": "10.0.1.0/24"}}]}, *FROM_CLIENT]
    found = simulated(knowledge, documents=[json.dumps(document(block))])
    pods = {tuple(flip.source) for flip in found.flips if not flip.source[0][0].isdigit()}
    assert pods == {("default/web-2",)}
    assert {tuple(flip.source) for flip in found.flips} - pods == {("10.0.1.0/24",)}


def test_a_pod_of_both_families_is_met_by_the_address_that_was_asked(knowledge: Any) -> None:
    entry = IpEntry(ipaddress.ip_network("fd00::9/128"), CLIENT, "node2", None, "default", "client")
    knowledge.identities.entries[entry.prefix] = entry
    knowledge.engine.apply(IpUpserted(entry))
    block = document([{"from": [{"ipBlock": {"cidr": "10.0.0.0/24"}}]}])
    knowledge.engine.apply(Upserted(PolicyObject(ObjectKey("NetworkPolicy", "default", "p"), block)))
    knowledge.engine.flush()
    passes = {
        who: questions.explain(knowledge, asked(who, "web-1")).passes for who in ("client", "10.0.0.9", "fd00::9")
    }
    assert passes == {"client": True, "10.0.0.9": True, "fd00::9": False}


def test_an_answer_fits_a_message(knowledge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    all_of_them = simulated(knowledge, deletions=["NetworkPolicy default/p"])
    monkeypatch.setattr(questions, "FLIP_BYTES", 200)
    found = simulated(knowledge, deletions=["NetworkPolicy default/p"])
    assert not found.complete
    assert 0 < len(found.flips) < len(all_of_them.flips)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"documents": ["{"]}, Invalid, r"documents\[0\]"),
        ({"documents": ["[]"]}, Invalid, r"documents\[0\]"),
        ({"documents": [json.dumps(document([{"form": []}]))]}, Invalid, "did you mean 'from'"),
        ({"deletions": ["NetworkPolicy default/q"]}, NotFound, "there are: NetworkPolicy default/p"),
        ({"documents": ["{}"] * 1001}, Invalid, "too many"),
    ],
)
def test_what_cannot_be_simulated(knowledge: Any, fields: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        simulated(knowledge, **fields)


def test_recorded_sides_whose_identity_is_gone_are_known_by_their_labels(knowledge: Any) -> None:
    labels = ["k8s:app=client", "k8s:io.kubernetes.pod.namespace=default", "k8s:io.cilium.k8s.policy.cluster=default"]
    gone = pb.Peer(identity=5000, labels=labels, pod="default/client-old", address="10.0.0.77")
    connection = pb.Connection(source=gone, destination=pb.Peer(name="web-1"), protocol=6, port=8080)
    assert questions.explain(knowledge, connection).passes


HOST_POLICY = {
    "apiVersion": "cilium.io/v2",
    "kind": "CiliumClusterwideNetworkPolicy",
    "metadata": {"name": "nodes"},
    "spec": {
        "nodeSelector": {"matchLabels": {"zone": "a"}},
        "ingress": [{"fromEntities": ["cluster"]}, {"toPorts": [{"ports": [{"port": "22", "protocol": "TCP"}]}]}],
    },
}


@pytest.fixture
def nodes(knowledge: Any) -> Any:
    """This node and another one of the zone, and one elsewhere."""
    for name, zone, address in (
        ("node1", "a", "192.168.0.1"),
        ("node2", "a", "192.168.0.2"),
        ("node3", "b", "fd99::3"),
    ):
        knowledge.engine.apply(Upserted(KubeNode(name, {"zone": zone})))
        entry = IpEntry(ipaddress.ip_network(address), NumericIdentity(6), name)
        knowledge.identities.entries[entry.prefix] = entry
    return knowledge


def applied(knowledge: Any, *documents: dict[str, Any]) -> Any:
    for each in documents:
        metadata = each["metadata"]
        namespace = "" if each["kind"] == "CiliumClusterwideNetworkPolicy" else metadata.get("namespace", "default")
        key = ObjectKey(each["kind"], namespace, metadata["name"])
        knowledge.engine.apply(Upserted(PolicyObject(key, each)))
    knowledge.engine.flush()
    return knowledge


@pytest.mark.parametrize(
    ("node", "policed", "name"),
    [
        ("host", True, "host"),
        ("node1", True, "host"),
        ("192.168.0.1", True, "host"),
        ("node2", True, "node node2"),
        ("192.168.0.2", True, "node node2"),
        ("node3", False, "node node3"),
        ("fd99::3", False, "node node3"),
    ],
)
def test_nodes_are_asked_like_pods(nodes: Any, node: str, policed: bool, name: str) -> None:
    applied(nodes, HOST_POLICY)
    found = questions.explain(nodes, asked("8.8.8.8", node, 80))
    assert (found.destination, found.passes) == (name, not policed)
    ingress = found.directions[1]
    assert ingress.has_policy
    assert [rule.name for rule in ingress.isolating] == (["nodes"] if policed else [])
    assert len(ingress.considered) == (2 if policed else 0)
    assert questions.explain(nodes, asked("8.8.8.8", node, 22)).passes
    assert questions.explain(nodes, asked("client", node, 80)).passes
    assert questions.explain(nodes, asked("host", "web-1", 80)).passes


def test_a_simulation_names_nodes_that_are_alike_together(nodes: Any) -> None:
    found = simulated(nodes, documents=[json.dumps(HOST_POLICY)])
    closed = {tuple(flip.destination) for flip in found.flips if flip.source[0] == "world (IPv4)"}
    assert closed == {("host",), ("node node2",)}
    assert all(not flip.after.passes for flip in found.flips)
    applied(nodes, HOST_POLICY)
    gone = simulated(nodes, deletions=["CiliumClusterwideNetworkPolicy nodes"])
    assert {tuple(flip.destination) for flip in gone.flips} == closed


def mode(name: str, mode: str) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"fromEndpoints": [{}], "authentication": {"mode": mode}}],
        },
    }


def test_what_conflicts_is_said_to_be_closed_by_it(knowledge: Any) -> None:
    both = mode("one", "required"), mode("two", "disabled")
    found = simulated(knowledge, documents=[json.dumps(each) for each in both])
    assert {flip.after.fate.partition(":")[0] for flip in found.flips} == {"rules conflict"}
    applied(knowledge, *both)
    answer = questions.explain(knowledge, asked("client", "web-1"))
    ingress, egress = answer.directions[1], answer.directions[0]
    assert not answer.passes
    reason = "authentication is both disabled and required"
    assert list(ingress.conflicts) == [
        "CiliumNetworkPolicy default/one spec.ingress[0] and CiliumNetworkPolicy default/two spec.ingress[0]: " + reason
    ]
    assert list(ingress.answer.requests) == list(ingress.conflicts)
    assert not ingress.HasField("nearest")
    assert not egress.conflicts
    # The whole subject is not computed: its other direction, too.
    assert questions.explain(knowledge, asked("web-1", "client")).directions[0].conflicts


def test_modes_and_audit_are_mentioned() -> None:
    engine = Engine("node1", sources=(), mode=Mode.ALWAYS, audit=Audit(namespaces=frozenset({"default"})))
    asking = SimpleNamespace(
        engine=engine,
        identities=SimpleNamespace(entries={}),
        manager=SimpleNamespace(endpoints={}),
        pods=SimpleNamespace(all=list),
    )
    entry = IpEntry(ipaddress.ip_network("10.0.0.1"), WEB, "node2", None, "default", "web")
    asking.identities.entries[entry.prefix] = entry
    engine.apply(IdentityUpserted(Identity(WEB, pod_identity_labels({"app": "web"}, "default", {}))))
    engine.apply(IpUpserted(entry))
    engine.flush()
    found = questions.explain(asking, asked("world", "web"))
    assert found.enforcement == "always"
    assert [each.audited for each in found.directions] == [False, True]
    simulation = simulated(asking, documents=[json.dumps(document([]))])
    assert (simulation.enforcement, simulation.audit) == ("always", "namespaces default")


def test_a_pod_whose_families_a_block_tells_apart_is_looked_at_by_each(knowledge: Any) -> None:
    entry = IpEntry(ipaddress.ip_network("fd00::9/128"), CLIENT, "node2", None, "default", "client")
    knowledge.identities.entries[entry.prefix] = entry
    knowledge.engine.apply(IpUpserted(entry))
    knowledge.engine.flush()
    block = document([{"from": [{"ipBlock": {"cidr": "10.0.0.0/24"}}], "ports": [{"port": 9}]}, *FROM_CLIENT])
    found = simulated(knowledge, documents=[json.dumps(block)])
    flips = {(tuple(flip.source), flip.ports) for flip in found.flips if flip.source[0].startswith("default/client")}
    assert flips == {(("default/client (IPv4)",), "9/TCP")}
    worlds = {(flip.source[0], tuple(flip.destination)) for flip in found.flips if flip.source[0].startswith("world")}
    assert not worlds
    # By the other family alone.
    sixth = document([{"from": [{"ipBlock": {"cidr": "fd00::/64"}}], "ports": [{"port": 9}]}, *FROM_CLIENT])
    found = simulated(knowledge, documents=[json.dumps(sixth)])
    assert {tuple(flip.source) for flip in found.flips} == {("default/client (IPv6)",), ("fd00::/64",)}


def test_a_group_of_prefixes_is_simulated_like_a_policy(knowledge: Any) -> None:
    group = {"apiVersion": "cilium.io/v2", "kind": "CiliumCIDRGroup", "metadata": {"name": "g"}}
    policy = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "g"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"fromCIDRSet": [{"cidrGroupRef": "g"}]}],
        },
    }
    applied(knowledge, policy)
    filled = {**group, "spec": {"externalCIDRs": ["203.0.113.0/24"]}}
    found = simulated(knowledge, documents=[json.dumps(filled)])
    assert {tuple(flip.source) for flip in found.flips} == {("203.0.113.0/24",)}
    assert all(flip.after.passes for flip in found.flips)
    knowledge.engine.apply(Upserted(PolicyObject(ObjectKey("CiliumCIDRGroup", "", "g"), filled)))
    knowledge.engine.flush()
    assert questions.explain(knowledge, asked("203.0.113.9", "web-1")).passes
    gone = simulated(knowledge, deletions=["CiliumCIDRGroup g"])
    assert {tuple(flip.source) for flip in gone.flips} == {("203.0.113.0/24",)}


def test_requests_are_judged_with_host_and_headers(knowledge: Any) -> None:
    http = {"method": "PUT", "host": "web[.]example", "headers": ["X-Role: admin"]}
    ports = [{"ports": [{"port": "8080", "protocol": "TCP"}], "rules": {"http": [http]}}]
    spec = {"endpointSelector": {}, "ingress": [{"fromEndpoints": [{}], "toPorts": ports}]}
    engine = knowledge.engine
    engine.apply(Deleted(ObjectKey("NetworkPolicy", "default", "p")))
    engine.apply(Upserted(PolicyObject(ObjectKey("CiliumNetworkPolicy", "default", "roles"), {"spec": spec})))
    engine.flush()

    def passes(method: str, host: str, *headers: str) -> bool:
        connection = asked("client", "web-1")
        connection.http_method, connection.http_path, connection.http_host = method, "/x", host
        connection.http_headers.extend(headers)
        return questions.explain(knowledge, connection).passes

    assert passes("PUT", "web.example", "x-role: admin")
    assert not passes("PUT", "web.example")
    assert not passes("PUT", "web.example", "X-Role: guest")
    assert not passes("PUT", "web.example", "X-Role: admin", "X-Role: admin")
    assert not passes("PUT", "other", "X-Role: admin")
    assert not passes("GET", "web.example", "X-Role: admin")
    with pytest.raises(Invalid, match=r"http_headers\[0\].*'Name: value'"):
        passes("PUT", "web.example", "nonsense")
