"""Services and pools of addresses, as documents -> what `lb_ipam` decides about. Pure; ValueError names the field."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any

from services.model import lb_ipam
from services.model.addresses import IPAddress
from services.model.keys import ObjectKey
from services.model.lb_ipam import Pool, Want

_NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_VERSIONS = {"IPv4": 4, "IPv6": 6}
NAMESPACE_LABEL = "io.kubernetes.service.namespace"
NAME_LABEL = "io.kubernetes.service.name"

Document = Mapping[str, Any]
Selects = Callable[[Mapping[str, str], str], bool]


def wants_addresses(document: Document) -> bool:
    """Whether it is a Service of type LoadBalancer, of a class that is ours."""
    spec = document.get("spec") or {}
    ours = (spec.get("loadBalancerClass") or "") in lb_ipam.CLASSES
    return document.get("kind") == "Service" and spec.get("type") == "LoadBalancer" and ours


def held_by(service: Document) -> tuple[IPAddress, ...]:
    """Addresses in its status; what is no address (a host name of another controller) is not held."""
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress")
    found = []
    for entry in ingress if isinstance(ingress, list) else ():
        try:
            found.append(ipaddress.ip_address(entry["ip"]))
        except (ValueError, KeyError, TypeError):
            continue
    return tuple(found)


def want_of(service: Document) -> Want:
    """What a Service asks for."""
    spec, metadata = service["spec"], service["metadata"]
    annotations = metadata.get("annotations") or {}
    labels = metadata.get("labels") or {}
    namespace = metadata.get("namespace") or "default"
    asked = [*(annotations.get(lb_ipam.IPS_ANNOTATION) or "").split(","), str(spec.get("loadBalancerIP") or "")]
    cross = (annotations.get(lb_ipam.SHARING_CROSS_ANNOTATION) or "").split(",")
    return Want(
        key=ObjectKey("Service", namespace, metadata["name"]),
        versions=tuple(_VERSIONS[family] for family in spec.get("ipFamilies") or ["IPv4"] if family in _VERSIONS),
        ports=frozenset((p["port"], _NUMBERS.get(p.get("protocol", "TCP"), 0)) for p in spec.get("ports") or ()),
        labels={**labels, NAMESPACE_LABEL: namespace, NAME_LABEL: metadata["name"]},
        requested=tuple(_address(text.strip()) for text in asked if text.strip()),
        held=held_by(service),
        sharing_key=annotations.get(lb_ipam.SHARING_KEY_ANNOTATION) or "",
        sharing_with=frozenset(part.strip() for part in cross if part.strip()),
        created=str(metadata.get("creationTimestamp") or ""),
    )


def _address(text: str) -> IPAddress:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise ValueError(f"metadata.annotations[{lb_ipam.IPS_ANNOTATION}]: {text!r} is no address") from error


def pool_of(document: Document) -> Pool:
    """A CiliumLoadBalancerIPPool."""
    spec, name = document.get("spec") or {}, document["metadata"]["name"]
    try:
        ranges = lb_ipam.read_ranges(spec.get("blocks") or (), edges=spec.get("allowFirstLastIPs", "Yes") != "No")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"spec.{error}") from error
    return Pool(name, ranges, _selector(spec.get("serviceSelector")), bool(spec.get("disabled")))


def _selector(selector: Mapping[str, Any] | None) -> Selects:
    """`serviceSelector`: labels, and the Service's name and namespace as if they were labels."""
    wanted = dict((selector or {}).get("matchLabels") or {})
    expressions = [_expression(each) for each in (selector or {}).get("matchExpressions") or ()]

    def selects(labels: Mapping[str, str], of: str) -> bool:
        known = {NAMESPACE_LABEL: of, **labels}
        return wanted.items() <= known.items() and all(holds(known) for holds in expressions)

    return selects


def _expression(expression: Mapping[str, Any]) -> Callable[[Mapping[str, str]], bool]:
    key, values = str(expression.get("key") or ""), frozenset(expression.get("values") or ())
    match expression.get("operator"):
        case "In":
            return lambda labels: labels.get(key) in values
        case "NotIn":
            return lambda labels: labels.get(key) not in values
        case "Exists":
            return lambda labels: key in labels
        case "DoesNotExist":
            return lambda labels: key not in labels
    raise ValueError(
        f"spec.serviceSelector.matchExpressions: operator {expression.get('operator')!r} is none of "
        "In, NotIn, Exists, DoesNotExist"
    )
