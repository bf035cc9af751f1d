"""What the map draws as one node: a workload, a pod without one, a DNS name outside, a reserved identity.

A group's id is stable text, so that a link to it keeps its meaning: `workload:shop/Deployment/cart`, `pod:shop/job`,
`name:example.com`, `reserved:world`, `cidr:10.0.0.0/8`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from services.flows.entries import Party
from services.model.addresses import from_bytes

RESERVED = "reserved:"
CIDR = "cidr:"
UNKNOWN = "unknown:"


class By(StrEnum):
    """How parties are gathered."""

    WORKLOAD = "workload"
    POD = "pod"
    NAMESPACE = "namespace"
    IDENTITY = "identity"


@dataclass(frozen=True, slots=True)
class Group:
    """A node of the map. `kind`: workload, pod, namespace, identity, name, cidr, reserved or unknown."""

    id: str
    kind: str
    name: str
    namespace: str = ""
    detail: str = ""
    """A workload's kind (`Deployment`), an identity's labels."""


def namer(by: By) -> Callable[[Party], str]:
    """The id of a party's group."""
    return {By.WORKLOAD: _workload, By.POD: _pod, By.NAMESPACE: _namespace, By.IDENTITY: _identity}[by]


def group_of(text: str) -> Group:
    """What an id says."""
    kind, _, rest = text.partition(":")
    match kind:
        case "workload":
            namespace, _, rest = rest.partition("/")
            workload_kind, _, name = rest.partition("/")
            return Group(text, kind, name, namespace, workload_kind)
        case "pod":
            namespace, _, name = rest.partition("/")
            return Group(text, kind, name, namespace)
        case "identity":
            number, _, labels = rest.partition("/")
            return Group(text, kind, _label_name(labels) or number, "", labels)
        case "":
            return Group(UNKNOWN, "unknown", "unknown")
        case _:
            return Group(text, kind, rest or kind)


def _workload(party: Party) -> str:
    if party.workload:
        return f"workload:{party.namespace}/{party.workload_kind}/{party.workload}"
    return _pod(party)


def _pod(party: Party) -> str:
    if party.pod:
        return f"pod:{party.namespace}/{party.pod}"
    return _outside(party)


def _namespace(party: Party) -> str:
    return f"namespace:{party.namespace}" if party.namespace else _outside(party)


def _identity(party: Party) -> str:
    if party.namespace:
        return f"identity:{party.identity}/{','.join(party.labels)}"
    return _outside(party)


def _outside(party: Party) -> str:
    """A party that is no pod, by the best name there is. Addresses are no groups: there are too many."""
    if party.names:
        return f"name:{party.names[0]}"
    reserved = [label for label in party.labels if label.startswith(RESERVED)]
    for label in reserved:
        if label != "reserved:world" or len(party.labels) == 1:
            return label
    cidrs = [label.partition(":")[2].partition("=")[0] for label in party.labels if label.startswith(CIDR)]
    if cidrs:
        return f"cidr:{max(cidrs, key=_prefix_length)}"
    if reserved:
        return reserved[0]
    return f"address:{from_bytes(party.address)}" if party.namespace else UNKNOWN


def _prefix_length(cidr: str) -> int:
    digits = cidr.rpartition("/")[2]
    return int(digits) if digits.isdigit() else 0


def _label_name(labels: str) -> str:
    values = dict(label.partition("=")[::2] for label in labels.split(","))
    return next((values[key] for key in ("k8s:app.kubernetes.io/name", "k8s:app") if values.get(key)), "")
