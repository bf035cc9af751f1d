"""Reads `toPorts[].rules`: exactly one kind of HTTP, DNS, Kafka or a generic parser (policy-semantics 2.13)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import re2

from services.model.verdict import Direction
from services.policy.cilium_peers import Scope, read_dns_name
from services.policy.l7 import L7, DnsRule, HeaderMatch, HttpRule, OtherRule
from services.policy.reader import Doc, Reader, join, present

RULES_FIELDS = frozenset({"http", "kafka", "dns", "l7proto", "l7"})
HTTP_FIELDS = frozenset({"path", "method", "host", "headers", "headerMatches"})
HEADER_FIELDS = frozenset({"name", "value", "secret", "mismatch"})
KAFKA_FIELDS = frozenset({"role", "apiKey", "apiVersion", "clientID", "topic"})
ACTIONS = frozenset({"LOG", "ADD", "DELETE", "REPLACE"})
KAFKA_TOPIC = re.compile(r"[a-zA-Z0-9._-]{0,255}\Z")
REWRITING = ACTIONS - {"LOG"}
REGEX_FIXES = (
    (re.compile(r"\(\?<?[=!]"), "look-around is not part of it: write what may match as alternatives"),
    (re.compile(r"\\[1-9]|\(\?P="), "back-references are not part of it: write the alternatives out"),
    (re.compile(r"[*+?}]\+|\(\?>"), "possessive and atomic parts are not part of it: leave the second + or the ?> out"),
)
"""What other dialects have and RE2 has not, with what to write instead."""
MAX_REGEX = 2048


def read_l7(
    reader: Reader, owner: Doc, path: str, direction: Direction, scope: Scope, ports: Sequence[Doc]
) -> L7 | None:
    """The rules of one toPorts element, None where they do not narrow anything."""
    at = join(path, "rules")
    body = reader.mapping(owner.get("rules"), at, RULES_FIELDS)
    kinds = [kind for kind in ("http", "kafka", "dns") if reader.sequence(body.get(kind), join(at, kind))]
    if body.get("l7proto"):
        kinds.append("l7proto")
    elif reader.sequence(body.get("l7"), join(at, "l7")):
        reader.report(join(at, "l7"), "needs l7proto, the name of the parser")
    if not kinds:
        return None
    if len(kinds) > 1:
        reader.report(at, f"has {' and '.join(kinds)}; one element may have rules of one kind only")
    kind = kinds[0]
    _check_place(reader, at, kind, direction, scope)
    _check_ports(reader, path, kind, ports)
    match kind:
        case "http":
            rules = [read_http(reader, rule, where) for where, rule in reader.items(body, "http", at)]
            return L7("http", http=frozenset(rule for rule in rules if rule is not None))
        case "dns":
            names = [read_dns_name(reader, rule, where) for where, rule in reader.items(body, "dns", at)]
            return L7("dns", dns=frozenset(DnsRule(*name) for name in names if name is not None))
        case "kafka":
            return L7("kafka", other=frozenset(_read_kafka(reader, r, w) for w, r in reader.items(body, "kafka", at)))
        case _:
            return _read_generic(reader, body, at)


def _check_place(reader: Reader, path: str, kind: str, direction: Direction, scope: Scope) -> None:
    if kind == "dns" and direction == Direction.INGRESS:
        reader.report(join(path, "dns"), "DNS rules are allowed on egress only")
    if scope.host and (direction == Direction.INGRESS or kind != "dns"):
        reader.report(path, "a policy for nodes may have DNS rules on egress and no other L7 rules")


def _check_ports(reader: Reader, path: str, kind: str, ports: Sequence[Doc]) -> None:
    if kind == "dns" and not ports:
        reader.report(join(path, "ports"), "DNS rules need ports; port 53 must be specified")
    for index, port in enumerate(ports):
        at = f"{path}.ports[{index}]"
        protocol = str(port.get("protocol") or "ANY").upper()
        if kind == "dns":
            if protocol not in {"TCP", "UDP", "ANY"}:
                reader.report(join(at, "protocol"), f"DNS rules go with TCP, UDP or ANY, not {protocol[:20]}")
            if port.get("endPort"):
                reader.report(join(at, "endPort"), "DNS rules cannot have a port range")
        elif protocol != "TCP":
            reader.report(join(at, "protocol"), f"{kind} rules need protocol TCP, not {protocol[:20]}")
        if port.get("port") == "0":
            reader.report(join(at, "port"), f'{kind} rules need a port other than "0"')


def read_http(reader: Reader, document: Any, path: str) -> HttpRule | None:
    """One HTTP rule; None where it can never match (a header value that only a missing secret knows)."""
    body = reader.mapping(document, path, HTTP_FIELDS)
    texts: dict[str, str | None] = {}
    for key in ("method", "path", "host"):
        text = reader.text(body.get(key), join(path, key))
        texts[key] = text or None
        _check_regex(reader, text, join(path, key), needed=key != "host")
    headers = [_read_header(reader, text, at) for at, text in reader.items(body, "headers", path)]
    for at, element in reader.items(body, "headerMatches", path):
        fields = reader.mapping(element, at, HEADER_FIELDS)
        name = reader.text(fields.get("name"), join(at, "name"))
        if not name:
            reader.report(join(at, "name"), "is missing")
        action = reader.text(fields.get("mismatch"), join(at, "mismatch"))
        if action and action not in ACTIONS:
            reader.report(join(at, "mismatch"), f"{action[:20]!r} is not one of {', '.join(sorted(ACTIONS))}")
        value = reader.text(fields.get("value"), join(at, "value"))
        if present(fields, "secret") and not value:
            reader.warn(join(at, "secret"), "secrets are not read; the rule never matches")
            return None
        if action == "LOG":
            continue
        if action in REWRITING:
            reader.report(
                join(at, "mismatch"),
                f"{action} would rewrite requests, and nothing here does; leave mismatch out to refuse requests that "
                "do not match, or write LOG to let them pass",
            )
        headers.append(HeaderMatch(name.lower(), value or None))
    return HttpRule(texts["method"], texts["path"], texts["host"], tuple(sorted(set(headers), key=repr)))


def _check_regex(reader: Reader, text: str, path: str, *, needed: bool) -> None:
    if not text:
        return
    if len(text) > MAX_REGEX:
        reader.report(path, f"has {len(text)} characters; at most {MAX_REGEX} are allowed")
        return
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(text, options)
    except (re2.error, UnicodeEncodeError) as error:
        said = error.args[0]
        reason = said.decode(errors="replace") if isinstance(said, bytes) else "not UTF-8"
        fix = next((f"; {fix}" for pattern, fix in REGEX_FIXES if pattern.search(text)), "")
        (reader.report if needed else reader.warn)(path, f"is not a regular expression of RE2: {reason}{fix}")


def _read_header(reader: Reader, document: Any, path: str) -> HeaderMatch:
    """`Name` must be there; `Name value` or `Name: value` must have exactly that value."""
    text = reader.text(document, path)
    name, space, value = text.partition(" ")
    if not name:
        reader.report(path, "is empty; write the name of a header")
    return HeaderMatch(name.removesuffix(":").lower() if space else name.lower(), value if space else None)


def _read_kafka(reader: Reader, document: Any, path: str) -> OtherRule:
    body = reader.mapping(document, path, KAFKA_FIELDS)
    texts = {key: reader.text(body.get(key), join(path, key)) for key in sorted(KAFKA_FIELDS)}
    if texts["role"] and texts["apiKey"]:
        reader.report(path, "role and apiKey cannot both be set")
    if texts["role"] and texts["role"].lower() not in {"produce", "consume"}:
        reader.report(join(path, "role"), f"{texts['role'][:20]!r} is not produce or consume")
    version = texts["apiVersion"]
    if version and not (version.isascii() and version.isdigit() and len(version) < 6 and int(version) <= 32767):
        reader.report(join(path, "apiVersion"), f"{version[:20]!r} must be a number from 0 to 32767")
    if not KAFKA_TOPIC.match(texts["topic"]):
        reader.report(join(path, "topic"), "must have at most 255 letters, digits, '.', '_', '-'")
    return OtherRule("kafka", tuple((key, value) for key, value in texts.items() if value))


def _read_generic(reader: Reader, body: Doc, path: str) -> L7:
    parser = reader.text(body.get("l7proto"), join(path, "l7proto"))
    rules = []
    for at, element in reader.items(body, "l7", path):
        fields = reader.mapping(element, at)
        if "" in fields:
            reader.report(at, "has an empty key")
        rules.append(OtherRule(parser, tuple(sorted((key, reader.text(value, at)) for key, value in fields.items()))))
    return L7("l7proto", other=frozenset(rules) or frozenset({OtherRule(parser)}))
