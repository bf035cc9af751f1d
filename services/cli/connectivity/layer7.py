"""Cases with policies about what is said: HTTP requests, DNS names, TLS server names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.cli.connectivity import objects
from services.cli.connectivity.ask import Http, Outcome, Resolve
from services.cli.connectivity.case import Ask, Cases, Lane, Need, Seen
from services.cli.connectivity.cluster import Document, url
from services.cli.connectivity.objects import DNS_RULE, policy, ports

LAYER7 = Cases()
case = LAYER7.case
ECHO, CLIENT = {"app": "echo"}, {"name": "client"}
_RULES = {"http": [{"method": "GET", "path": "/allowed/.*"}, {"path": "/marked", "headers": ["X-Token: open"]}]}


def _http(lane: Lane) -> Sequence[Document]:
    rule = {"fromEndpoints": [{"matchLabels": CLIENT}], "toPorts": ports(objects.HTTP, rules=_RULES)}
    return [policy(lane.namespace, "http", ECHO, ingress=[rule])]


def _http_targets(lane: Lane) -> Iterable[tuple[str, int]]:
    for server in lane.servers:
        for version in lane.versions:
            yield server.address(version), objects.HTTP
    for address in lane.service_addresses("echo"):
        yield address, 80


@case("http/method-path-header", applies=_http)
def _http_asks(lane: Lane) -> Iterable[Ask]:
    client, token = lane.client.place, ("X-Token: open",)
    for address, port in _http_targets(lane):
        refused = Outcome.FORBIDDEN
        seen = Seen("DROPPED", http="GET /other") if port != 80 else None
        yield Ask(client, Http(url(address, port, "/other")), refused, seen=seen)
        yield Ask(client, Http(url(address, port, "/allowed/1"), "POST"), refused)
        yield Ask(client, Http(url(address, port, "/marked")), refused)
        yield Ask(client, Http(url(address, port, "/allowed/1")), contains="GET /allowed/1")
        yield Ask(client, Http(url(address, port, "/marked"), headers=token), contains="GET /marked")
    yield from lane.reach(lane.stranger, Outcome.UNANSWERED, path="/allowed/1", seen=Seen("DROPPED"))


def _http_out(lane: Lane) -> Sequence[Document]:
    rules = {"http": [{"method": "GET", "path": "/allowed/.*"}]}
    rule = {"toEndpoints": [{"matchLabels": ECHO}], "toPorts": ports(objects.HTTP, rules=rules)}
    return [policy(lane.namespace, "http-out", CLIENT, egress=[rule])]


@case("http/egress", applies=_http_out)
def _http_out_asks(lane: Lane) -> Iterable[Ask]:
    yield from lane.reach(lane.client, Outcome.FORBIDDEN, seen=Seen("DROPPED", http="GET /"))
    yield from lane.reach(lane.client, path="/allowed/1")
    yield from lane.reach(lane.stranger)


def _dns(lane: Lane) -> Sequence[Document]:
    pattern = {"dns": [{"matchPattern": f"echo.{lane.namespace}.svc.cluster.local"}]}
    rule = {**DNS_RULE, "toPorts": ports(53, protocol="ANY", rules=pattern)}
    return [policy(lane.namespace, "dns", CLIENT, egress=[rule])]


@case("dns/names-that-may-be-asked", applies=_dns)
def _dns_asks(lane: Lane) -> Iterable[Ask]:
    domain = f"{lane.namespace}.svc.cluster.local"
    yield Ask(lane.client.place, Resolve(f"echo-sticky.{domain}."), Outcome.NO_NAME)
    yield Ask(lane.client.place, Resolve(f"echo.{domain}."))


def _fqdn(lane: Lane) -> Sequence[Document]:
    world = lane.facts.world
    assert world is not None
    rule = {"toFQDNs": [{"matchName": world.names[0]}], "toPorts": ports(world.port)}
    patterns = {"dns": [{"matchName": world.names[0]}]}
    dns = {**DNS_RULE, "toPorts": ports(53, protocol="ANY", rules=patterns)}
    return [policy(lane.namespace, "fqdn", CLIENT, egress=[dns, rule])]


@case("dns/to-fqdns", Need.WORLD, applies=_fqdn)
def _fqdn_asks(lane: Lane) -> Iterable[Ask]:
    """The name's address opens when the name was asked for; what cannot be asked for stays closed."""
    world = lane.facts.world
    assert world is not None
    yield from lane.reach(lane.client, Outcome.UNANSWERED, seen=Seen("DROPPED"))
    yield Ask(lane.client.place, Resolve(world.names[1] + "."), Outcome.NO_NAME)
    yield Ask(lane.client.place, Http(url(world.names[0], world.port)), seen=Seen("FORWARDED", "fqdn"))


def _tls(lane: Lane) -> Sequence[Document]:
    allowed = ports(objects.TLS, serverNames=[objects.TLS_NAMES[0]])
    return [
        policy(lane.namespace, "tls", CLIENT, egress=[{"toEndpoints": [{"matchLabels": ECHO}], "toPorts": allowed}])
    ]


@case("tls/server-names", applies=_tls)
def _tls_asks(lane: Lane) -> Iterable[Ask]:
    for server in lane.servers:
        for name, expect in zip(objects.TLS_NAMES, (Outcome.ANSWERED, Outcome.UNANSWERED), strict=True):
            request = Http(url(name, objects.TLS, scheme="https"), at=f"{name}:{objects.TLS}:{server.address(4)}")
            yield Ask(lane.client.place, request, expect)


@case("tls/without-policy")
def _tls_free(lane: Lane) -> Iterable[Ask]:
    """The servers do have both names: what is refused above is refused by the policy."""
    for server in lane.servers:
        for name in objects.TLS_NAMES:
            request = Http(url(name, objects.TLS, scheme="https"), at=f"{name}:{objects.TLS}:{server.address(4)}")
            yield Ask(lane.client.place, request, contains=f"server: {server.name}")
