"""What the system means, as states: what exists, and what happens to packets then.

A scenario is a list of states. Expanders turn one declared list into many ways through it; the answer to "what happens
to this packet" may never depend on the way. Read this file to learn what policy does.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from services.agent.abi.endpoints import HOST_ENDPOINT
from services.agent.sources.base import subject
from services.model.identity import Identity, NumericIdentity
from services.model.labels import pod_identity_labels
from services.model.objects import (
    ContainerPort,
    Deleted,
    EndpointDeleted,
    EndpointSlice,
    EndpointUpserted,
    IdentityDeleted,
    IdentityUpserted,
    IpDeleted,
    IpEntry,
    IpUpserted,
    KubeNode,
    LocalEndpoint,
    ObjectKey,
    Pod,
    PolicyObject,
    Service,
    ServicePort,
    SliceEndpoint,
    Update,
    Upserted,
)
from services.model.verdict import Direction, Protocol

IN, OUT = Direction.INGRESS, Direction.EGRESS
TCP, UDP, ICMP = Protocol.TCP, Protocol.UDP, Protocol.ICMP

# Who there is: three local pods, one of them without a policy ever; three remote ones; the world.
WEB, CLIENT, FRONTEND, OTHER, DB, MOVED = (NumericIdentity(number) for number in range(300, 306))
LABELS = {
    WEB: {"app": "web"},
    CLIENT: {"app": "client"},
    FRONTEND: {"role": "frontend"},
    OTHER: {"role": "other"},
    DB: {"app": "db"},
    MOVED: {"app": "web", "moved": "yes"},
}
HOST, REMOTE, WORLD = NumericIdentity(1), NumericIdentity(6), NumericIdentity(9)
NODE_ITSELF = HOST_ENDPOINT


@dataclasses.dataclass(frozen=True)
class Packet:
    """A question: the first packet of a connection as one endpoint's policy sees it. `peer`: identity or address."""

    endpoint: int
    direction: Direction
    peer: NumericIdentity | str
    protocol: int = TCP
    port: int = 80


@dataclasses.dataclass(frozen=True)
class State:
    """What exists, and what then happens to packets: 'allow', 'deny', 'drop', or 'http'."""

    updates: Mapping[Hashable, Update] = dataclasses.field(default_factory=dict)
    packets: Mapping[Packet, str] = dataclasses.field(default_factory=dict)

    def __add__(self, other: State) -> State:
        return State({**self.updates, **other.updates}, {**self.packets, **other.packets})

    def expecting(self, packets: Mapping[Packet, str]) -> State:
        return State(self.updates, {**self.packets, **packets})


def state(*updates: Update) -> State:
    return State({subject(update): update for update in updates})


def pod(number: int, identity: NumericIdentity, *ports: ContainerPort, address: str = "") -> State:
    """A local pod and its identity."""
    addresses = (ipaddress.ip_address(address or f"10.244.1.{number}"), ipaddress.ip_address(f"fd00:1::{number}"))
    endpoint = LocalEndpoint(
        number, "default", f"pod{number}", "", 10 + number, "", bytes(6), bytes(6), addresses, identity, ports
    )
    return known(identity) + state(EndpointUpserted(endpoint))


def remote(identity: NumericIdentity, address: str, name: str = "remote") -> State:
    """A pod on another node."""
    entry = IpEntry(
        ipaddress.ip_network(address), identity, "node2", ipaddress.ip_address("192.168.0.2"), "default", name
    )
    return known(identity) + state(IpUpserted(entry))


def known(identity: NumericIdentity) -> State:
    labels = pod_identity_labels(LABELS[identity], "default", {"kubernetes.io/metadata.name": "default"})
    return state(IdentityUpserted(Identity(identity, labels)))


def cnp(name: str, **spec: Any) -> State:
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"endpointSelector": {"matchLabels": {"app": "web"}}, **spec},
    }
    return state(Upserted(PolicyObject(ObjectKey("CiliumNetworkPolicy", "default", name), document)))


def knp(name: str, **spec: Any) -> State:
    document = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, **spec},
    }
    return state(Upserted(PolicyObject(ObjectKey("NetworkPolicy", "default", name), document)))


def ports(*numbers: str, protocol: str = "TCP", **more: Any) -> list[dict[str, Any]]:
    return [{"ports": [{"port": number, "protocol": protocol} for number in numbers], **more}]


def labels(**pairs: str) -> list[dict[str, Any]]:
    return [{"matchLabels": pairs}]


EMPTY = State()
NODE = (
    pod(1, WEB, ContainerPort("http", 80, TCP))
    + pod(2, CLIENT)
    + remote(FRONTEND, "10.244.2.10/32", "frontend")
    + remote(OTHER, "10.244.2.11/32", "other")
)
FROM_FRONTEND, FROM_OTHER, FROM_HOST = (Packet(1, IN, who) for who in (FRONTEND, OTHER, HOST))
OPEN = NODE.expecting({FROM_FRONTEND: "allow", FROM_OTHER: "allow", FROM_HOST: "allow", Packet(1, OUT, WORLD): "allow"})

HTTP_POLICY = cnp(
    "deny-all-ingress",
    ingress=[
        {
            "fromEndpoints": labels(role="frontend"),
            "toPorts": ports("80", rules={"http": [{"method": "GET", "path": "/api/v1/users"}]}),
        }
    ],
)
GUARDED = (NODE + HTTP_POLICY).expecting(
    {
        FROM_FRONTEND: "http",
        FROM_OTHER: "drop",
        FROM_HOST: "allow",
        Packet(1, IN, FRONTEND, TCP, 81): "drop",
        Packet(1, IN, FRONTEND, UDP, 80): "drop",
        Packet(1, IN, FRONTEND, ICMP, 8): "drop",
        Packet(1, OUT, WORLD): "allow",
        Packet(2, IN, OTHER): "allow",
    }
)
ALLOW_OTHER = cnp("allow-other", ingress=[{"fromEndpoints": labels(role="other")}])
GUARDED_BUT_OTHER = (GUARDED + ALLOW_OTHER).expecting({FROM_OTHER: "allow", Packet(1, IN, OTHER, ICMP, 8): "allow"})
PLAIN_80 = cnp("plain-80", ingress=[{"toPorts": ports("80")}])
NEUTRALISED = (GUARDED + PLAIN_80).expecting({FROM_FRONTEND: "allow", FROM_OTHER: "allow"})
DENY_OTHER = cnp("deny-other", ingressDeny=[{"fromEndpoints": labels(role="other"), "toPorts": ports("80")}])
DENIED = (NEUTRALISED + DENY_OTHER).expecting({FROM_OTHER: "deny", FROM_FRONTEND: "allow"})
DENY_ONLY = (NODE + DENY_OTHER).expecting({FROM_OTHER: "deny", FROM_FRONTEND: "drop", FROM_HOST: "allow"})
OPEN_DENY = (NODE + cnp("deny-other", enableDefaultDeny={"ingress": False}, ingressDeny=[
    {"fromEndpoints": labels(role="other"), "toPorts": ports("80")}
])).expecting({FROM_OTHER: "deny", FROM_FRONTEND: "allow", Packet(1, IN, OTHER, TCP, 81): "allow"})  # fmt: skip
NAMED = (NODE + cnp("named", ingress=[{"toPorts": ports("http")}])).expecting(
    {FROM_OTHER: "allow", Packet(1, IN, OTHER, TCP, 8080): "drop"}
)
RENUMBERED = (NAMED + pod(1, WEB, ContainerPort("http", 8080, TCP))).expecting(
    {FROM_OTHER: "drop", Packet(1, IN, OTHER, TCP, 8080): "allow"}
)
RELABELLED = (GUARDED + pod(1, MOVED, ContainerPort("http", 80, TCP))).expecting({})
CHANGED_LABELS = (GUARDED + pod(1, OTHER, ContainerPort("http", 80, TCP))).expecting(
    {FROM_FRONTEND: "allow", FROM_OTHER: "allow", Packet(1, IN, FRONTEND, TCP, 81): "allow",
     Packet(1, IN, FRONTEND, UDP, 80): "allow", Packet(1, IN, FRONTEND, ICMP, 8): "allow"}
)  # fmt: skip

EGRESS_CIDR = (
    NODE + cnp("cidr", egress=[{"toCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.96.0.0/12"]}]}])
).expecting(
    {
        Packet(1, OUT, "10.1.2.3"): "allow",
        Packet(1, OUT, "10.97.0.1"): "drop",
        Packet(1, OUT, "8.8.8.8"): "drop",
        Packet(1, OUT, "10.244.2.10"): "drop",
        Packet(1, IN, "8.8.8.8"): "allow",
    }
)
EGRESS_BLOCK = (
    NODE
    + knp(
        "block",
        policyTypes=["Egress"],
        egress=[{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.96.0.0/12"]}}]}],
    )
).expecting(
    {
        Packet(1, OUT, "10.1.2.3"): "allow",
        Packet(1, OUT, "10.97.0.1"): "drop",
        # Unlike CIDR rules of Cilium policies, an ipBlock matches pods.
        Packet(1, OUT, "10.244.2.10"): "allow",
    }
)
# Two pods with the frontend's labels, of which a block has one; one of them has its other address outside as well.
TWINS = NODE + remote(FRONTEND, "10.244.2.20/32", "frontend-2") + remote(FRONTEND, "fd00:2::20/128", "frontend-2")
FIRST, SECOND, SECOND6 = "10.244.2.10", "10.244.2.20", "fd00:2::20"
FROM_BLOCK = [{"ipBlock": {"cidr": "10.244.2.0/28"}}]
CUT = (TWINS + knp("cut", ingress=[{"from": FROM_BLOCK, "ports": [{"port": 80}]}])).expecting(
    {
        Packet(1, IN, FIRST): "allow",
        Packet(1, IN, FIRST, TCP, 81): "drop",
        Packet(1, IN, SECOND): "drop",
        Packet(1, IN, SECOND6): "drop",
        # Whom nobody has told about yet is not let in by a block that has only some.
        FROM_FRONTEND: "drop",
        Packet(2, IN, SECOND): "allow",
    }
)
CUT_BOTH = (CUT + cnp("all", ingress=[{"fromEndpoints": labels(role="frontend"), "toPorts": ports("81")}])).expecting(
    {Packet(1, IN, FIRST, TCP, 81): "allow", Packet(1, IN, SECOND, TCP, 81): "allow", FROM_FRONTEND: "drop"}
)
CUT_DENIED = (CUT_BOTH + cnp("not", ingressDeny=[{"fromEndpoints": labels(role="frontend")}])).expecting(
    {packet: "deny" for packet in CUT_BOTH.packets if packet.endpoint == 1}
)
BLOCK_ONLY_FIRST = (NODE + knp("cut", ingress=[{"from": FROM_BLOCK, "ports": [{"port": 80}]}])).expecting(
    {Packet(1, IN, FIRST): "allow", FROM_FRONTEND: "allow", Packet(1, IN, FIRST, TCP, 81): "drop"}
)
CUT_OUT = (
    TWINS
    + knp(
        "cut-out",
        policyTypes=["Egress"],
        egress=[{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": [f"{SECOND}/32"]}}]}],
    )
).expecting({Packet(1, OUT, FIRST): "allow", Packet(1, OUT, SECOND): "drop", Packet(1, OUT, SECOND6): "drop"})


def named_pod(name: str, number: int) -> State:
    """What the API says of a pod: its port `metrics`."""
    made = Pod("default", name, node="node2", ports=(ContainerPort("metrics", number, TCP),))
    return state(Upserted(made))


# Two pods with equal labels, another number behind one port's name.
NUMBERED = TWINS + named_pod("frontend", 9001) + named_pod("frontend-2", 9002)
TO_NAMED = (
    NUMBERED + cnp("to-named", egress=[{"toEndpoints": labels(role="frontend"), "toPorts": ports("metrics")}])
).expecting(
    {
        Packet(1, OUT, FIRST, TCP, 9001): "allow",
        Packet(1, OUT, FIRST, TCP, 9002): "drop",
        Packet(1, OUT, SECOND, TCP, 9001): "drop",
        Packet(1, OUT, SECOND, TCP, 9002): "allow",
        Packet(1, OUT, SECOND6, TCP, 9002): "allow",
        Packet(1, OUT, SECOND6, TCP, 9001): "drop",
    }
)
TO_ANY_NAMED = (NUMBERED + cnp("to-named", egress=[{"toPorts": ports("metrics")}])).expecting(TO_NAMED.packets)
TO_SAME = (TO_NAMED + named_pod("frontend-2", 9001)).expecting(
    {
        Packet(1, OUT, SECOND, TCP, 9001): "allow",
        Packet(1, OUT, SECOND, TCP, 9002): "drop",
        Packet(1, OUT, SECOND6, TCP, 9001): "allow",
        Packet(1, OUT, SECOND6, TCP, 9002): "drop",
    }
)
# Local twins: each takes traffic on its own containers' number.
LOCAL_TWINS = (
    NODE + pod(3, WEB, ContainerPort("http", 8080, TCP)) + cnp("named", ingress=[{"toPorts": ports("http")}])
).expecting(
    {
        Packet(1, IN, OTHER, TCP, 80): "allow",
        Packet(1, IN, OTHER, TCP, 8080): "drop",
        Packet(3, IN, OTHER, TCP, 80): "drop",
        Packet(3, IN, OTHER, TCP, 8080): "allow",
    }
)
SERVICE = state(
    Upserted(
        Service(
            "default",
            "outside",
            "ClusterIP",
            (ipaddress.ip_address("10.96.0.7"),),
            (ServicePort("p", 443, TCP, 6443),),
        )
    )
)
SLICE = state(
    Upserted(
        EndpointSlice(
            "default",
            "outside-1",
            "outside",
            (("p", 6443, TCP),),
            (SliceEndpoint((ipaddress.ip_address("172.16.0.9"),)),),
        )
    )
)
TO_SERVICE = (
    NODE + cnp("svc", egress=[{"toServices": [{"k8sService": {"serviceName": "outside"}}], "toPorts": ports("6443")}])
).expecting({Packet(1, OUT, "172.16.0.9", TCP, 6443): "drop", Packet(1, OUT, "8.8.8.8", TCP, 6443): "drop"})
TO_SERVICE_UP = (TO_SERVICE + SERVICE + SLICE).expecting(
    {Packet(1, OUT, "172.16.0.9", TCP, 6443): "allow", Packet(1, OUT, "172.16.0.9", TCP, 443): "drop"}
)
UNENFORCEABLE = (
    NODE
    + cnp(
        "kafka",
        ingress=[{"fromEndpoints": labels(role="frontend"), "toPorts": ports("80", rules={"kafka": [{"topic": "t"}]})}],
    )
).expecting({FROM_FRONTEND: "deny", FROM_OTHER: "drop"})


def ccnp(name: str, **spec: Any) -> State:
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }
    return state(Upserted(PolicyObject(ObjectKey("CiliumClusterwideNetworkPolicy", "", name), document)))


def node_object(**node_labels: str) -> State:
    return state(Upserted(KubeNode("node1", node_labels)))


# The node itself: SSH from the world, everything from the client's pods; what it opens is nobody's business.
HOST_OPEN = (NODE + node_object(zone="a")).expecting({Packet(NODE_ITSELF, IN, WORLD, TCP, 22): "allow"})
HOST_RULES: list[dict[str, Any]] = [
    {"fromEntities": ["world"], "toPorts": ports("22")},
    {"fromEndpoints": [{"matchLabels": {"app": "client"}}]},
]
HOST_CLOSED = (HOST_OPEN + ccnp("nodes", nodeSelector={"matchLabels": {"zone": "a"}}, ingress=HOST_RULES)).expecting(
    {
        Packet(NODE_ITSELF, IN, WORLD, TCP, 22): "allow",
        Packet(NODE_ITSELF, IN, WORLD, TCP, 80): "drop",
        Packet(NODE_ITSELF, IN, CLIENT, TCP, 80): "allow",
        Packet(NODE_ITSELF, IN, REMOTE, TCP, 80): "drop",
        Packet(NODE_ITSELF, OUT, WORLD, TCP, 80): "allow",
        # Pods have nothing to do with it, neither by this policy nor as the node's peers.
        FROM_OTHER: "allow",
        FROM_HOST: "allow",
    }
)
HOST_ELSEWHERE = (HOST_CLOSED + node_object(zone="b")).expecting(
    {packet: "allow" for packet in HOST_CLOSED.packets if packet.endpoint == NODE_ITSELF}
)
HOST_UNKNOWN = NODE + ccnp("nodes", nodeSelector={}, ingressDeny=[{"fromEntities": ["remote-node"]}])
HOST_DENIED = HOST_UNKNOWN.expecting(
    {
        Packet(NODE_ITSELF, IN, REMOTE, TCP, 80): "deny",
        Packet(NODE_ITSELF, IN, WORLD, TCP, 80): "drop",
        # Unlike a pod's, the node's own group has nothing that lets the host in by itself.
        Packet(NODE_ITSELF, IN, HOST, TCP, 80): "drop",
    }
)
# A rule for endpoints is none for nodes, whatever it selects.
NOT_FOR_NODES = (HOST_OPEN + ccnp("all", endpointSelector={}, ingress=[{}])).expecting(
    {Packet(NODE_ITSELF, IN, WORLD, TCP, 22): "allow", FROM_OTHER: "drop", FROM_HOST: "allow"}
)
HOST_DENIED_AT_POD = (
    NODE + cnp("not-host", ingressDeny=[{"fromEntities": ["host"], "toPorts": ports("80")}])
).expecting({FROM_HOST: "deny", Packet(1, IN, HOST, TCP, 81): "allow"})


def cidr_group(name: str, *prefixes: str, **group_labels: str) -> State:
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumCIDRGroup",
        "metadata": {"name": name, "labels": group_labels},
        "spec": {"externalCIDRs": list(prefixes)},
    }
    return state(Upserted(PolicyObject(ObjectKey("CiliumCIDRGroup", "", name), document)))


# A list of prefixes by name and by label: nobody while there is none, and never more than it says now.
BY_NAME = cnp("by-name", egress=[{"toCIDRSet": [{"cidrGroupRef": "partners", "except": ["172.16.9.0/24"]}]}])
BY_LABEL = cnp(
    "by-label",
    egress=[{"toCIDRSet": [{"cidrGroupSelector": {"matchLabels": {"of": "partners"}}}], "toPorts": ports("80")}],
)
NO_GROUP = (NODE + BY_NAME + BY_LABEL).expecting({Packet(1, OUT, "172.16.0.1"): "drop", Packet(1, OUT, WORLD): "drop"})
GROUP = (NO_GROUP + cidr_group("partners", "172.16.0.0/16")).expecting(
    {
        Packet(1, OUT, "172.16.0.1"): "allow",
        Packet(1, OUT, "172.16.0.1", TCP, 81): "allow",
        Packet(1, OUT, "172.16.9.1"): "drop",
        Packet(1, OUT, "172.17.0.1"): "drop",
    }
)
GROUPS = (GROUP + cidr_group("others", "172.17.0.0/16", "2001:db8::/32", of="partners")).expecting(
    {
        Packet(1, OUT, "172.17.0.1"): "allow",
        Packet(1, OUT, "2001:db8::1"): "allow",
        Packet(1, OUT, "172.17.0.1", TCP, 81): "drop",
    }
)
MOVED_GROUP = (NO_GROUP + cidr_group("partners", "172.18.0.0/16")).expecting(
    {Packet(1, OUT, "172.16.0.1"): "drop", Packet(1, OUT, "172.18.0.1"): "allow"}
)

SCENARIOS: dict[str, list[State]] = {
    "the web app": [EMPTY, OPEN, GUARDED, OPEN],
    "more rules": [OPEN, GUARDED, GUARDED_BUT_OTHER, NEUTRALISED, DENIED, DENY_ONLY, OPEN_DENY],
    "a pod's port changes under its name": [NAMED, RENUMBERED, GUARDED],
    "a pod changes its labels": [GUARDED, RELABELLED, CHANGED_LABELS, GUARDED],
    "prefixes": [OPEN, EGRESS_CIDR, EGRESS_BLOCK, EGRESS_CIDR, GUARDED],
    "a block cuts through replicas": [OPEN, BLOCK_ONLY_FIRST, CUT, CUT_BOTH, CUT_DENIED, CUT, TWINS, CUT_OUT, CUT],
    "a name means two numbers": [TWINS, NUMBERED, TO_NAMED, TO_SAME, TO_ANY_NAMED, CUT, TO_NAMED],
    "local pods obey their own ports": [NAMED, LOCAL_TWINS, NAMED],
    "services in rules": [OPEN, TO_SERVICE, TO_SERVICE_UP, TO_SERVICE],
    "what cannot be enforced": [OPEN, UNENFORCEABLE, GUARDED],
    "prefixes by name": [OPEN, NO_GROUP, GROUP, GROUPS, GROUP, MOVED_GROUP, NO_GROUP, GROUPS],
    "the node as an endpoint": [OPEN, HOST_OPEN, HOST_CLOSED, HOST_ELSEWHERE, HOST_CLOSED, HOST_DENIED, NOT_FOR_NODES],
    "a deny rule stops even the node": [OPEN, HOST_DENIED_AT_POD, OPEN],
    "identities late": [HTTP_POLICY, HTTP_POLICY + pod(1, WEB), GUARDED],
}


def difference(before: State, after: State) -> list[Update]:
    """The updates that lead from one state to the next: what a source would say."""
    gone = [update for key, update in before.updates.items() if key not in after.updates]
    new = [update for key, update in after.updates.items() if before.updates.get(key) != update]
    return [opposite(update) for update in gone] + new


def opposite(update: Update) -> Update:
    """The update that undoes another."""
    match update:
        case Upserted(object=thing):
            return Deleted(thing.key)
        case IdentityUpserted(identity=identity):
            return IdentityDeleted(identity.id)
        case IpUpserted(entry=entry):
            return IpDeleted(entry.prefix)
        case EndpointUpserted(endpoint=endpoint):
            return EndpointDeleted(endpoint.id)
        case _:
            raise AssertionError(update)


Step = tuple[list[Update], State | None]
"""Updates to apply, and what must hold after the flush that follows; None: no flush yet."""
Expander = Callable[[Sequence[State]], Iterator[Step]]


def _walk(states: Iterable[State]) -> Iterator[Step]:
    before = EMPTY
    for after in states:
        yield difference(before, after), after
        before = after


def as_declared(states: Sequence[State]) -> Iterator[Step]:
    return _walk(states)


def backwards(states: Sequence[State]) -> Iterator[Step]:
    return _walk(reversed(states))


def with_empties(states: Sequence[State]) -> Iterator[Step]:
    return _walk(found for one in states for found in (EMPTY, one))


def split(states: Sequence[State]) -> Iterator[Step]:
    """A flush after every single update; what is between two states is nobody's to say."""
    for updates, after in _walk(states):
        for update in updates[:-1]:
            yield [update], EMPTY
        yield updates[-1:], after


def squashed(states: Sequence[State]) -> Iterator[Step]:
    """All updates of all states, and one flush at the end."""
    steps = list(_walk(states))
    for updates, _ in steps[:-1]:
        yield updates, None
    yield steps[-1]


def turned_round(states: Sequence[State]) -> Iterator[Step]:
    """The updates between two states in the opposite order."""
    for updates, after in _walk(states):
        yield updates[::-1], after


def twice(states: Sequence[State]) -> Iterator[Step]:
    """Everything is told twice, as after a relist."""
    for updates, after in _walk(states):
        yield [*updates, *after.updates.values()], after


EXPANDERS: tuple[Expander, ...] = (as_declared, backwards, with_empties, split, squashed, turned_round, twice)
