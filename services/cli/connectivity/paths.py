"""Cases without policies: every way from one place to another."""

from __future__ import annotations

from collections.abc import Iterable

from services.cli.connectivity import objects
from services.cli.connectivity.ask import Http, Outcome, Ping, Resolve, Udp
from services.cli.connectivity.case import Ask, Cases, Lane, Need, Seen
from services.cli.connectivity.cluster import OUTSIDE, Pod, on_node, url

PATHS = Cases()
case = PATHS.case
FORWARDED = "FORWARDED"
BIG = 200_000
"""Bytes of an answer that takes many full packets."""
FRAGMENTED = 4_000
WHOLE = 1_300
"""Bytes of ping data that fit in one packet on every path, the overlay's included."""


def _every_protocol(lane: Lane, server: Pod) -> Iterable[Ask]:
    client = lane.client.place
    for version in lane.versions:
        address = server.address(version)
        seen = Seen(FORWARDED, pod=server.name)
        yield Ask(client, Http(url(address, objects.HTTP)), contains=f"server: {server.name}", seen=seen)
        yield Ask(client, Http(url(address, objects.HTTP)), contains=f"client: {lane.client.address(version)}")
        yield Ask(client, Udp(address, objects.UDP), contains=f"server: {server.name}")
        yield Ask(client, Ping(address))


@case("pod-to-pod/same-node")
def _same_node(lane: Lane) -> Iterable[Ask]:
    return _every_protocol(lane, lane.pods["near"])


@case("pod-to-pod/other-node", Need.TWO_NODES)
def _other_node(lane: Lane) -> Iterable[Ask]:
    return _every_protocol(lane, lane.pods["far"])


@case("pod-to-pod/closed-port")
def _closed_port(lane: Lane) -> Iterable[Ask]:
    return lane.reach(lane.client, Outcome.REFUSED, port=9)


@case("pod-to-pod/fragments")
def _fragments(lane: Lane) -> Iterable[Ask]:
    """Datagrams of several packets, of which only the first one has ports."""
    for server in lane.servers:
        for version in lane.versions:
            yield Ask(lane.client.place, Udp(server.address(version), objects.UDP, FRAGMENTED))
    for address in lane.service_addresses("echo"):
        yield Ask(lane.client.place, Udp(address, objects.UDP, FRAGMENTED))


@case("pod-to-pod/large-packets")
def _large(lane: Lane) -> Iterable[Ask]:
    """Full packets in both directions: a wrong MTU shows as answers that never come."""
    for server in lane.servers:
        for version in lane.versions:
            address = server.address(version)
            path = f"/size/{BIG}"
            yield Ask(lane.client.place, Http(url(address, objects.HTTP, path)), contains=f"GET {path}")
            yield Ask(lane.client.place, Ping(address, WHOLE, whole=True))


@case("pod-to-service/cluster-ip")
def _cluster_ip(lane: Lane) -> Iterable[Ask]:
    for address in lane.service_addresses("echo"):
        seen = Seen(FORWARDED, service="echo")
        yield Ask(lane.client.place, Http(url(address, 80)), contains="server: ", seen=seen)
        yield Ask(lane.client.place, Http(url(address, 81)), contains="server: ")
        yield Ask(lane.client.place, Udp(address, objects.UDP), contains="server: ")


@case("pod-to-service/name")
def _service_name(lane: Lane) -> Iterable[Ask]:
    for name in ("echo", f"echo.{lane.namespace}", f"echo.{lane.namespace}.svc.cluster.local"):
        yield Ask(lane.client.place, Http(f"http://{name}/"), contains="server: ")


@case("pod-to-service/headless")
def _headless(lane: Lane) -> Iterable[Ask]:
    yield Ask(lane.client.place, Http(f"http://echo-headless:{objects.HTTP}/"), contains="server: ")
    for server in lane.servers:
        yield Ask(lane.client.place, Resolve("echo-headless"), contains=server.address(lane.versions[0]))


@case("pod-to-service/session-affinity")
def _sticky(lane: Lane) -> Iterable[Ask]:
    """All go where the first one went."""
    for address in lane.service_addresses("echo-sticky"):
        for _ in range(6):
            yield Ask(lane.client.place, Http(url(address, 80)), contains="server: ", alike=f"requests to {address}")


@case("pod-to-service/without-endpoints")
def _nobody(lane: Lane) -> Iterable[Ask]:
    for address in lane.service_addresses("echo-nobody"):
        yield Ask(lane.client.place, Http(url(address, 80)), Outcome.REFUSED)


@case("pod-to-service/itself")
def _hairpin(lane: Lane) -> Iterable[Ask]:
    """A pod that is its own Service's only endpoint."""
    for address in lane.service_addresses("echo-client"):
        yield Ask(lane.pods["near"].place, Http(url(address, 80)), contains="server: near")


@case("pod-to-service/node-port")
def _node_port(lane: Lane) -> Iterable[Ask]:
    number = lane.node_port("echo")
    for node in lane.facts.nodes:
        for address in node.addresses:
            yield Ask(lane.client.place, Http(url(address, number)), contains="server: ")


@case("pod-to-service/load-balancer", Need.LOAD_BALANCER)
def _load_balancer(lane: Lane) -> Iterable[Ask]:
    for address in lane.balancer_addresses("echo"):
        yield Ask(lane.client.place, Http(url(address, 80)), contains="server: ")


@case("pod-to-node", Need.HOST_SERVER)
def _pod_to_node(lane: Lane) -> Iterable[Ask]:
    for node in lane.facts.nodes:
        for address in node.addresses:
            yield Ask(lane.client.place, Http(url(address, lane.facts.host_port)), contains=f"server: {node.name}")
            yield Ask(lane.client.place, Ping(address))


@case("node-to-pod", Need.ASK_NODES)
def _node_to_pod(lane: Lane) -> Iterable[Ask]:
    for node in lane.facts.nodes:
        for server in lane.servers:
            for version in lane.versions:
                target = Http(url(server.address(version), objects.HTTP))
                yield Ask(on_node(node.name), target, contains=f"server: {server.name}")


@case("node-to-service", Need.ASK_NODES)
def _node_to_service(lane: Lane) -> Iterable[Ask]:
    for node in lane.facts.nodes:
        for address in lane.service_addresses("echo"):
            yield Ask(on_node(node.name), Http(url(address, 80)), contains="server: ")
        yield Ask(on_node(node.name), Http(url(node.addresses[0], lane.node_port("echo"))), contains="server: ")


@case("outside-to-service/node-port", Need.ASK_OUTSIDE)
def _outside_node_port(lane: Lane) -> Iterable[Ask]:
    for node in lane.facts.nodes:
        for address in node.addresses:
            yield Ask(OUTSIDE, Http(url(address, lane.node_port("echo"))), contains="server: ")
            yield Ask(OUTSIDE, Udp(address, lane.node_port("echo", "echo")), contains="server: ")


@case("outside-to-service/load-balancer", Need.ASK_OUTSIDE, Need.LOAD_BALANCER)
def _outside_balancer(lane: Lane) -> Iterable[Ask]:
    for address in lane.balancer_addresses("echo"):
        yield Ask(OUTSIDE, Http(url(address, 80)), contains="server: ")


@case("outside-to-service/local-endpoints-only", Need.ASK_OUTSIDE, Need.WORLD)
def _outside_local(lane: Lane) -> Iterable[Ask]:
    """The client's own address arrives, and a node without an endpoint does not answer."""
    number, world = lane.node_port("echo-local"), lane.facts.world
    assert world is not None
    for node in lane.facts.nodes:
        ask = Http(url(node.addresses[0], number))
        if node.name == lane.near.name:
            yield Ask(OUTSIDE, ask, contains="server: near")
        else:
            yield Ask(OUTSIDE, ask, Outcome.UNANSWERED)


@case("pod-to-world", Need.WORLD)
def _world(lane: Lane) -> Iterable[Ask]:
    world = lane.facts.world
    assert world is not None
    for version in lane.versions:
        if address := world.address(version):
            seen = Seen(FORWARDED)
            yield Ask(lane.client.place, Http(url(address, world.port)), seen=seen)
    yield Ask(lane.client.place, Http(url(world.names[0], world.port)))


@case("names")
def _names(lane: Lane) -> Iterable[Ask]:
    for address in lane.service_addresses("echo"):
        yield Ask(lane.client.place, Resolve("echo"), contains=address)
    yield Ask(lane.client.place, Resolve(f"no-such-service.{lane.namespace}.svc.cluster.local"), Outcome.NO_NAME)
