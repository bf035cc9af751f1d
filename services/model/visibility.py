"""Whose requests a pod's annotations ask to be told without any policy. Pure.

policy.cilium.io/proxy-visibility: "<Ingress/80/TCP/HTTP>,<Egress/8080/TCP/HTTP>"
ciliate.io/http-visibility: "80, egress/8080"     a port alone: of requests to the pod
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from services.model.verdict import Direction

FIELD_FORM, OWN_FORM = "policy.cilium.io/proxy-visibility", "ciliate.io/http-visibility"
MOST = 64
"""Ports of one pod."""
Port = tuple[Direction, int]
_FIELD_ITEM = re.compile(r"<(Ingress|Egress)/([0-9]{1,5})/(TCP|UDP|SCTP|ANY)/([A-Za-z]{3,32})>")
_OWN_ITEM = re.compile(r"(?:(ingress|egress)/)?([0-9]{1,5})")


def read_visibility(annotations: Mapping[str, str]) -> tuple[frozenset[Port], tuple[str, ...]]:
    """The ports, and what is wrong with the annotations: an item that cannot be read asks for nothing."""
    problems: list[str] = []
    found: set[Port] = set()
    for name, read in ((FIELD_FORM, _field_item), (OWN_FORM, _own_item)):
        found |= _items(annotations.get(name, ""), read, f"metadata.annotations[{name!r}]", problems)
    if len(found) > MOST:
        text = f"{len(found)} ports for HTTP visibility: {MOST} are told, the lowest first"
        problems.append(f"metadata.annotations: {text}")
        found = set(sorted(found, key=lambda port: (port[1], port[0]))[:MOST])
    return frozenset(found), tuple(problems)


def _items(text: str, read: Callable[[str], Port | str], place: str, problems: list[str]) -> set[Port]:
    found: set[Port] = set()
    for item in text.split(",") if text.strip() else ():
        port = read(item.strip())
        if isinstance(port, str):
            problems.append(f"{place}: {item.strip()[:60]!r} {port}")
        elif not 0 < port[1] < 1 << 16:
            problems.append(f"{place}: {item.strip()[:60]!r} is no port: write a number from 1 to 65535")
        else:
            found.add(port)
    return found


def _field_item(item: str) -> Port | str:
    match = _FIELD_ITEM.fullmatch(item)
    if match is None:
        return "is not understood: write <Ingress/80/TCP/HTTP>"
    direction, port, protocol, kind = match.groups()
    if kind.upper() != "HTTP":
        return "asks for another protocol than HTTP, which is what is told without policy"
    if protocol not in {"TCP", "ANY"}:
        return "asks for HTTP over another protocol than TCP"
    return Direction[direction.upper()], int(port)


def _own_item(item: str) -> Port | str:
    match = _OWN_ITEM.fullmatch(item)
    if match is None:
        return "is not understood: write a port, or egress/ and a port"
    return Direction[(match[1] or "ingress").upper()], int(match[2])
