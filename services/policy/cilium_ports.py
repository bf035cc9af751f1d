"""Reads `toPorts` elements of Cilium policies: ports, ranges, named ports, and what else hangs on a port."""

from __future__ import annotations

import re
from typing import Any

from services.model.verdict import Direction, Protocol
from services.policy.cilium_l7 import read_l7
from services.policy.cilium_peers import Scope
from services.policy.l7 import L7, LISTENER, ORIGINATING, TERMINATING, TLS, OtherRule
from services.policy.networkpolicy import SERVICE_NAME
from services.policy.reader import Doc, Reader, join, present
from services.policy.rules import LAST_PORT, Traffic

DENY_FIELDS = frozenset({"ports"})
ALLOW_FIELDS = frozenset({"ports", "rules", "terminatingTLS", "originatingTLS", "serverNames", "listener"})
PORT_FIELDS = frozenset({"port", "endPort", "protocol"})
TLS_FIELDS = frozenset({"secret", "trustedCA", "certificate", "privateKey"})
LISTENER_FIELDS = frozenset({"envoyConfig", "name", "priority"})
MAX_PORTS = 40
ANY_PROTOCOLS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
PROTOCOLS: dict[str, tuple[int, ...]] = {
    "ANY": ANY_PROTOCOLS,
    "TCP": (Protocol.TCP,),
    "UDP": (Protocol.UDP,),
    "SCTP": (Protocol.SCTP,),
    "VRRP": (112,),
    "IGMP": (2,),
}
SERVER_NAME = re.compile(r"(\*\.|\*\*\.)?[-a-zA-Z0-9_]+(\.[-a-zA-Z0-9_]+)*\.?\Z")


def read_ports(
    reader: Reader, document: Any, path: str, direction: Direction, deny: bool, scope: Scope
) -> list[Traffic]:
    """What one element lets pass (or denies): no ports, nothing."""
    body = reader.mapping(document, path, DENY_FIELDS if deny else ALLOW_FIELDS)
    ports: list[Traffic] = []
    documents = list(reader.items(body, "ports", path, limit=MAX_PORTS))
    for at, element in documents:
        ports += _read_port(reader, element, at, scope)
    if deny:
        return ports
    l7 = read_l7(reader, body, path, direction, scope, [_port_facts(element) for _, element in documents])
    names = _read_server_names(reader, body, path)
    terminating, originating = present(body, "terminatingTLS"), present(body, "originatingTLS")
    for key in ("terminatingTLS", "originatingTLS"):
        _check_tls(reader, body, key, path)
    if names and l7 is not None and not terminating:
        reader.report(join(path, "serverNames"), "cannot be combined with rules unless terminatingTLS is set")
    listener = _read_listener(reader, body, path, direction, scope)
    if listener is not None and l7 is not None:
        reader.report(join(path, "listener"), "cannot be combined with rules")
    # TLS inspection is not done here: the port's rules are kept, and refused as unenforceable by the compiler.
    narrowing = listener or (_read_tls(reader, body, names, path) if names or terminating or originating else None)
    if narrowing is not None:
        l7 = narrowing if l7 is None else l7.union(narrowing)
    if l7 is None:
        return ports
    return [Traffic(port.protocol, port.low, port.high, port.name, l7) for port in ports]


def _port_facts(document: Any) -> Doc:
    return document if isinstance(document, dict) else {}


def _read_port(reader: Reader, document: Any, path: str, scope: Scope) -> list[Traffic]:
    body = reader.mapping(document, path, PORT_FIELDS)
    name = reader.text(body.get("protocol"), join(path, "protocol")).upper() or "ANY"
    protocols = PROTOCOLS.get(name)
    if protocols is None:
        reader.report(join(path, "protocol"), f"{name[:20]!r} is not one of {', '.join(PROTOCOLS)}")
        return []
    end = reader.integer(body.get("endPort"), join(path, "endPort"), 0, LAST_PORT) or 0
    text = reader.text(body.get("port"), join(path, "port"))
    at = join(path, "port")
    if not text:
        if not isinstance(body.get("port"), str | None):
            return []
        if not scope.options.extended_protocols:
            reader.report(at, 'port must be specified; "0" means every port')
            return []
        text = "0"
    if name in {"VRRP", "IGMP"} and text != "0":
        reader.report(at, f'{name} has no ports; leave it out or write "0"')
        return []
    if any(character.isalpha() for character in text):
        service = text.lower()
        if len(service) > 15 or not SERVICE_NAME.match(service):
            reader.report(at, f"{text[:40]!r} is no port number and no port name (at most 15 of a-z, 0-9, '-')")
            return []
        return [Traffic(protocol, name=service) for protocol in protocols]
    if not text.isascii() or not text.isdigit() or len(text) > 6 or int(text) > LAST_PORT:
        reader.report(at, f"{text[:40]!r} is not a port; must be 0 to {LAST_PORT} or a name")
        return []
    low = int(text)
    high = max(end, low) if low or end else LAST_PORT
    return [Traffic(protocol, low, high) for protocol in protocols]


def _read_server_names(reader: Reader, body: Doc, path: str) -> tuple[tuple[str, str], ...]:
    names: list[str] = []
    for at, element in reader.items(body, "serverNames", path):
        name = reader.text(element, at)
        if not SERVER_NAME.match(name):
            reader.report(at, f"{name[:60]!r} is not a server name; a leading '*.' or '**.' is the only wildcard")
        names.append(name.lower())
    if present(body, "serverNames") and not names:
        reader.report(join(path, "serverNames"), "must have at least one name where it is given")
    if len(set(names)) != len(names):
        reader.report(join(path, "serverNames"), "names a server twice")
    return tuple((name, "") for name in sorted(set(names)))


def _check_tls(reader: Reader, body: Doc, key: str, path: str) -> None:
    at = join(path, key)
    fields = reader.mapping(body.get(key), at, TLS_FIELDS)
    if not present(body, key):
        return
    secret = reader.mapping(fields.get("secret"), join(at, "secret"), frozenset({"name", "namespace"}))
    if not reader.text(secret.get("name"), f"{at}.secret.name"):
        reader.report(f"{at}.secret.name", "is missing")
    for name in ("trustedCA", "certificate", "privateKey"):
        reader.text(fields.get(name), join(at, name))


def _read_tls(reader: Reader, body: Doc, names: tuple[tuple[str, str], ...], path: str) -> L7:
    rules = set()
    for key, kind in (("terminatingTLS", TERMINATING), ("originatingTLS", ORIGINATING)):
        if present(body, key):
            fields = reader.mapping(body[key], join(path, key))
            context = {name: fields.get(name) for name in sorted(TLS_FIELDS)}
            rules.add(OtherRule(kind, tuple((name, repr(value)) for name, value in context.items() if value)))
    if not names and not present(body, "terminatingTLS"):
        return L7(ORIGINATING, other=frozenset(rules))  # what comes in need not be TLS
    return L7(TLS, other=frozenset({*rules, OtherRule(TLS, names)}))


def _read_listener(reader: Reader, body: Doc, path: str, direction: Direction, scope: Scope) -> L7 | None:
    if not present(body, "listener"):
        return None
    at = join(path, "listener")
    fields = reader.mapping(body["listener"], at, LISTENER_FIELDS)
    if direction == Direction.INGRESS:
        reader.report(at, "is allowed on egress only")
    config = reader.mapping(fields.get("envoyConfig"), f"{at}.envoyConfig", frozenset({"kind", "name"}))
    kind = reader.text(config.get("kind"), f"{at}.envoyConfig.kind")
    if scope.clusterwide and kind == "CiliumEnvoyConfig":
        reader.report(f"{at}.envoyConfig.kind", "a clusterwide policy must use CiliumClusterwideEnvoyConfig")
    if kind not in {"", "CiliumEnvoyConfig", "CiliumClusterwideEnvoyConfig"}:
        reader.report(f"{at}.envoyConfig.kind", f"{kind[:40]!r} is unknown")
    name = reader.text(fields.get("name"), f"{at}.name")
    if not name or not reader.text(config.get("name"), f"{at}.envoyConfig.name"):
        reader.report(at, "needs a name and envoyConfig.name")
    priority = reader.integer(fields.get("priority"), f"{at}.priority", 1, 100)
    rule = OtherRule(LISTENER, (("name", f"{config.get('name')}/{name}"), ("priority", str(priority or 0))))
    return L7(LISTENER, other=frozenset({rule}))
