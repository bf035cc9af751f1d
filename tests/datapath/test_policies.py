"""From policy documents to the kernel: random policies through engine, sink and real maps, against the oracle."""

from __future__ import annotations

import dataclasses
import ipaddress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.all import ICMP, SCTP

from services.agent.abi.events import EventType
from services.agent.calc.engine import Engine
from services.agent.calc.maps import HttpRulesets
from services.agent.datapath.sink import DatapathSink
from services.model.objects import EndpointUpserted, PolicyObject, Update
from services.model.verdict import Direction, DropReason
from services.policy.peers import Party
from services.policy.read import read_policy
from services.policy.verdict import Outcome, applying, decide
from tests.datapath.node import GATEWAY_MAC, Node, Pod
from tests.datapath.packets import from_pod, tcp, to_pod, udp
from tests.property.policies import address, cluster, party, pods, policies, second, upserts
from tests.unit.agent.calc.kernel import Kernel

pytestmark = pytest.mark.root

PEERS = ("10.1.2.3", "10.1.2.4", "10.1.9.9", "10.2.0.1", "8.8.8.8", "fd00::9", "2001:db8::1")
REMOTE_PODS = tuple(
    str(each) for app in ("a", "b") for each in (address("blue", app), *second("blue", app), *second("red", app))
)
FLOWS = [(6, port) for port in (1, 2, 53, 79, 80, 81, 443, 8080, 65535)] + [
    (17, 53),
    (17, 80),
    (132, 80),
    (1, 8),
    (1, 0),
]
REASONS = {DropReason.POLICY_DENIED: Outcome.DROP, DropReason.POLICY_DENY: Outcome.DENY}


def engine_for(node: Node, documents: list[PolicyObject]) -> tuple[Engine, Pod]:
    """Engine and maps for a node that has pod red/a on its first interface."""
    pod = Pod(1, node.ifindexes[0], "10.244.1.1", "fd00:10:244:1::1", "02:00:00:00:00:01", 0, 0)
    # The peers come by the stack: with an overlay other nodes' pods would not.
    engine = Engine("node1", sources=(), native_routing=True)
    for update in cluster() + upserts(documents):
        engine.apply(placed(update, pod))
    engine.flush()
    sink = DatapathSink({name: node.map(name) for name in engine.desired()})
    sink.resync(engine.desired(), HttpRulesets(engine.rulesets()))
    assert not sink.pending, sink.errors
    return engine, pod


def placed(update: Update, pod: Pod) -> Update:
    """The first endpoint of the random cluster, on the node's first interface."""
    if not isinstance(update, EndpointUpserted) or update.endpoint.id != pod.id:
        return update
    endpoint = dataclasses.replace(
        update.endpoint,
        ifindex=pod.ifindex,
        mac=bytes.fromhex(pod.mac.replace(":", "")),
        node_mac=bytes.fromhex(GATEWAY_MAC.replace(":", "")),
        addresses=(ipaddress.ip_address(pod.ipv4), ipaddress.ip_address(pod.ipv6)),
    )
    pod.identity = endpoint.identity
    return EndpointUpserted(endpoint)


def layer(protocol: int, sport: int, port: int) -> object:
    match protocol:
        case 6:
            return tcp(sport, port)
        case 17:
            return udp(sport, port)
        case 1:
            return ICMP(type=port, id=sport)
        case _:
            return SCTP(sport=sport, dport=port)


def kernel_says(node: Node, pod: Pod, direction: Direction, peer: str, flow: tuple[int, int], serial: int) -> Outcome:
    """Run the packet that opens the connection; what the programs reported."""
    payload = layer(flow[0], 1024 + serial, flow[1])
    if direction == Direction.INGRESS:
        node.run("to_endpoint", to_pod(pod, peer, payload), pod.ifindex)
    else:
        node.run("from_endpoint", from_pod(pod, peer, payload), pod.ifindex)
    reasons = [int(event["drop_reason"]) for event in node.events() if event["type"] == EventType.DROP]
    other = [reason for reason in reasons if reason not in REASONS]
    assert not other, (direction, peer, flow, other)
    return REASONS[DropReason(reasons[0])] if reasons else Outcome.ALLOW


@settings(
    deadline=None,
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    st.lists(policies, min_size=1, max_size=4),
    st.lists(st.tuples(st.sampled_from(PEERS), st.sampled_from(FLOWS)), min_size=20, max_size=40, unique=True),
)
def test_the_kernel_says_what_the_policies_say(
    module_node: Node, documents: list[PolicyObject], questions: list[tuple[str, tuple[int, int]]]
) -> None:
    module_node.reset()
    documents = list({document.key: document for document in documents}.values())
    engine, pod = engine_for(module_node, documents)
    subject = party(pods()[0])
    accepted = sorted((read_policy(document) for document in documents), key=lambda policy: policy.key)
    specs = applying(accepted, subject)
    inbound = [(Direction.INGRESS, peer, flow) for peer, flow in questions]
    inbound += [(Direction.INGRESS, peer, flow) for peer in REMOTE_PODS for flow in FLOWS[3:8]]
    outbound = [(Direction.EGRESS, peer, flow) for peer, flow in questions]
    for serial, (direction, peer, flow) in enumerate([*inbound, *outbound]):
        if flow[0] == 1 and ":" in peer:
            continue
        wanted = decide(specs, direction, subject, party_at(engine, peer), *flow)
        got = kernel_says(module_node, pod, direction, peer, flow, serial)
        assert got is wanted.outcome, (direction, peer, flow, wanted)


def party_at(engine: Engine, peer: str) -> Party:
    """Who has an address, by the longest prefix of the address table that the engine made."""
    where = ipaddress.ip_address(peer)
    known = {address: party(pod) for pod in pods() for address in [pod[2]]}
    return known.get(where) or engine.parties()[Kernel.of(engine).identity(where)]
