"""Cases with policies: who may reach whom, told in labels, ports, prefixes, entities, nodes' and pods' ways out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.cli.connectivity import objects
from services.cli.connectivity.ask import Http, Outcome, Ping, Udp
from services.cli.connectivity.case import Ask, Cases, Lane, Need, Seen
from services.cli.connectivity.cluster import OUTSIDE, Document, on_node, url
from services.cli.connectivity.objects import cluster_policy, network_policy, policy, ports

POLICIES = Cases()
case = POLICIES.case
ECHO, CLIENT = {"app": "echo"}, {"name": "client"}
FROM_CLIENT = {"podSelector": {"matchLabels": CLIENT}}
DROPPED, FORWARDED = "DROPPED", "FORWARDED"


def _by(rule: str) -> Seen:
    return Seen(FORWARDED, rule)


def _against(rule: str = "") -> Seen:
    return Seen(DROPPED, rule)


def _only_client(lane: Lane, rule: str) -> Iterable[Ask]:
    """The client is let in because of `rule`, the stranger is not."""
    yield from lane.reach(lane.client, seen=_by(rule))
    yield from lane.reach(lane.stranger, Outcome.UNANSWERED, seen=_against())


@case(
    "network-policy/ingress-deny-all",
    applies=lambda lane: [network_policy(lane.namespace, "deny-in", ECHO, policyTypes=["Ingress"])],
)
def _deny_ingress(lane: Lane) -> Iterable[Ask]:
    yield from lane.reach(lane.client, Outcome.UNANSWERED, seen=_against())
    for server in lane.servers:
        yield Ask(lane.client.place, Udp(server.address(4), objects.UDP), Outcome.UNANSWERED)
        yield Ask(lane.client.place, Ping(server.address(4)), Outcome.UNANSWERED)


@case(
    "network-policy/ingress-from-pods",
    applies=lambda lane: [
        network_policy(lane.namespace, "in", ECHO, policyTypes=["Ingress"], ingress=[{"from": [FROM_CLIENT]}])
    ],
)
def _ingress_pods(lane: Lane) -> Iterable[Ask]:
    return _only_client(lane, "in")


@case(
    "network-policy/egress-deny-all",
    applies=lambda lane: [network_policy(lane.namespace, "deny-out", CLIENT, policyTypes=["Egress"])],
)
def _deny_egress(lane: Lane) -> Iterable[Ask]:
    yield from lane.reach(lane.client, Outcome.UNANSWERED, seen=_against())
    yield from lane.reach(lane.stranger)


@case(
    "network-policy/named-port",
    applies=lambda lane: [
        network_policy(lane.namespace, "named", ECHO, policyTypes=["Ingress"], ingress=[{"ports": [{"port": "http"}]}])
    ],
)
def _named_port(lane: Lane) -> Iterable[Ask]:
    yield from lane.reach(lane.client, seen=_by("named"))
    yield from lane.reach(lane.client, Outcome.UNANSWERED, port=objects.ALT, seen=_against())


def _ip_block(lane: Lane) -> Sequence[Document]:
    """All of the client's prefix but the stranger."""
    blocks = [
        {"ipBlock": {"cidr": f"{world.address(4)}/32"}} for world in (lane.facts.world,) if world and world.address(4)
    ]
    return [network_policy(lane.namespace, "block", CLIENT, policyTypes=["Egress"], egress=[{"to": blocks}])]


@case("network-policy/ip-block", Need.WORLD, applies=_ip_block)
def _ip_block_asks(lane: Lane) -> Iterable[Ask]:
    world = lane.facts.world
    assert world is not None
    yield Ask(lane.client.place, Http(url(world.address(4), world.port)), seen=_by("block"))
    yield from lane.reach(lane.client, Outcome.UNANSWERED)


@case(
    "cilium-policy/ingress-from-endpoints",
    applies=lambda lane: [
        policy(lane.namespace, "in", ECHO, ingress=[{"fromEndpoints": [{"matchLabels": CLIENT}]}]),
    ],
)
def _cnp_ingress(lane: Lane) -> Iterable[Ask]:
    return _only_client(lane, "in")


@case(
    "cilium-policy/ingress-deny",
    applies=lambda lane: [
        policy(
            lane.namespace,
            "deny",
            ECHO,
            ingress=[{"fromEntities": ["all"]}],
            ingressDeny=[{"fromEndpoints": [{"matchLabels": {"name": "stranger"}}]}],
        )
    ],
)
def _cnp_deny(lane: Lane) -> Iterable[Ask]:
    yield from lane.reach(lane.client, seen=_by("deny"))
    yield from lane.reach(lane.stranger, Outcome.UNANSWERED, seen=_against("deny"))


@case(
    "cilium-policy/egress-to-endpoints",
    applies=lambda lane: [
        policy(
            lane.namespace,
            "out",
            CLIENT,
            egress=[{"toEndpoints": [{"matchLabels": ECHO}], "toPorts": ports(objects.HTTP)}],
        )
    ],
)
def _cnp_egress(lane: Lane) -> Iterable[Ask]:
    yield from lane.reach(lane.client, seen=_by("out"))
    yield from lane.reach(lane.client, Outcome.UNANSWERED, port=objects.ALT, seen=_against())
    for address in lane.service_addresses("echo"):  # the Service's port is another one: the endpoint's counts
        yield Ask(lane.client.place, Http(url(address, 80)))
        yield Ask(lane.client.place, Http(url(address, 81)), Outcome.UNANSWERED)


@case(
    "cilium-policy/port-range",
    applies=lambda lane: [
        policy(
            lane.namespace,
            "range",
            ECHO,
            ingress=[{"toPorts": [{"ports": [{"port": "8000", "endPort": 8080, "protocol": "TCP"}]}]}],
        )
    ],
)
def _range(lane: Lane) -> Iterable[Ask]:
    yield from lane.reach(lane.client, seen=_by("range"))
    yield from lane.reach(lane.client, Outcome.UNANSWERED, port=objects.ALT, seen=_against())


@case(
    "cilium-policy/icmp",
    applies=lambda lane: [
        policy(lane.namespace, "icmp", ECHO, ingress=[{"icmps": [{"fields": [{"family": "IPv4", "type": 8}]}]}])
    ],
)
def _icmp(lane: Lane) -> Iterable[Ask]:
    for server in lane.servers:
        yield Ask(lane.client.place, Ping(server.address(4)))
    yield from lane.reach(lane.client, Outcome.UNANSWERED)


@case(
    "cilium-policy/entity-cluster",
    Need.WORLD,
    applies=lambda lane: [policy(lane.namespace, "inside", CLIENT, egress=[{"toEntities": ["cluster"]}])],
)
def _entity_cluster(lane: Lane) -> Iterable[Ask]:
    world = lane.facts.world
    assert world is not None
    yield from lane.reach(lane.client, seen=_by("inside"))
    yield Ask(lane.client.place, Http(url(world.address(4), world.port)), Outcome.UNANSWERED, seen=_against())


@case(
    "cilium-policy/entity-world",
    Need.ASK_OUTSIDE,
    applies=lambda lane: [policy(lane.namespace, "world", ECHO, ingress=[{"fromEntities": ["world"]}])],
)
def _entity_world(lane: Lane) -> Iterable[Ask]:
    number = lane.node_port("echo-local")
    yield Ask(OUTSIDE, Http(url(lane.near.addresses[0], number)), contains="server: near")
    yield from lane.reach(lane.client, Outcome.UNANSWERED, seen=_against())


@case(
    "cilium-policy/entity-remote-node",
    Need.ASK_NODES,
    Need.TWO_NODES,
    applies=lambda lane: [policy(lane.namespace, "nodes", ECHO, ingress=[{"fromEntities": ["remote-node", "host"]}])],
)
def _entity_nodes(lane: Lane) -> Iterable[Ask]:
    for node in lane.facts.nodes:
        yield Ask(on_node(node.name), Http(url(lane.pods["near"].address(4), objects.HTTP)))
    yield from lane.reach(lane.client, Outcome.UNANSWERED, seen=_against())


def _cidr_group(lane: Lane) -> Sequence[Document]:
    world = lane.facts.world
    assert world is not None
    name = f"{lane.namespace}-world"
    group = objects.cluster_wide("CiliumCIDRGroup", name, {"externalCIDRs": [f"{world.address(4)}/32"]})
    return [group, policy(lane.namespace, "group", CLIENT, egress=[{"toCIDRSet": [{"cidrGroupRef": name}]}])]


@case("cilium-policy/cidr-group", Need.WORLD, applies=_cidr_group)
def _cidr_group_asks(lane: Lane) -> Iterable[Ask]:
    world = lane.facts.world
    assert world is not None
    yield Ask(lane.client.place, Http(url(world.address(4), world.port)), seen=_by("group"))
    yield from lane.reach(lane.client, Outcome.UNANSWERED, seen=_against())


def _cidr_except(lane: Lane) -> Sequence[Document]:
    world = lane.facts.world
    assert world is not None
    block = {"cidr": "0.0.0.0/0", "except": [f"{world.address(4)}/32"]}
    return [policy(lane.namespace, "most", CLIENT, egress=[{"toCIDRSet": [block]}, {"toEntities": ["cluster"]}])]


@case("cilium-policy/cidr-except", Need.WORLD, applies=_cidr_except)
def _cidr_except_asks(lane: Lane) -> Iterable[Ask]:
    world = lane.facts.world
    assert world is not None
    yield from lane.reach(lane.client)
    yield Ask(lane.client.place, Http(url(world.address(4), world.port)), Outcome.UNANSWERED, seen=_against())


@case(
    "cilium-policy/to-services",
    applies=lambda lane: [
        policy(
            lane.namespace,
            "services",
            CLIENT,
            egress=[{"toServices": [{"k8sService": {"serviceName": "echo-client", "namespace": lane.namespace}}]}],
        )
    ],
)
def _to_services(lane: Lane) -> Iterable[Ask]:
    for address in lane.service_addresses("echo-client"):
        yield Ask(lane.client.place, Http(url(address, 80)), contains="server: near")
    if "far" in lane.pods:
        far = lane.pods["far"].address(4)
        yield Ask(lane.client.place, Http(url(far, objects.HTTP)), Outcome.UNANSWERED, seen=_against())


@case(
    "clusterwide-policy/ingress",
    applies=lambda lane: [
        cluster_policy(lane.namespace, "in", ECHO, ingress=[{"fromEndpoints": [{"matchLabels": CLIENT}]}])
    ],
)
def _clusterwide(lane: Lane) -> Iterable[Ask]:
    """A selector without a namespace means every namespace here."""
    return _only_client(lane, f"{lane.namespace}-in")


def _gateway(lane: Lane) -> Sequence[Document]:
    world = lane.facts.world
    assert world is not None
    subject = {"matchLabels": {"io.kubernetes.pod.namespace": lane.namespace, **CLIENT}}
    gateway = {"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": lane.far.name}}}
    spec = {
        "selectors": [{"podSelector": subject}],
        "destinationCIDRs": [f"{world.address(4)}/32"],
        "egressGateway": gateway | {"egressIP": lane.far.address(4)},
    }
    return [objects.cluster_wide("CiliumEgressGatewayPolicy", f"{lane.namespace}-gateway", spec)]


@case("egress-gateway", Need.TWO_NODES, Need.WORLD_TELLS, applies=_gateway)
def _gateway_asks(lane: Lane) -> Iterable[Ask]:
    """Who is selected leaves with the gateway's address, others do not."""
    world = lane.facts.world
    assert world is not None
    request = Http(url(world.address(4), world.port))
    yield Ask(lane.client.place, request, contains=f"client: {lane.far.address(4)}\n")
    yield Ask(lane.stranger.place, request, lacks=f"client: {lane.far.address(4)}\n")
