"""Random small clusters: few labels, ports and prefixes, so that rules overlap, contradict and shadow one another."""

from __future__ import annotations

import ipaddress
from typing import Any

from hypothesis import strategies as st

from services.model.identity import Identity, NumericIdentity
from services.model.labels import Labels, pod_identity_labels
from services.model.objects import (
    ContainerPort,
    EndpointUpserted,
    IdentityUpserted,
    IpEntry,
    IpUpserted,
    LocalEndpoint,
    ObjectKey,
    Pod,
    PolicyObject,
    Update,
    Upserted,
)
from services.policy.peers import Party
from services.policy.selectors import LabelView

NAMESPACES = ("red", "blue")
APPS = ("a", "b")
PORTS = (0, 1, 53, 79, 80, 81, 443, 8080, 65535)
PROTOCOLS = ("TCP", "UDP", "SCTP", "ANY")
PREFIXES = ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "0.0.0.0/0", "fd00::/8", "::/0", "10.9.0.0/16",
            "10.9.1.0/30", "10.9.1.9/32")  # fmt: skip
NUMBERS = {(ns, app): NumericIdentity(300 + i) for i, (ns, app) in enumerate((n, a) for n in NAMESPACES for a in APPS)}
POD_PORTS = {"a": (("web", 80, 6), ("dns", 53, 17)), "b": (("web", 8080, 6),)}
# The second pod of each pair of labels: elsewhere, of both families, and with another number behind a port's name.
SECOND_PORTS = {"a": (("web", 81, 6), ("dns", 53, 17)), "b": ()}
HTTP = ({"method": "GET"}, {"path": "/a"}, {"method": "GET", "path": "/a"}, {})

PodAddress = tuple[str, str, ipaddress.IPv4Address | ipaddress.IPv6Address, tuple[tuple[str, int, int], ...]]


def pod_labels(namespace: str, app: str) -> Labels:
    return pod_identity_labels({"app": app}, namespace, {"kubernetes.io/metadata.name": namespace, "team": namespace})


def address(namespace: str, app: str) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(f"10.9.{NAMESPACES.index(namespace)}.{1 + APPS.index(app)}")


def second(namespace: str, app: str) -> tuple[ipaddress.IPv4Address, ipaddress.IPv6Address]:
    last = 8 + NAMESPACES.index(namespace) * 4 + APPS.index(app)
    return ipaddress.IPv4Address(f"10.9.1.{last}"), ipaddress.IPv6Address(f"fd09::{last}")


def pods() -> list[PodAddress]:
    """(namespace, app, address, ports) of every pod's every address."""
    found: list[PodAddress] = []
    for namespace, app in NUMBERS:
        # Of the first pods behind another node nobody has told the ports.
        found.append((namespace, app, address(namespace, app), POD_PORTS[app] if namespace == "red" else ()))
        found += [(namespace, app, each, SECOND_PORTS[app]) for each in second(namespace, app)]
    return found


def party(pod: PodAddress) -> Party:
    """One address of one pod, as policy should see it."""
    namespace, app, address, ports = pod
    names: dict[tuple[str, int], frozenset[int]] = {(name, proto): frozenset({number}) for name, number, proto in ports}
    return Party(NUMBERS[namespace, app], LabelView(pod_labels(namespace, app)), (address,), names)


def replicas() -> list[Update]:
    """The second pods, all on another node."""
    tunnel = ipaddress.IPv4Address("192.168.0.3")
    found: list[Update] = []
    for (namespace, app), number in NUMBERS.items():
        ports = tuple(ContainerPort(*port) for port in SECOND_PORTS[app])
        name = f"{app}-2"
        found.append(Upserted(Pod(namespace, name, node="node3", labels={"app": app}, ports=ports)))
        for each in second(namespace, app):
            row = IpEntry(ipaddress.ip_network(each), number, "node3", tunnel, namespace, name)
            found.append(IpUpserted(row))
    return found


def cluster() -> list[Update]:
    """Every identity, the pods of namespace red as local endpoints, those of blue behind another node."""
    found: list[Update] = replicas()
    for index, ((namespace, app), number) in enumerate(NUMBERS.items()):
        found.append(IdentityUpserted(Identity(number, pod_labels(namespace, app))))
        ports = tuple(ContainerPort(*port) for port in POD_PORTS[app])
        if namespace == "red":
            endpoint = LocalEndpoint(
                index + 1,
                namespace,
                app,
                "",
                index + 10,
                "",
                bytes(6),
                bytes(6),
                (address(namespace, app),),
                number,
                ports,
            )
            found.append(EndpointUpserted(endpoint))
        else:
            prefix = ipaddress.ip_network(address(namespace, app))
            tunnel = ipaddress.IPv4Address("192.168.0.2")
            found.append(IpUpserted(IpEntry(prefix, number, "node2", tunnel, namespace, app)))
    return found


def match_labels(*, sourced: bool = True) -> st.SearchStrategy[dict[str, Any]]:
    keys = ["app", "k8s:app"] if sourced else ["app"]
    single = st.builds(lambda key, value: {"matchLabels": {key: value}}, st.sampled_from(keys), st.sampled_from(APPS))
    operator = st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"])
    terms = st.builds(
        lambda op, values: {
            "matchExpressions": [{"key": "app", "operator": op, **({"values": values} if op[-2:] == "In" else {})}]
        },
        operator,
        st.lists(st.sampled_from(APPS), min_size=1, max_size=2, unique=True),
    )
    return st.one_of(st.just({}), single, terms)


spaces = st.sampled_from(
    [
        {"matchLabels": {"io.kubernetes.pod.namespace": "blue"}},
        {"matchExpressions": [{"key": "io.kubernetes.pod.namespace", "operator": "Exists"}]},
        {"matchLabels": {"io.cilium.k8s.namespace.labels.team": "blue"}},
        {"matchLabels": {"reserved:host": ""}},
    ]
)


@st.composite
def port_entry(draw: st.DrawFn, protocols: tuple[str, ...] = PROTOCOLS) -> dict[str, Any]:
    entry: dict[str, Any] = {"protocol": draw(st.sampled_from(protocols))}
    if draw(st.integers(0, 5)) == 0:
        return {**entry, "port": draw(st.sampled_from(["web", "dns", "none"]))}
    entry["port"] = str(draw(st.sampled_from(PORTS)))
    if draw(st.booleans()):
        entry["endPort"] = draw(st.sampled_from(PORTS))
    return entry


@st.composite
def to_ports(draw: st.DrawFn, *, http: bool) -> dict[str, Any]:
    if http and draw(st.booleans()):
        ports = draw(st.lists(port_entry(("TCP",)).filter(lambda p: p["port"] != "0"), min_size=1, max_size=2))
        return {"ports": ports, "rules": {"http": draw(st.lists(st.sampled_from(HTTP), max_size=2))}}
    return {"ports": draw(st.lists(port_entry(), max_size=2))}


@st.composite
def cidr_set(draw: st.DrawFn) -> dict[str, Any]:
    prefix = ipaddress.ip_network(draw(st.sampled_from(PREFIXES)))
    inside = [p for p in map(ipaddress.ip_network, PREFIXES) if p.version == prefix.version and p.subnet_of(prefix)]  # type: ignore[arg-type]
    holes = draw(st.lists(st.sampled_from(sorted(map(str, inside))), max_size=2, unique=True))
    return {"cidr": str(prefix), **({"except": holes} if holes else {})}


@st.composite
def element(draw: st.DrawFn, direction: str, *, deny: bool) -> dict[str, Any]:
    side = "from" if direction == "ingress" else "to"
    found: dict[str, Any] = {}
    match draw(st.sampled_from(["none", "endpoints", "endpoints", "entities", "cidr", "set", "empty"])):
        case "endpoints":
            found[f"{side}Endpoints"] = draw(st.lists(st.one_of(match_labels(), spaces), min_size=1, max_size=2))
        case "entities":
            names = ["all", "world", "cluster", "host", "remote-node", "none"]
            found[f"{side}Entities"] = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2))
        case "cidr":
            found[f"{side}CIDR"] = [draw(st.sampled_from(PREFIXES))]
        case "set":
            found[f"{side}CIDRSet"] = draw(st.lists(cidr_set(), min_size=1, max_size=2))
        case "empty":
            found[f"{side}Endpoints"] = []
    match draw(st.sampled_from(["none", "ports", "ports", "icmp"])):
        case "ports":
            http = direction == "ingress" and not deny
            found["toPorts"] = draw(st.lists(to_ports(http=http), min_size=1, max_size=2))
        case "icmp":
            found["icmps"] = [{"fields": [{"type": draw(st.sampled_from([0, 8]))}]}]
    return found


@st.composite
def cilium_policy(draw: st.DrawFn) -> PolicyObject:
    clusterwide = draw(st.integers(0, 3)) == 0
    kind = "CiliumClusterwideNetworkPolicy" if clusterwide else "CiliumNetworkPolicy"
    spec: dict[str, Any] = {"endpointSelector": draw(match_labels())}
    for direction in ("ingress", "egress"):
        for suffix in ("", "Deny"):
            spec[direction + suffix] = draw(st.lists(element(direction, deny=bool(suffix)), max_size=2))
    if not any(spec[key] for key in spec if key != "endpointSelector"):
        spec["ingress"] = [{}]
    if draw(st.integers(0, 4)) == 0:
        spec["enableDefaultDeny"] = {draw(st.sampled_from(["ingress", "egress"])): draw(st.booleans())}
    return _object(draw, kind, "" if clusterwide else "red", "cilium.io/v2", spec)


@st.composite
def network_policy(draw: st.DrawFn) -> PolicyObject:
    def peer() -> st.SearchStrategy[dict[str, Any]]:
        pods = match_labels(sourced=False)
        space = st.sampled_from([{}, {"matchLabels": {"team": "blue"}}])
        return st.one_of(
            st.builds(lambda p: {"podSelector": p}, pods),
            st.builds(lambda n, p: {"namespaceSelector": n, "podSelector": p}, space, pods),
            st.builds(
                lambda b: {"ipBlock": {**b, "except": [h for h in b.get("except", ()) if h != b["cidr"]]}}, cidr_set()
            ),
        )

    numbered = st.builds(
        lambda p, low, size: {"protocol": p, "port": low, **({"endPort": min(65535, low + size)} if size else {})},
        st.sampled_from(["TCP", "UDP"]),
        st.sampled_from([port for port in PORTS if port]),
        st.sampled_from([0, 1, 400]),
    )
    port = st.one_of(numbered, st.just({"port": "web"}), st.just({"protocol": "UDP"}))
    rule = {"from": st.lists(peer(), max_size=2), "to": st.lists(peer(), max_size=2)}
    spec: dict[str, Any] = {"podSelector": draw(match_labels(sourced=False))}
    for key, side in (("ingress", "from"), ("egress", "to")):
        builder = st.builds(
            lambda peers, ports, side=side: {side: peers, "ports": ports}, rule[side], st.lists(port, max_size=2)
        )
        spec[key] = draw(st.lists(builder, max_size=2))
    spec["policyTypes"] = draw(st.sampled_from([["Ingress"], ["Egress"], ["Ingress", "Egress"]]))
    return _object(draw, "NetworkPolicy", "red", "networking.k8s.io/v1", spec)


def _object(draw: st.DrawFn, kind: str, namespace: str, version: str, spec: dict[str, Any]) -> PolicyObject:
    name = draw(st.sampled_from(["one", "two", "three"]))
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    document = {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}
    return PolicyObject(ObjectKey(kind, namespace, name), document)


policies = st.one_of(cilium_policy(), cilium_policy(), network_policy())


def upserts(documents: list[PolicyObject]) -> list[Update]:
    return [Upserted(document) for document in documents]
