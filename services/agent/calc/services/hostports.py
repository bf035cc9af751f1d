"""Host ports of this node's pods, as Services of one endpoint each (policy-semantics 8.1)."""

from __future__ import annotations

from services.agent.calc.services.frontends import HOST_PORT
from services.model.objects import HostPort, Pod
from services.model.services import EndpointSlice, Service, ServicePort, SliceEndpoint, TrafficPolicy
from services.model.verdict import Protocol

Name = tuple[str, str]
_OVER = ("Succeeded", "Failed")


def services_of(pod: Pod, node: str) -> dict[Name, tuple[Service, EndpointSlice]]:
    """By name; '/' cannot be in a real Service's. A pod that has ended has none: its address may be another's."""
    if pod.node != node or pod.host_network or pod.phase in _OVER or not pod.addresses:
        return {}
    found = {}
    for port in pod.host_ports:
        protocol = Protocol(port.protocol).name.lower()
        name = f"{pod.name}/host-port/{port.port}-{protocol}" + (f"-{port.host_ip}" if port.host_ip else "")
        found[pod.namespace, name] = _service(pod, name, port), _slice(pod, name, port)
    return found


def _service(pod: Pod, name: str, port: HostPort) -> Service:
    return Service(
        namespace=pod.namespace,
        name=name,
        type=HOST_PORT,
        ports=(ServicePort("", port.port, port.protocol, port.container_port),),
        external_ips=(port.host_ip,) if port.host_ip else (),
        external_policy=TrafficPolicy.LOCAL,
    )


def _slice(pod: Pod, name: str, port: HostPort) -> EndpointSlice:
    endpoint = SliceEndpoint(pod.addresses, node=pod.node)
    return EndpointSlice(pod.namespace, name, name, (("", port.container_port, port.protocol),), (endpoint,))
