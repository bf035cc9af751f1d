"""Service and EndpointSlice documents -> `services.model.services`, with the API server's defaults. Pure."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Mapping

from services.agent.sources.fields import Node, shared
from services.model.addresses import IPNetwork
from services.model.services import (
    DEFAULT_AFFINITY_SECONDS,
    MAX_AFFINITY_SECONDS,
    EndpointSlice,
    PackedEndpoints,
    Service,
    ServicePort,
    SliceEndpoint,
    TrafficPolicy,
)

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
WISH_PREFIX = "service.cilium.io/"
MANAGED_BY_LABEL = "endpointslice.kubernetes.io/managed-by"
MESH_CONTROLLER = "endpointslice-mesh-controller.cilium.io"
_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
_FAMILIES = {"IPv4": 4, "IPv6": 6, "FQDN": 0}


def service(node: Node, namespace: str, name: str) -> Service:
    """Read a Service; raises `FieldError`."""
    metadata, spec = node.get("metadata"), node.get("spec")
    kind = spec.get("type").text("ClusterIP")
    if kind not in _TYPES:
        raise spec.get("type").error(f"must be one of {', '.join(_TYPES)}, not {kind!r}")
    ips = [item for item in spec.get("clusterIPs").items() if item.value not in ("", "None")]
    if not ips and spec.get("clusterIP").value not in (None, "", "None"):
        ips = [spec.get("clusterIP")]
    balanced = kind == "LoadBalancer"
    return Service(
        namespace=namespace,
        name=name,
        type=kind,
        cluster_ips=() if kind == "ExternalName" else tuple(ip.address() for ip in ips),
        ports=shared(tuple(_service_port(port) for port in spec.get("ports").items())),
        selector=spec.get("selector").strings(),
        labels=metadata.get("labels").strings(),
        annotations=_wishes(metadata.get("annotations")),
        external_ips=() if kind == "ExternalName" else tuple(i.address() for i in spec.get("externalIPs").items()),
        ingress_ips=tuple(
            item.get("ip").address()
            for item in (node.at("status", "loadBalancer", "ingress").items() if balanced else ())
            if item.get("ip").value and item.get("ipMode").value != "Proxy"
        ),
        internal_policy=_policy(spec.get("internalTrafficPolicy")),
        external_policy=_policy(spec.get("externalTrafficPolicy")),
        affinity_seconds=_affinity(spec),
        source_ranges=_ranges(spec) if balanced else (),
        health_check_node_port=_optional_port(spec.get("healthCheckNodePort")) if balanced else 0,
        created=str(metadata.get("creationTimestamp").value or ""),
    )


def _wishes(annotations: Node) -> Mapping[str, str]:
    """Those that mean something to us. Tools leave whole manifests in others."""
    found = annotations.strings()
    return Node({name: value for name, value in found.items() if name.startswith(WISH_PREFIX)}).strings()


def _policy(node: Node) -> TrafficPolicy:
    text = node.text(TrafficPolicy.CLUSTER)
    try:
        return TrafficPolicy(text)
    except ValueError as error:
        raise node.error(f"must be Cluster or Local, not {text!r}") from error


def _affinity(spec: Node) -> int:
    kind = spec.get("sessionAffinity").text("None")
    if kind == "None":
        return 0
    if kind != "ClientIP":
        raise spec.get("sessionAffinity").error(f"must be None or ClientIP, not {kind!r}")
    node = spec.at("sessionAffinityConfig", "clientIP", "timeoutSeconds")
    if node.value is None:
        return DEFAULT_AFFINITY_SECONDS
    if isinstance(node.value, bool) or not isinstance(node.value, int) or not 1 <= node.value <= MAX_AFFINITY_SECONDS:
        raise node.error(f"must be 1..{MAX_AFFINITY_SECONDS} seconds, not {node.value!r}")
    return node.value


def _ranges(spec: Node) -> tuple[IPNetwork, ...]:
    return tuple(_network(item) for item in spec.get("loadBalancerSourceRanges").items())


def _network(node: Node) -> IPNetwork:
    text = node.text().strip()
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise node.error(f"must be an address range like 10.0.0.0/8, not {text!r}") from error


def _optional_port(node: Node) -> int:
    """0 is what clients write for "none"."""
    return node.port() if node.value else 0


def _service_port(port: Node) -> ServicePort:
    number, target = port.get("port").port(), port.get("targetPort")
    digits = isinstance(target.value, str) and target.value.isascii() and target.value.isdigit()
    named = isinstance(target.value, str) and not digits
    if digits:
        target = Node(int(target.value) if len(target.value) < 8 else 1 << 16, target.path)
    return ServicePort(
        name=port.get("name").text(""),
        port=number,
        protocol=port.get("protocol").protocol(),
        # 0 is what some clients write for "the same"; a number may come as text.
        target_port=target.text() if named else Node(target.value or None, target.path).port(number),
        node_port=_optional_port(port.get("nodePort")),
    )


def endpoint_slice(node: Node, namespace: str, name: str) -> EndpointSlice:
    """Read an EndpointSlice; raises `FieldError`. Slices by name, and the mesh controller's, have no endpoints here."""
    labels = node.at("metadata", "labels").strings()
    kind = node.get("addressType").text("IPv4")
    if kind not in _FAMILIES:
        raise node.get("addressType").error(f"must be one of {', '.join(_FAMILIES)}, not {kind!r}")
    ignored = kind == "FQDN" or labels.get(MANAGED_BY_LABEL) == MESH_CONTROLLER
    return EndpointSlice(
        namespace=namespace,
        name=name,
        service=sys.intern(labels.get(SERVICE_NAME_LABEL, "")),
        ports=shared(
            tuple(
                (port.get("name").text(""), port.get("port").port(), port.get("protocol").protocol())
                for port in node.get("ports").items()
                # A port without a number means "all ports", which no Service frontend can use.
                if port.get("port").value is not None
            )
        ),
        endpoints=() if ignored else PackedEndpoints(_endpoint(item) for item in node.get("endpoints").items()),
        family=_FAMILIES[kind],
    )


def _endpoint(node: Node) -> SliceEndpoint:
    conditions, hints = node.get("conditions"), node.get("hints")
    return SliceEndpoint(
        addresses=tuple(item.address() for item in node.get("addresses").items()),
        ready=conditions.get("ready").flag(True),
        serving=conditions.get("serving").flag(True),
        terminating=conditions.get("terminating").flag(False),
        node=sys.intern(node.get("nodeName").text("")),
        zone_hints=tuple(item.get("name").text() for item in hints.get("forZones").items()),
        node_hints=tuple(item.get("name").text() for item in hints.get("forNodes").items()),
    )
