"""What Kubernetes gives a Service beyond its cluster address: node ports, load balancer addresses, a health check port.

Pure: documents in, documents out. Addresses come from applied CiliumLoadBalancerIPPools, or from a pool of the
sandbox's own while there is none.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from services.common.errors import Conflict, Exhausted, Invalid
from services.model import lb_ipam
from services.model.addresses import IPAddress
from services.model.lb_ipam import Pool, Want
from services.model.objects import ObjectKey
from services.sandbox.manifests import Document, key_of
from services.sandbox.netns import BALANCER4, BALANCER6

NODE_PORTS = range(30000, 32768)
DEFAULT_POOL = Pool("sandbox", lb_ipam.read_ranges([{"cidr": BALANCER4}, {"cidr": BALANCER6}], edges=False))
_NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132}


def with_node_ports(service: Document, before: Document | None, known: Iterable[Document]) -> Document:
    """`service` with node ports (and the health check's) where its type has them: those that it names, those that it
    had, others free ones. Raises `Conflict` where one is another Service's, `Invalid` where it is out of range."""
    spec = dict(service["spec"])
    if spec.get("type") not in ("NodePort", "LoadBalancer"):
        return service
    key = key_of(service)
    taken = _taken(other for other in known if other["kind"] == "Service" and key_of(other) != key)
    if spec["type"] == "NodePort" or spec.get("allocateLoadBalancerNodePorts", True) is not False:
        had = {_identity(port): port.get("nodePort") for port in (before or {"spec": {}})["spec"].get("ports") or ()}
        spec["ports"] = [
            _with_node_port(key, port, had.get(_identity(port)), taken) for port in spec.get("ports") or ()
        ]
    if spec["type"] == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local":
        held = (before or {"spec": {}})["spec"].get("healthCheckNodePort")
        wanted = spec.get("healthCheckNodePort") or held
        spec["healthCheckNodePort"] = _take(key, "spec.healthCheckNodePort", wanted, "TCP", taken)
    return {**service, "spec": spec}


def _identity(port: Mapping[str, Any]) -> tuple[Any, ...]:
    return port.get("name", ""), port["port"], port.get("protocol", "TCP")


def _with_node_port(
    key: ObjectKey, port: Document, had: int | None, taken: dict[tuple[int, str], ObjectKey]
) -> Document:
    where = f"spec.ports[{port.get('name') or port['port']}].nodePort"
    number = _take(key, where, port.get("nodePort") or had, port.get("protocol", "TCP"), taken)
    return {**port, "nodePort": number}


def _take(
    key: ObjectKey, field: str, wanted: int | None, protocol: str, taken: dict[tuple[int, str], ObjectKey]
) -> int:
    if wanted:
        if wanted not in NODE_PORTS:
            raise Invalid(f"{key}: {field}: {wanted} is not in {NODE_PORTS[0]}-{NODE_PORTS[-1]}; remove it to get one")
        if (wanted, protocol) in taken:
            raise Conflict(f"{key}: {field}: {wanted} belongs to {taken[wanted, protocol]}; choose another")
        taken[wanted, protocol] = key
        return wanted
    free = next((number for number in NODE_PORTS if not any((number, p) in taken for p in _NUMBERS)), None)
    if free is None:
        raise Exhausted(f"{key}: {field}: no node port is left in {NODE_PORTS[0]}-{NODE_PORTS[-1]}")
    taken[free, protocol] = key
    return free


def _taken(others: Iterable[Document]) -> dict[tuple[int, str], ObjectKey]:
    found = {}
    for other in others:
        for port in other["spec"].get("ports") or ():
            if port.get("nodePort"):
                found[port["nodePort"], port.get("protocol", "TCP")] = key_of(other)
        if other["spec"].get("healthCheckNodePort"):
            found[other["spec"]["healthCheckNodePort"], "TCP"] = key_of(other)
    return found


def with_addresses(objects: Mapping[ObjectKey, Document]) -> dict[ObjectKey, Document]:
    """All objects, Services of type LoadBalancer with the addresses that they have now in their status."""
    pools = [_pool(document) for document in objects.values() if document["kind"] == "CiliumLoadBalancerIPPool"]
    wants = [_want(document) for document in objects.values() if _wants_addresses(document)]
    found = dict(objects)
    for key, assignment in lb_ipam.assign(pools or [DEFAULT_POOL], wants).items():
        status: Document = {
            "loadBalancer": {"ingress": [{"ip": str(a), "ipMode": "VIP"} for a in assignment.addresses]}
        }
        if assignment.problem:
            condition = {"type": "cilium.io/IPAMRequestSatisfied", "status": "False", "message": assignment.problem}
            status["conditions"] = [condition]
        if found[key].get("status") != status:
            found[key] = {**found[key], "status": status}
    return found


def _wants_addresses(document: Document) -> bool:
    spec = document.get("spec") or {}
    ours = spec.get("loadBalancerClass", "") in lb_ipam.CLASSES
    return document["kind"] == "Service" and spec.get("type") == "LoadBalancer" and ours


def _want(service: Document) -> Want:
    spec, metadata = service["spec"], service["metadata"]
    annotations = metadata.get("annotations") or {}
    asked = [*annotations.get(lb_ipam.IPS_ANNOTATION, "").split(","), str(spec.get("loadBalancerIP") or "")]
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    versions = {"IPv4": 4, "IPv6": 6}
    return Want(
        key=key_of(service),
        versions=tuple(versions[family] for family in spec.get("ipFamilies") or ["IPv4"]),
        ports=frozenset((p["port"], _NUMBERS[p.get("protocol", "TCP")]) for p in spec.get("ports") or ()),
        labels=metadata.get("labels") or {},
        requested=tuple(_address(key_of(service), text.strip()) for text in asked if text.strip()),
        held=tuple(ipaddress.ip_address(entry["ip"]) for entry in ingress if entry.get("ip")),
        sharing_key=annotations.get(lb_ipam.SHARING_KEY_ANNOTATION, ""),
        sharing_with=frozenset(
            part.strip() for part in annotations.get(lb_ipam.SHARING_CROSS_ANNOTATION, "").split(",") if part.strip()
        ),
    )


def _address(key: ObjectKey, text: str) -> IPAddress:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise Invalid(f"{key}: metadata.annotations[{lb_ipam.IPS_ANNOTATION}]: {text!r} is no address") from error


def _pool(document: Document) -> Pool:
    spec, key = document.get("spec") or {}, key_of(document)
    try:
        ranges = lb_ipam.read_ranges(spec.get("blocks") or (), edges=spec.get("allowFirstLastIPs", "Yes") != "No")
    except (ValueError, AttributeError) as error:
        raise Invalid(f"{key}: spec.{error}") from error
    return Pool(key.name, ranges, _selector(spec.get("serviceSelector")), bool(spec.get("disabled")))


def _selector(selector: Mapping[str, Any] | None) -> Callable[[Mapping[str, str], str], bool]:
    wanted = dict((selector or {}).get("matchLabels") or {})
    namespace = wanted.pop("io.kubernetes.service.namespace", None)

    def selects(labels: Mapping[str, str], of: str) -> bool:
        return wanted.items() <= labels.items() and namespace in (None, of)

    return selects
