"""What Kubernetes gives a Service beyond its cluster address: node ports, load balancer addresses, a health check port.

Pure: documents in, documents out. Addresses come from applied CiliumLoadBalancerIPPools, or from a pool of the
sandbox's own while there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from services.common.errors import Conflict, Exhausted, Invalid
from services.model import lb_ipam
from services.model.lb_documents import pool_of, want_of, wants_addresses
from services.model.lb_ipam import Pool
from services.model.objects import ObjectKey
from services.sandbox.manifests import Document, key_of
from services.sandbox.netns import BALANCER4, BALANCER6

T = TypeVar("T")

POOL_KIND = "CiliumLoadBalancerIPPool"
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
    pools = [_read(pool_of, document) for document in objects.values() if document["kind"] == POOL_KIND]
    wants = [_read(want_of, document) for document in objects.values() if wants_addresses(document)]
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


def _read(read: Callable[[Document], T], document: Document) -> T:
    try:
        return read(document)
    except ValueError as error:
        raise Invalid(f"{key_of(document)}: {error}") from error
