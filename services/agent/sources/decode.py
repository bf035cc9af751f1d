"""Kubernetes documents (parsed YAML or JSON) -> the small frozen objects of `services.model.objects`.

Pure. Reads what the agent needs and ignores the rest, applying the API server's defaults, so that a raw manifest and
an object from the API mean the same. Policies stay documents: reading them is the business of `services.policy`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from services.agent.sources.decode_services import endpoint_slice, service
from services.agent.sources.fields import FieldError, Node, shared
from services.model.addresses import IPAddress
from services.model.objects import (
    POOL_ANNOTATION,
    ContainerPort,
    HostPort,
    KubeNode,
    KubeObject,
    Namespace,
    ObjectKey,
    Pod,
    PolicyObject,
)

NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"
_POD_TEMPLATE_HASH = "pod-template-hash"

Decoder = Callable[[Node, str], KubeObject]


def decode(document: Any, origin: str = "") -> KubeObject | None:
    """Read one document. None = a kind that the agent does not follow.

    Raises `FieldError` (an `Invalid`) with the field's path. `origin` ("file:line", "kubernetes") goes into policies.
    """
    node = Node(document)
    kind = node.get("kind").text()
    version = node.get("apiVersion").text()
    group = version.rpartition("/")[0]
    decoder = _DECODERS.get((group, kind))
    return decoder(node, origin) if decoder else None


def key_of(document: Any) -> ObjectKey | None:
    """The key alone, for deletions; None for kinds that the agent does not follow."""
    node = Node(document)
    kind, group = node.get("kind").text(), node.get("apiVersion").text().rpartition("/")[0]
    if (group, kind) not in _DECODERS:
        return None
    return ObjectKey(kind, "" if kind in _CLUSTER_SCOPED else _namespace(node), _name(node))


def _name(node: Node) -> str:
    return node.at("metadata", "name").text()


def _namespace(node: Node) -> str:
    return node.at("metadata", "namespace").text("default")


def _pod(node: Node, _origin: str) -> Pod:
    metadata, spec, status = node.get("metadata"), node.get("spec"), node.get("status")
    labels = metadata.get("labels").strings()
    return Pod(
        namespace=shared(_namespace(node)),
        name=_name(node),
        uid=metadata.get("uid").text(""),
        node=shared(spec.get("nodeName").text("")),
        labels=labels,
        annotations=metadata.get("annotations").strings(),
        service_account=shared(spec.get("serviceAccountName").text("default")),
        addresses=_pod_addresses(status),
        ports=shared(_container_ports(spec)),
        host_ports=_host_ports(spec),
        host_network=spec.get("hostNetwork").flag(False),
        phase=shared(status.get("phase").text("Pending")),
        workload=shared(_workload(metadata, labels)),
    )


def _pod_addresses(status: Node) -> tuple[IPAddress, ...]:
    addresses = [item.get("ip").address() for item in status.get("podIPs").items() if item.get("ip").value]
    if not addresses and status.get("podIP").value:
        addresses = [status.get("podIP").address()]
    return tuple(addresses)


def _containers(spec: Node) -> list[Node]:
    containers = list(spec.get("containers").items())
    # Sidecars are init containers that keep running; their ports count like any other.
    return containers + [c for c in spec.get("initContainers").items() if c.get("restartPolicy").value == "Always"]


def _container_ports(spec: Node) -> tuple[ContainerPort, ...]:
    return tuple(
        ContainerPort(port.get("name").text(""), port.get("containerPort").port(), port.get("protocol").protocol())
        for container in _containers(spec)
        for port in container.get("ports").items()
    )


def _host_ports(spec: Node) -> tuple[HostPort, ...]:
    if spec.get("hostNetwork").flag(False):
        return ()  # the API server writes them, but the container's socket is the node's already
    return tuple(
        HostPort(
            port=port.get("hostPort").port(),
            container_port=port.get("containerPort").port(),
            protocol=port.get("protocol").protocol(),
            host_ip=_host_ip(port.get("hostIP")),
        )
        for container in _containers(spec)
        for port in container.get("ports").items()
        if port.get("hostPort").value
    )


def _host_ip(node: Node) -> IPAddress | None:
    address = node.address() if node.value else None
    return None if address is None or address.is_unspecified else address


def _workload(metadata: Node, labels: Mapping[str, str]) -> tuple[str, str]:
    """The controller; for the ReplicaSet of a Deployment, the Deployment: that is what people wrote."""
    for owner in metadata.get("ownerReferences").items():
        if not owner.get("controller").flag(False):
            continue
        kind, name = owner.get("kind").text(), owner.get("name").text()
        suffix = "-" + labels.get(_POD_TEMPLATE_HASH, "")
        if kind == "ReplicaSet" and len(suffix) > 1 and name.endswith(suffix):
            return "Deployment", name.removesuffix(suffix)
        return kind, name
    return "", ""


def _namespace_object(node: Node, _origin: str) -> Namespace:
    name = _name(node)
    labels = node.at("metadata", "labels").strings()
    # The API server sets this label on every namespace; a raw manifest does not have it yet.
    annotations = node.at("metadata", "annotations").strings()
    return Namespace(name, labels | {NAMESPACE_NAME_LABEL: name}, annotations.get(POOL_ANNOTATION, ""))


def _kube_node(node: Node, _origin: str) -> KubeNode:
    spec, addresses = node.get("spec"), node.at("status", "addresses")
    ranges = list(spec.get("podCIDRs").items())
    if not ranges and spec.get("podCIDR").value:
        ranges = [spec.get("podCIDR")]
    return KubeNode(
        name=_name(node),
        labels=node.at("metadata", "labels").strings(),
        addresses=tuple(
            item.get("address").address() for item in addresses.items() if item.get("type").text("") == "InternalIP"
        ),
        pod_ranges=tuple(item.network() for item in ranges),
    )


def _policy(node: Node, origin: str) -> PolicyObject:
    kind = node.get("kind").text()
    namespace = "" if kind in _CLUSTER_SCOPED else _namespace(node)
    uid = node.at("metadata", "uid").text("")
    return PolicyObject(ObjectKey(kind, namespace, _name(node)), _essence(node.value), uid, origin)


def _essence(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document without what servers write into it: otherwise every status update would look like a change."""
    kept = {name: value for name, value in document.items() if name != "status"}
    kept["metadata"] = {name: value for name, value in document["metadata"].items() if name in _KEPT_METADATA}
    return kept


_KEPT_METADATA = frozenset({"name", "namespace", "uid", "labels", "annotations"})
_CLUSTER_SCOPED = frozenset(
    {"Namespace", "Node", "CiliumClusterwideNetworkPolicy", "CiliumEgressGatewayPolicy", "CiliumCIDRGroup"}
)
_DECODERS: dict[tuple[str, str], Decoder] = {
    ("", "Pod"): _pod,
    ("", "Namespace"): _namespace_object,
    ("", "Node"): _kube_node,
    ("", "Service"): lambda node, _origin: service(node, shared(_namespace(node)), sys.intern(_name(node))),
    ("discovery.k8s.io", "EndpointSlice"): lambda node, _origin: endpoint_slice(
        node, shared(_namespace(node)), _name(node)
    ),
    ("networking.k8s.io", "NetworkPolicy"): _policy,
    ("cilium.io", "CiliumNetworkPolicy"): _policy,
    ("cilium.io", "CiliumClusterwideNetworkPolicy"): _policy,
    ("cilium.io", "CiliumCIDRGroup"): _policy,
    ("cilium.io", "CiliumEgressGatewayPolicy"): _policy,
}

__all__ = ["FieldError", "decode", "key_of"]
