"""What is refused, with the field it is about; what is accepted, with what it means. One table per kind of policy."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from services.model.objects import ObjectKey, PolicyObject
from services.model.verdict import Direction
from services.policy.l7 import DnsRule, HeaderMatch, HttpRule
from services.policy.options import PolicyOptions
from services.policy.peers import ANYONE, CidrGroupPeer, CidrPeer, FqdnPeer, ServicePeer
from services.policy.problems import MAX_PROBLEMS, PolicyInvalid
from services.policy.read import read_policy
from services.policy.rules import EVERYTHING, Policy, Rule, Traffic

SUBJECT = {"endpointSelector": {"matchLabels": {"app": "web"}}}
PODS = {"podSelector": {}}


def read(kind: str, spec: Any, options: PolicyOptions | None = None, **more: Any) -> Policy:
    namespace = "" if kind == "CiliumClusterwideNetworkPolicy" else "ns"
    version = "networking.k8s.io/v1" if kind == "NetworkPolicy" else "cilium.io/v2"
    document = {"apiVersion": version, "kind": kind, "metadata": {"name": "p"}, "spec": spec, **more}
    return read_policy(PolicyObject(ObjectKey(kind, namespace, "p"), document, "uid-1"), options)


def cnp(options: PolicyOptions | None = None, **spec: Any) -> Policy:
    return read("CiliumNetworkPolicy", {**SUBJECT, **spec}, options)


def refused(kind: str, spec: Any, **more: Any) -> dict[str, str]:
    with pytest.raises(PolicyInvalid) as caught:
        read(kind, spec, **more)
    return {problem.path: problem.message for problem in caught.value.problems}


def ingress(**element: Any) -> dict[str, Any]:
    return {**SUBJECT, "ingress": [element]}


def egress(**element: Any) -> dict[str, Any]:
    return {**SUBJECT, "egress": [element]}


def ports(port: Any = "80", protocol: str | None = "TCP", **more: Any) -> list[dict[str, Any]]:
    entry = {"port": port, **({"protocol": protocol} if protocol is not None else {})}
    entry |= {key: more.pop(key) for key in ("endPort",) if key in more}
    return [{"ports": [entry], **more}]


IN0, OUT0 = "spec.ingress[0]", "spec.egress[0]"
CILIUM_REFUSED: list[tuple[str, Any, str, str]] = [
    ("no list", SUBJECT, "spec", "at least one element"),
    ("empty lists", {**SUBJECT, "ingress": [], "egress": []}, "spec", "at least one element"),
    ("no subject", {"ingress": [{}]}, "spec", "endpointSelector"),
    ("null subject", {"endpointSelector": None, "ingress": [{}]}, "spec", "endpointSelector"),
    ("two subjects", {**SUBJECT, "nodeSelector": {}, "ingress": [{}]}, "spec", "both"),
    ("nodes in a CNP", {"nodeSelector": {}, "ingress": [{}]}, "spec.nodeSelector", "Clusterwide"),
    (
        "init in a CNP",
        {"endpointSelector": {"matchLabels": {"reserved:init": ""}}, "ingress": [{}]},
        "spec.endpointSelector",
        "Clusterwide",
    ),
    ("unknown field", {**SUBJECT, "ingres": [{}], "ingress": [{}]}, "spec.ingres", "'ingress'"),
    ("unknown in element", ingress(fromEndpoint=[{}]), f"{IN0}.fromEndpoint", "'fromEndpoints'"),
    ("egress member in ingress", ingress(toEndpoints=[{}]), f"{IN0}.toEndpoints", "unknown field"),
    ("wrong type", {**SUBJECT, "ingress": {}}, "spec.ingress", "must be a list"),
    ("element of wrong type", {**SUBJECT, "ingress": ["x"]}, IN0, "must be an object"),
    ("two members", ingress(fromEndpoints=[{}], fromEntities=["host"]), IN0, "cannot be combined"),
    ("icmps and ports", ingress(toPorts=ports(), icmps=[{"fields": [{"type": 8}]}]), IN0, "cannot be combined"),
    ("nodes off", ingress(fromNodes=[{}]), f"{IN0}.fromNodes[0]", "switched off"),
    ("requires", ingress(fromRequires=[{}]), f"{IN0}.fromRequires", "removed"),
    (
        "operator",
        ingress(fromEndpoints=[{"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}]),
        f"{IN0}.fromEndpoints[0].matchExpressions[0].operator",
        "In, NotIn, Exists, DoesNotExist",
    ),
    (
        "no values",
        ingress(fromEndpoints=[{"matchExpressions": [{"key": "a", "operator": "In"}]}]),
        f"{IN0}.fromEndpoints[0].matchExpressions[0].values",
        "at least one value",
    ),
    (
        "values",
        ingress(fromEndpoints=[{"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}]),
        f"{IN0}.fromEndpoints[0].matchExpressions[0].values",
        "no values",
    ),
    (
        "label value",
        ingress(fromEndpoints=[{"matchLabels": {"a": "-b"}}]),
        f"{IN0}.fromEndpoints[0].matchLabels.a",
        "label value",
    ),
    (
        "label key",
        ingress(fromEndpoints=[{"matchLabels": {"-a": "b"}}]),
        f"{IN0}.fromEndpoints[0].matchLabels.-a",
        "label key",
    ),
    (
        "label source",
        ingress(fromEndpoints=[{"matchLabels": {"k9s:a": "b"}}]),
        f"{IN0}.fromEndpoints[0].matchLabels.k9s:a",
        "unknown label source",
    ),
    (
        "unquoted value",
        ingress(fromEndpoints=[{"matchLabels": {"a": True}}]),
        f"{IN0}.fromEndpoints[0].matchLabels.a",
        "quotes",
    ),
    ("entity", ingress(fromEntities=["wrld"]), f"{IN0}.fromEntities[0]", "'world'"),
    ("cidr", ingress(fromCIDR=["10.0.0.0/33"]), f"{IN0}.fromCIDR[0]", "prefix"),
    ("empty cidr", ingress(fromCIDR=[""]), f"{IN0}.fromCIDR[0]", "prefix"),
    ("bare address in a set", ingress(fromCIDRSet=[{"cidr": "10.0.0.1"}]), f"{IN0}.fromCIDRSet[0].cidr", "/32"),
    ("set of nothing", ingress(fromCIDRSet=[{}]), f"{IN0}.fromCIDRSet[0]", "required"),
    (
        "set of two",
        ingress(fromCIDRSet=[{"cidr": "10.0.0.0/8", "cidrGroupRef": "g"}]),
        f"{IN0}.fromCIDRSet[0]",
        "more than one",
    ),
    (
        "except outside",
        ingress(fromCIDRSet=[{"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}]),
        f"{IN0}.fromCIDRSet[0].except[0]",
        "does not lie in",
    ),
    (
        "except of the other family",
        ingress(fromCIDRSet=[{"cidr": "10.0.0.0/8", "except": ["fd00::/16"]}]),
        f"{IN0}.fromCIDRSet[0].except[0]",
        "does not lie in",
    ),
    (
        "names on deny",
        {**SUBJECT, "egressDeny": [{"toFQDNs": [{"matchName": "a.b"}]}]},
        "spec.egressDeny[0].toFQDNs",
        "unknown",
    ),
    ("both names", egress(toFQDNs=[{"matchName": "a", "matchPattern": "b"}]), f"{OUT0}.toFQDNs[0]", "exactly one"),
    ("name charset", egress(toFQDNs=[{"matchName": "*.a"}]), f"{OUT0}.toFQDNs[0].matchName", "must have at most 255"),
    ("no port", ingress(toPorts=[{"ports": [{"protocol": "TCP"}]}]), f"{IN0}.toPorts[0].ports[0].port", "specified"),
    ("number as port", ingress(toPorts=ports(80)), f"{IN0}.toPorts[0].ports[0].port", "quotes"),
    ("port range", ingress(toPorts=ports("65536")), f"{IN0}.toPorts[0].ports[0].port", "0 to 65535"),
    ("port name", ingress(toPorts=ports("a_b")), f"{IN0}.toPorts[0].ports[0].port", "port name"),
    ("protocol", ingress(toPorts=ports("80", "ICMP")), f"{IN0}.toPorts[0].ports[0].protocol", "TCP, UDP"),
    (
        "many ports",
        ingress(toPorts=[{"ports": [{"port": str(p)} for p in range(1, 42)]}]),
        f"{IN0}.toPorts[0].ports",
        "at most 40",
    ),
    ("VRRP with a port", ingress(toPorts=ports("80", "VRRP")), f"{IN0}.toPorts[0].ports[0].port", "no ports"),
    (
        "rules on deny",
        {**SUBJECT, "ingressDeny": [{"toPorts": ports(rules={"http": [{}]})}]},
        "spec.ingressDeny[0].toPorts[0].rules",
        "unknown",
    ),
    (
        "two kinds",
        egress(toPorts=ports(rules={"http": [{}], "kafka": [{}]})),
        f"{OUT0}.toPorts[0].rules",
        "one kind only",
    ),
    (
        "http on any",
        ingress(toPorts=ports("80", None, rules={"http": [{}]})),
        f"{IN0}.toPorts[0].ports[0].protocol",
        "TCP",
    ),
    (
        "http on every port",
        ingress(toPorts=ports("0", rules={"http": [{}]})),
        f"{IN0}.toPorts[0].ports[0].port",
        "other than",
    ),
    (
        "dns on ingress",
        ingress(toPorts=ports("53", "UDP", rules={"dns": [{"matchPattern": "*"}]})),
        f"{IN0}.toPorts[0].rules.dns",
        "egress only",
    ),
    (
        "dns range",
        egress(toPorts=ports("53", "UDP", endPort=54, rules={"dns": [{"matchPattern": "*"}]})),
        f"{OUT0}.toPorts[0].ports[0].endPort",
        "range",
    ),
    (
        "dns without port",
        egress(toPorts=[{"rules": {"dns": [{"matchPattern": "*"}]}}]),
        f"{OUT0}.toPorts[0].ports",
        "53",
    ),
    ("l7 without parser", egress(toPorts=ports(rules={"l7": [{"a": "b"}]})), f"{OUT0}.toPorts[0].rules.l7", "l7proto"),
    (
        "path",
        ingress(toPorts=ports(rules={"http": [{"path": "/("}]})),
        f"{IN0}.toPorts[0].rules.http[0].path",
        "regular",
    ),
    (
        "look-ahead",
        ingress(toPorts=ports(rules={"http": [{"path": "/(?=a)"}]})),
        f"{IN0}.toPorts[0].rules.http[0].path",
        "look-around",
    ),
    (
        "back-reference",
        ingress(toPorts=ports(rules={"http": [{"method": "(A)\\1"}]})),
        f"{IN0}.toPorts[0].rules.http[0].method",
        "write the alternatives out",
    ),
    (
        "possessive",
        ingress(toPorts=ports(rules={"http": [{"path": "/a++"}]})),
        f"{IN0}.toPorts[0].rules.http[0].path",
        "leave the second + ",
    ),
    *(
        (
            f"mismatch {action}",
            ingress(toPorts=ports(rules={"http": [{"headerMatches": [{"name": "X", "mismatch": action}]}]})),
            f"{IN0}.toPorts[0].rules.http[0].headerMatches[0].mismatch",
            "would rewrite requests",
        )
        for action in ("ADD", "DELETE", "REPLACE")
    ),
    (
        "sni and rules",
        egress(toPorts=ports(serverNames=["a.b"], rules={"http": [{}]})),
        f"{OUT0}.toPorts[0].serverNames",
        "terminatingTLS",
    ),
    ("empty sni", egress(toPorts=ports(serverNames=[""])), f"{OUT0}.toPorts[0].serverNames[0]", "server name"),
    (
        "listener on ingress",
        ingress(toPorts=ports(listener={"envoyConfig": {"name": "e"}, "name": "l"})),
        f"{IN0}.toPorts[0].listener",
        "egress only",
    ),
    (
        "icmp name",
        ingress(icmps=[{"fields": [{"family": "IPv4", "type": "PacketTooBig"}]}]),
        f"{IN0}.icmps[0].fields[0].type",
        "no ICMP type of IPv4",
    ),
    ("icmp number", ingress(icmps=[{"fields": [{"type": 256}]}]), f"{IN0}.icmps[0].fields[0].type", "0 to 255"),
    ("mode", ingress(authentication={"mode": "maybe"}), f"{IN0}.authentication.mode", "required"),
    ("log", {**SUBJECT, "ingress": [{}], "log": {"value": "x" * 33}}, "spec.log.value", "32"),
    (
        "default deny",
        {**SUBJECT, "ingress": [{}], "enableDefaultDeny": {"ingress": "no"}},
        "spec.enableDefaultDeny.ingress",
        "true or false",
    ),
]


@pytest.mark.parametrize(
    ("spec", "path", "message"), [case[1:] for case in CILIUM_REFUSED], ids=[c[0] for c in CILIUM_REFUSED]
)
def test_cilium_refused(spec: Any, path: str, message: str) -> None:
    problems = refused("CiliumNetworkPolicy", spec)
    assert path in problems, problems
    assert message in problems[path]


KNP_REFUSED: list[tuple[str, Any, str, str]] = [
    ("empty peer", {**PODS, "ingress": [{"from": [{}]}]}, f"{IN0}.from[0]", "must specify a peer"),
    (
        "block and selector",
        {**PODS, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]},
        f"{IN0}.from[0]",
        "cannot be combined",
    ),
    ("no cidr", {**PODS, "ingress": [{"from": [{"ipBlock": {}}]}]}, f"{IN0}.from[0].ipBlock.cidr", "prefix"),
    (
        "equal except",
        {**PODS, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}]}]},
        f"{IN0}.from[0].ipBlock.except[0]",
        "strict subset",
    ),
    ("policy type", {**PODS, "policyTypes": ["ingress"]}, "spec.policyTypes[0]", "Ingress or Egress"),
    ("three types", {**PODS, "policyTypes": ["Ingress", "Egress", "Ingress"]}, "spec.policyTypes", "at most 2"),
    ("protocol", {**PODS, "ingress": [{"ports": [{"protocol": "tcp"}]}]}, f"{IN0}.ports[0].protocol", "TCP, UDP, SCTP"),
    ("port 0", {**PODS, "ingress": [{"ports": [{"port": 0}]}]}, f"{IN0}.ports[0].port", "1 to 65535"),
    ("quoted number", {**PODS, "ingress": [{"ports": [{"port": "80"}]}]}, f"{IN0}.ports[0].port", "no quotes"),
    (
        "end before start",
        {**PODS, "ingress": [{"ports": [{"port": 80, "endPort": 79}]}]},
        f"{IN0}.ports[0].endPort",
        "less",
    ),
    ("end alone", {**PODS, "ingress": [{"ports": [{"endPort": 79}]}]}, f"{IN0}.ports[0].endPort", "needs a port"),
    (
        "end of a name",
        {**PODS, "ingress": [{"ports": [{"port": "http", "endPort": 79}]}]},
        f"{IN0}.ports[0].endPort",
        "named",
    ),
    ("to in ingress", {**PODS, "ingress": [{"to": []}]}, f"{IN0}.to", "unknown field"),
    ("no spec", None, "spec", "missing"),
]


@pytest.mark.parametrize(
    ("spec", "path", "message"), [case[1:] for case in KNP_REFUSED], ids=[c[0] for c in KNP_REFUSED]
)
def test_network_policy_refused(spec: Any, path: str, message: str) -> None:
    problems = refused("NetworkPolicy", spec)
    assert path in problems, problems
    assert message in problems[path]


def test_all_mistakes_at_once_and_no_more_than_one_can_read() -> None:
    elements = [{"fromEntities": ["moon"]}] * (MAX_PROBLEMS + 10)
    problems = refused("CiliumNetworkPolicy", {"ingress": elements, "x": 1})
    assert len(problems) == MAX_PROBLEMS + 1
    assert problems[""] == "and 12 more problems"


def test_documents_around_the_spec() -> None:
    assert refused("NetworkPolicy", PODS, specs=[])["specs"]
    assert refused("CiliumNetworkPolicy", None)["spec"]
    assert "cilium.io/v2" in refused("CiliumNetworkPolicy", ingress(), apiVersion="cilium.io/v1")["apiVersion"]
    assert refused("Policy", {})["kind"]
    both = read("CiliumNetworkPolicy", ingress(), specs=[egress(), ingress()])
    assert [rule.path for spec in both.specs for rule in spec.rules] == [
        "spec.ingress[0]",
        "specs[0].egress[0]",
        "specs[1].ingress[0]",
    ]
    assert [rule.index for spec in both.specs for rule in spec.rules] == [0, 0, 1]
    assert both.labels == (
        "k8s:io.cilium.k8s.policy.derived-from=CiliumNetworkPolicy",
        "k8s:io.cilium.k8s.policy.name=p",
        "k8s:io.cilium.k8s.policy.namespace=ns",
        "k8s:io.cilium.k8s.policy.uid=uid-1",
    )


def only(policy: Policy) -> Rule:
    ((rule,),) = (spec.rules for spec in policy.specs)
    return rule


def peers(**element: Any) -> list[str]:
    return [str(peer) for peer in only(cnp(ingress=[element])).peers]


CLUSTER = "k8s:io.cilium.k8s.policy.cluster=default"
IN_NS = f"{CLUSTER}, k8s:io.kubernetes.pod.namespace=ns"


def test_nil_is_not_empty() -> None:
    assert peers() == []
    assert only(cnp(ingress=[{}])).traffic == EVERYTHING
    assert only(cnp(ingress=[{"toPorts": ports()}])).peers == (ANYONE,)
    assert peers(fromEndpoints=[], toPorts=ports()) == []
    assert peers(fromEndpoints=None, toPorts=ports()) == ["anyone"]
    assert peers(fromEndpoints=[{}]) == [IN_NS]
    assert only(cnp(egress=[{"toFQDNs": [], "toPorts": ports()}])).peers == (ANYONE,)
    assert only(cnp(ingress=[{"fromEndpoints": [{}], "toPorts": []}])).traffic == EVERYTHING
    assert only(cnp(ingress=[{"fromEndpoints": [{}], "toPorts": [{}]}])).traffic == ()


def test_namespace_and_cluster_of_peers() -> None:
    def one(**labels: str) -> list[str]:
        return peers(fromEndpoints=[{"matchLabels": labels}])

    assert one(app="a") == [f"app=a, {IN_NS}"]
    assert one(**{"reserved:host": ""}) == ["reserved:host="]
    other = {"k8s:io.kubernetes.pod.namespace": "x"}
    assert one(**other) == [f"{CLUSTER}, k8s:io.kubernetes.pod.namespace=x"]
    by_label = {"io.cilium.k8s.namespace.labels.team": "x"}
    assert one(**by_label) == [f"io.cilium.k8s.namespace.labels.team=x, {CLUSTER}"]
    assert one(**{"io.cilium.k8s.policy.cluster": "b"})[0].startswith("io.cilium.k8s.policy.cluster=b")
    spec = {"endpointSelector": {}, "ingress": [{"fromEndpoints": [{}]}]}
    wide = read("CiliumClusterwideNetworkPolicy", spec)
    assert [str(peer) for peer in only(wide).peers] == [f"{CLUSTER}, k8s:io.kubernetes.pod.namespace Exists"]
    init = {"endpointSelector": {"matchLabels": {"reserved:init": ""}}, "ingress": [{"fromEndpoints": [{}]}]}
    assert [str(peer) for peer in only(read("CiliumClusterwideNetworkPolicy", init)).peers] == [CLUSTER]
    assert cnp(PolicyOptions(cluster=""), ingress=[{"fromEndpoints": [{}]}]).specs[0].rules[0].peers != wide


def test_subject_stays_in_its_namespace() -> None:
    policy = read(
        "CiliumNetworkPolicy",
        {"endpointSelector": {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "other"}}, "ingress": [{}]},
    )
    assert str(policy.specs[0].subject) == "k8s:io.kubernetes.pod.namespace=ns"
    assert "replaced" in policy.warnings[0].message


def traffic(*entries: dict[str, Any]) -> list[str]:
    return [str(item) for item in only(cnp(ingress=[{"toPorts": [{"ports": list(entries)}]}])).traffic]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"port": "80"}, ["80/TCP", "80/UDP", "80/SCTP"]),
        ({"port": "80", "protocol": "any"}, ["80/TCP", "80/UDP", "80/SCTP"]),
        ({"port": "0", "protocol": "tcp"}, ["*/TCP"]),
        ({"port": "80", "endPort": 90, "protocol": "UDP"}, ["80-90/UDP"]),
        ({"port": "80", "endPort": 70, "protocol": "UDP"}, ["80/UDP"]),
        ({"port": "0", "endPort": 65535, "protocol": "TCP"}, ["*/TCP"]),
        ({"port": "0", "endPort": 10, "protocol": "TCP"}, ["0-10/TCP"]),
        ({"port": "0x10", "protocol": "TCP"}, ["0x10/TCP"]),
        ({"port": "HTTP", "endPort": 9, "protocol": "TCP"}, ["http/TCP"]),
        ({"port": "0", "protocol": "VRRP"}, ["*/112"]),
    ],
)
def test_ports(entry: dict[str, Any], expected: list[str]) -> None:
    assert traffic(entry) == expected


def test_other_peers() -> None:
    groups = [{"cidr": "10.0.0.7/8", "except": ["10.1.0.0/16"]}, {"cidrGroupRef": "g"}]
    first, second = only(cnp(egress=[{"toCIDRSet": groups}])).peers
    ten = ipaddress.ip_network("10.0.0.0/8")
    assert first == CidrPeer(ten, (ipaddress.ip_network("10.1.0.0/16"),))
    assert second == CidrGroupPeer("g")
    assert only(cnp(egress=[{"toFQDNs": [{"matchName": "A.b."}]}])).peers == (FqdnPeer("a.b"),)
    service = {"k8sService": {"serviceName": "s", "namespace": "n"}}
    assert only(cnp(egress=[{"toServices": [service]}])).peers == (ServicePeer("n", "s"),)
    assert only(cnp(egress=[{"toGroups": [{"aws": {"securityGroupsIds": ["x"]}}]}])).peers == ()
    assert only(cnp(egress=[{"toCIDR": ["10.0.0.7"]}])).peers == (CidrPeer(ipaddress.ip_network("10.0.0.7/32")),)


def test_http_rules() -> None:
    rules = [
        {"method": "GET", "path": "/a", "host": "h", "headers": ["X-A", "X-B: v", "X-C w"]},
        {"headerMatches": [{"name": "X-D", "value": "v"}, {"name": "X-E", "mismatch": "LOG"}]},
        {"headerMatches": [{"name": "X-F", "secret": {"name": "s"}}]},
    ]
    (item,) = only(cnp(ingress=[{"toPorts": ports(rules={"http": rules})}])).traffic
    assert item.l7 is not None
    assert item.l7.http == {
        HttpRule("GET", "/a", "h", (HeaderMatch("x-a"), HeaderMatch("x-b", "v"), HeaderMatch("x-c", "w"))),
        HttpRule(headers=(HeaderMatch("x-d", "v"),)),
    }
    for empty in ({}, {"http": []}):
        assert only(cnp(ingress=[{"toPorts": ports(rules=empty)}])).traffic == (Traffic(6, 80, 80),)


def test_dns_rules() -> None:
    names = [{"matchName": "A.b"}, {"matchPattern": "*.c"}]
    first, *_ = only(cnp(egress=[{"toPorts": ports("53", "ANY", rules={"dns": names})}])).traffic
    assert first.l7 is not None
    assert first.l7.dns == {DnsRule("a.b"), DnsRule("*.c", pattern=True)}
    assert DnsRule("*", pattern=True).everything


def test_default_deny() -> None:
    both = frozenset(Direction)
    assert cnp(ingress=[{}]).specs[0].default_deny == {Direction.INGRESS}
    assert cnp(ingress=[{}], egressDeny=[{}]).specs[0].default_deny == both
    assert cnp(ingress=[{}], egress=[]).specs[0].default_deny == {Direction.INGRESS}
    assert cnp(ingress=[{}], enableDefaultDeny={"ingress": False}).specs[0].default_deny == frozenset()
    assert cnp(ingress=[{}], enableDefaultDeny={"egress": True}).specs[0].default_deny == both


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, {Direction.INGRESS}),
        ({"egress": []}, {Direction.INGRESS}),
        ({"egress": [{}]}, set(Direction)),
        ({"policyTypes": ["Egress"], "ingress": [{}]}, {Direction.EGRESS}),
        ({"policyTypes": []}, {Direction.INGRESS}),
    ],
)
def test_policy_types(spec: dict[str, Any], expected: set[Direction]) -> None:
    policy = read("NetworkPolicy", {**PODS, **spec})
    assert policy.specs[0].default_deny == expected
    assert {rule.direction for rule in policy.specs[0].rules} <= expected


def test_network_policy_peers_and_ports() -> None:
    rule = {
        "from": [{"podSelector": {}}, {"namespaceSelector": {}}, {"namespaceSelector": {"matchLabels": {"t": "x"}}}],
        "ports": [{"port": 80, "endPort": 90}, {"port": "web", "protocol": "UDP"}, {"protocol": "SCTP"}, {}],
    }
    found = only(read("NetworkPolicy", {**PODS, "ingress": [rule]}))
    exists = "k8s:io.kubernetes.pod.namespace Exists"
    assert [str(peer) for peer in found.peers] == [
        IN_NS,
        f"{CLUSTER}, {exists}",
        f"k8s:io.cilium.k8s.namespace.labels.t=x, {CLUSTER}, {exists}",
    ]
    assert [str(item) for item in found.traffic] == ["80-90/TCP", "web/UDP", "*/SCTP", "*/TCP"]
    empty = only(read("NetworkPolicy", {**PODS, "ingress": [{"from": [], "ports": []}]}))
    assert (empty.peers, empty.traffic) == ((ANYONE,), EVERYTHING)


def test_a_few_lines_that_unfold_to_millions_are_refused_soon() -> None:
    """YAML aliases: one list of 40 ports, named 300 times in an element that is named 300 times."""
    entry = {"ports": [{"port": "80", "protocol": "TCP"}] * 40}
    element = {"toPorts": [entry] * 300}
    problems = refused("CiliumNetworkPolicy", {**SUBJECT, "ingress": [element] * 300})
    assert any("more than 100000 list elements" in message for message in problems.values())


def test_a_document_that_contains_itself_is_refused() -> None:
    element: dict[str, Any] = {"fromEndpoints": []}
    element["fromEndpoints"].append(element)
    element["toPorts"] = element["fromEndpoints"]
    assert refused("CiliumNetworkPolicy", {**SUBJECT, "ingress": [element]})
