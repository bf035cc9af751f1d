"""What the cluster's address table says of this node's pods. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from services.model.addresses import IPAddress
from services.model.identity import NumericIdentity
from services.model.objects import IpEntry, LocalEndpoint, Pod

MAX_NAMED_PORTS = 64
"""Of a pod, that other nodes hear of."""


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """This node: its name, its address on the overlay, how many endpoints its maps can hold."""

    name: str
    tunnel: IPAddress | None
    max_endpoints: int


def pod_rows(
    node: NodeIdentity,
    addresses: tuple[IPAddress, ...],
    identity: NumericIdentity,
    pod: Pod,
    workload: tuple[str, str],
) -> list[IpEntry]:
    """Other nodes do not follow our pods: what policies and flows need of them travels with the addresses."""
    named = tuple(port for port in pod.ports if port.name)[:MAX_NAMED_PORTS]
    return [
        IpEntry(
            ipaddress.ip_network(address), identity, node.name, node.tunnel, pod.namespace, pod.name, named, workload
        )
        for address in addresses
    ]


def endpoint_rows(node: NodeIdentity, endpoint: LocalEndpoint) -> list[IpEntry]:
    """The rows of an endpoint as it stands."""
    pod = Pod(endpoint.namespace, endpoint.pod, ports=endpoint.ports)
    return pod_rows(node, endpoint.addresses, endpoint.identity, pod, endpoint.workload)
