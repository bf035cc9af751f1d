"""Kubernetes documents (parsed YAML or JSON) -> the small frozen objects of `services.model.objects`.

Pure. Reads what the agent needs and ignores the rest, applying the API server's defaults, so that a raw manifest and
an object from the API mean the same. Policies stay documents: reading them is the business of `services.policy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from services.agent.sources.fields import FieldError, Node
from services.model.addresses import IPAddress
from services.model.objects import (
    ContainerPort,
    EndpointSlice,
    KubeNode,
    KubeObject,
    Namespace,
    ObjectKey,
    Pod,
    PolicyObject,
    Service,
    ServicePort,
    SliceEndpoint,
)

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
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
        namespace=_namespace(node),
        name=_name(node),
        uid=metadata.get("uid").text(""),
        node=spec.get("nodeName").text(""),
        labels=labels,
        annotations=metadata.get("annotations").strings(),
        service_account=spec.get("serviceAccountName").text("default"),
        addresses=_pod_addresses(status),
        ports=_container_ports(spec),
        host_network=spec.get("hostNetwork").flag(False),
        phase=status.get("phase").text("Pending"),
        workload=_workload(metadata, labels),
    )


def _pod_addresses(status: Node) -> tuple[IPAddress, ...]:
    addresses = [item.get("ip").address() for item in status.get("podIPs").items() if item.get("ip").value]
    if not addresses and status.get("podIP").value:
        addresses = [status.get("podIP").address()]
    return tuple(addresses)


def _container_ports(spec: Node) -> tuple[ContainerPort, ...]:
    containers = list(spec.get("containers").items())
    # Sidecars are init containers that keep running; their ports count like any other.
    containers += [c for c in spec.get("initContainers").items() if c.get("restartPolicy").value == "Always"]
    return tuple(
        ContainerPort(port.get("name").text(""), port.get("containerPort").port(), port.get("protocol").protocol())
        for container in containers
        for port in container.get("ports").items()
    )


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
    return Namespace(name, labels | {NAMESPACE_NAME_LABEL: name})


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


def _service(node: Node, _origin: str) -> Service:
    spec = node.get("spec")
    ips = [item for item in spec.get("clusterIPs").items() if item.value not in ("", "None")]
    if not ips and spec.get("clusterIP").value not in (None, "", "None"):
        ips = [spec.get("clusterIP")]
    kind = spec.get("type").text("ClusterIP")
    return Service(
        namespace=_namespace(node),
        name=_name(node),
        type=kind,
        cluster_ips=() if kind == "ExternalName" else tuple(ip.address() for ip in ips),
        ports=tuple(_service_port(port) for port in spec.get("ports").items()),
        selector=spec.get("selector").strings(),
        labels=node.at("metadata", "labels").strings(),
    )


def _service_port(port: Node) -> ServicePort:
    number, target = port.get("port").port(), port.get("targetPort")
    named = isinstance(target.value, str) and not target.value.isdigit()
    return ServicePort(
        name=port.get("name").text(""),
        port=number,
        protocol=port.get("protocol").protocol(),
        # 0 is what some clients write for "the same"; a number may come as text.
        target_port=target.text() if named else Node(int(target.value or 0) or None, target.path).port(number),
        node_port=port.get("nodePort").port(0) if port.get("nodePort").value else 0,
    )


def _endpoint_slice(node: Node, _origin: str) -> EndpointSlice:
    by_name = node.get("addressType").text("IPv4") == "FQDN"
    return EndpointSlice(
        namespace=_namespace(node),
        name=_name(node),
        service=node.at("metadata", "labels").strings().get(SERVICE_NAME_LABEL, ""),
        ports=tuple(
            (port.get("name").text(""), port.get("port").port(), port.get("protocol").protocol())
            for port in node.get("ports").items()
            # A port without a number means "all ports", which no Service frontend can use.
            if port.get("port").value is not None
        ),
        endpoints=() if by_name else tuple(_slice_endpoint(item) for item in node.get("endpoints").items()),
    )


def _slice_endpoint(node: Node) -> SliceEndpoint:
    conditions = node.get("conditions")
    ready = conditions.get("ready").flag(True)
    return SliceEndpoint(
        addresses=tuple(item.address() for item in node.get("addresses").items()),
        ready=ready,
        serving=conditions.get("serving").flag(ready),
        terminating=conditions.get("terminating").flag(False),
        node=node.get("nodeName").text(""),
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
_CLUSTER_SCOPED = frozenset({"Namespace", "Node", "CiliumClusterwideNetworkPolicy"})
_DECODERS: dict[tuple[str, str], Decoder] = {
    ("", "Pod"): _pod,
    ("", "Namespace"): _namespace_object,
    ("", "Node"): _kube_node,
    ("", "Service"): _service,
    ("discovery.k8s.io", "EndpointSlice"): _endpoint_slice,
    ("networking.k8s.io", "NetworkPolicy"): _policy,
    ("cilium.io", "CiliumNetworkPolicy"): _policy,
    ("cilium.io", "CiliumClusterwideNetworkPolicy"): _policy,
}

__all__ = ["FieldError", "decode", "key_of"]
