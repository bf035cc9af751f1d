"""What a Service asks for by annotation (policy-semantics 8.4, 8.5). A value that means nothing is a problem and counts
as absent; where absence would open something, the Service is left out instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from services.agent.calc.services.options import Algorithm, Forwarding, LbOptions
from services.agent.calc.services.problems import Problem, ProblemKind
from services.model.label_query import matches
from services.model.services import Service

ALGORITHM = "service.cilium.io/lb-algorithm"
FORWARDING = "service.cilium.io/forwarding-mode"
RANGES_POLICY = "service.cilium.io/src-ranges-policy"
TYPES = "service.cilium.io/type"
NODE = "service.cilium.io/node"
NODE_SELECTOR = "service.cilium.io/node-selector"


E = TypeVar("E", bound=StrEnum)


class Kind(StrEnum):
    """Where a frontend's address comes from."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_IP = "ExternalIP"
    HOST_PORT = "HostPort"


_ALL = frozenset(Kind)


@dataclass(frozen=True, slots=True)
class Wishes:
    """The annotations' outcome on this node."""

    algorithm: Algorithm
    forwarding: Forwarding
    deny_ranges: bool
    kinds: frozenset[Kind]
    """Which frontends to make."""
    problems: tuple[Problem, ...] = ()


def read(service: Service, labels: Mapping[str, str], options: LbOptions) -> Wishes:
    """What a Service wishes, on a node with these labels."""
    if not service.annotations:
        return Wishes(options.algorithm, options.forwarding, False, _ALL)
    problems: list[Problem] = []
    found = service.annotations if options.annotations else {}
    algorithm = _choice(found, ALGORITHM, Algorithm, options.algorithm, problems)
    forwarding = _choice(found, FORWARDING, Forwarding, options.forwarding, problems)
    policy = service.annotations.get(RANGES_POLICY, "allow")
    if policy not in ("allow", "deny"):
        problems.append(_bad(RANGES_POLICY, policy, "allow or deny; counts as allow"))
    kinds = _kinds(service.annotations, problems)
    if not _serves(service.annotations, labels, problems):
        # Inside the cluster a Service is everywhere; only what is exposed depends on the node.
        kinds &= {Kind.CLUSTER_IP}
    return Wishes(algorithm, forwarding, policy == "deny", kinds, tuple(problems))


def _choice(annotations: Mapping[str, str], name: str, kind: type[E], default: E, problems: list[Problem]) -> E:
    text = annotations.get(name)
    if text is None:
        return default
    try:
        return kind(text.strip().lower())
    except ValueError:
        problems.append(_bad(name, text, f"{' or '.join(kind)}; counts as {default}"))
        return default


def _kinds(annotations: Mapping[str, str], problems: list[Problem]) -> frozenset[Kind]:
    text = annotations.get(TYPES)
    if text is None:
        return _ALL
    known = {kind.value.lower(): kind for kind in Kind if kind is not Kind.HOST_PORT} | {
        "externalips": Kind.EXTERNAL_IP
    }
    found = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part.lower() in known:
            found.add(known[part.lower()])
        else:
            problems.append(_bad(TYPES, part, "a list of ClusterIP, NodePort, LoadBalancer, ExternalIP"))
    return frozenset(found)


def _serves(annotations: Mapping[str, str], labels: Mapping[str, str], problems: list[Problem]) -> bool:
    wanted = annotations.get(NODE)
    if wanted is not None and labels.get(NODE) != wanted:
        return False
    query = annotations.get(NODE_SELECTOR, "")
    try:
        return matches(query, labels)
    except ValueError as error:
        problems.append(_bad(NODE_SELECTOR, query, f"a label selector ({error}); no node serves it outside"))
        return False


def _bad(name: str, value: str, wanted: str) -> Problem:
    return Problem(ProblemKind.BAD_ANNOTATION, f"{name}: {value!r} must be {wanted}")
