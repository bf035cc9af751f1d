"""Policy documents that are almost right, made of right ones by choices that somebody else makes.

`pick(n)` answers a number below n: Hypothesis' randomness, a fuzzer's bytes and a plain generator all fit.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

Pick = Callable[[int], int]

_META = {"name": "fuzzed", "namespace": "red"}


def _policy(kind: str, **spec: Any) -> dict[str, Any]:
    version = "networking.k8s.io/v1" if kind == "NetworkPolicy" else "cilium.io/v2"
    return {"apiVersion": version, "kind": kind, "metadata": dict(_META), "spec": spec}


_APP = {"matchLabels": {"app": "a"}}
_WORDS = {"matchExpressions": [{"key": "k8s:app", "operator": "In", "values": ["a", "b"]}]}
_PLAIN = {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["b"]}]}
_TCP = {"port": "80", "protocol": "TCP"}
SEEDS: tuple[dict[str, Any], ...] = (
    _policy(
        "NetworkPolicy",
        podSelector=_APP,
        policyTypes=["Ingress", "Egress"],
        ingress=[
            {
                "from": [
                    {"podSelector": _APP, "namespaceSelector": _PLAIN},
                    {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
                ],
                "ports": [{"port": 80, "endPort": 90, "protocol": "TCP"}, {"port": "web"}],
            }
        ],
        egress=[{"to": [{"namespaceSelector": {}}], "ports": [{"port": 53, "protocol": "UDP"}]}, {}],
    ),
    _policy(
        "CiliumNetworkPolicy",
        endpointSelector=_WORDS,
        enableDefaultDeny={"ingress": True, "egress": False},
        ingress=[
            {
                "fromEndpoints": [_APP],
                "authentication": {"mode": "disabled"},
                "toPorts": [
                    {
                        "ports": [_TCP],
                        "rules": {"http": [{"method": "GET", "path": "/a/[0-9]+", "host": "h", "headers": ["X-A: 1"]}]},
                    }
                ],
            },
            {"fromEntities": ["world"], "icmps": [{"fields": [{"type": 8, "family": "IPv4"}]}]},
        ],
        ingressDeny=[{"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.2.0.0/16"]}]}],
    ),
    _policy(
        "CiliumNetworkPolicy",
        endpointSelector={},
        egress=[
            {
                "toEndpoints": [{}],
                "toPorts": [
                    {"ports": [{"port": "53", "protocol": "ANY"}], "rules": {"dns": [{"matchPattern": "*.x"}]}}
                ],
            },
            {"toFQDNs": [{"matchName": "a.example"}, {"matchPattern": "**.example"}]},
            {"toServices": [{"k8sService": {"serviceName": "s", "namespace": "red"}}]},
            {"toCIDR": ["192.0.2.0/24"], "toPorts": [{"ports": [{"port": "1", "endPort": 65535, "protocol": "UDP"}]}]},
        ],
        egressDeny=[{"toEntities": ["host"], "toPorts": [{"ports": [_TCP]}]}],
    ),
    _policy(
        "CiliumClusterwideNetworkPolicy",
        endpointSelector=_APP,
        ingress=[{"fromEndpoints": [{"matchLabels": {"k8s:io.kubernetes.pod.namespace": "blue"}}]}, {}],
        egress=[{"toEntities": ["cluster"], "toPorts": [{"ports": [{"port": "web", "protocol": "TCP"}]}]}],
    ),
)
SCALARS: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    65536,
    2**70,
    1.5,
    float("nan"),
    "",
    "0",
    "\0",
    "\ud800",
    "x" * 5000,
    "a=b",
    "any:",
    "reserved:host",
    "::/0",
    "10.0.0.0/33",
    "(((((((((a+)+)+)+)+)+)+)+)+)",
    "[",
    "*.*.*.*.*",
    "TCP",
    "ANY",
    "80",
    "In",
    "Ingress",
)


def mutated(pick: Pick, seeds: Sequence[dict[str, Any]] = SEEDS) -> Any:
    """A document with a few places changed."""
    document: Any = copy.deepcopy(seeds[pick(len(seeds))])
    for _ in range(pick(4)):
        document = _change(document, pick)
    return document


def _change(document: Any, pick: Pick) -> Any:
    places = list(_places(document))
    if not places:
        return _value(pick)
    owner, key = places[pick(len(places))]
    match pick(8):
        case 0:
            del owner[key]
        case 1:
            owner[key] = [owner[key]]
        case 2:
            owner[key] = {"a": owner[key]}
        case 3:
            owner[key] = copy.deepcopy([owner[key]] * (1 + pick(60)))
        case 4 if isinstance(owner, dict):
            other, name = places[pick(len(places))]
            owner[_key(name, pick)] = copy.deepcopy(other[name])
        case 5:
            other, name = places[pick(len(places))]
            owner[key] = copy.deepcopy(other[name])
        case 6 if isinstance(owner[key], str):
            text, at = owner[key], pick(len(owner[key]) + 1)
            owner[key] = text[:at] + str(_value(pick))[:40] + text[at + pick(3) :]
        case _:
            owner[key] = _value(pick)
    return document


def _key(name: object, pick: Pick) -> Any:
    return name if isinstance(name, str) and pick(2) else _value(pick) if pick(2) else SCALARS[pick(8)]


def _value(pick: Pick) -> Any:
    return SCALARS[pick(len(SCALARS))]


def _places(value: Any) -> Any:
    """Every (container, key) of a document."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield value, key
            yield from _places(child)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield value, index
            yield from _places(child)


def as_text(document: Any) -> str:
    """What stands in a file; JSON is YAML."""
    return json.dumps(document, default=str, skipkeys=True)
