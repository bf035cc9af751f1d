"""What Kubernetes' controllers would make of the applied objects. Pure: documents in, documents out.

Deployment -> Pods with a node each; Service -> ClusterIP; Service + Pods -> EndpointSlices and DNS records.
Output depends on the current objects only, never on history: names and addresses of what stays do not move.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.common.errors import Conflict, Exhausted, Invalid
from services.model.objects import ObjectKey
from services.sandbox.manifests import Document, key_of

_SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""Kubernetes' own: no vowels, no digits that look like letters."""


def _suffix(text: str, length: int) -> str:
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:12], "big")
    letters = []
    for _ in range(length):
        digest, index = divmod(digest, len(_SUFFIX_ALPHABET))
        letters.append(_SUFFIX_ALPHABET[index])
    return "".join(letters)


def template_hash(deployment: Mapping[str, Any]) -> str:
    """Changes when the pod template does: its pods are then replaced."""
    return _suffix(json.dumps(deployment["spec"]["template"], sort_keys=True), 10)


def expand_deployment(deployment: Mapping[str, Any], nodes: Sequence[str]) -> list[Document]:
    """The Pods of a Deployment, spread round-robin over `nodes` from the first one on."""
    metadata, template = deployment["metadata"], deployment["spec"]["template"]
    revision = template_hash(deployment)
    replica_set = f"{metadata['name']}-{revision}"
    pods = []
    for index in range(deployment["spec"].get("replicas", 1)):
        labels = {**(template.get("metadata", {}).get("labels") or {}), "pod-template-hash": revision}
        pod_metadata = {
            "name": f"{replica_set}-{_suffix(f'{replica_set}/{index}', 5)}",
            "namespace": metadata["namespace"],
            "labels": labels,
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": replica_set, "controller": True}
            ],
        }
        if annotations := template.get("metadata", {}).get("annotations"):
            pod_metadata["annotations"] = annotations
        spec = {**template["spec"], "nodeName": template["spec"].get("nodeName") or nodes[index % len(nodes)]}
        pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": pod_metadata, "spec": spec})
    return pods


def plan_pods(objects: Iterable[Document], nodes: Sequence[str]) -> dict[ObjectKey, Document]:
    """Every Pod that should run, from Deployments and from bare Pods."""
    planned: dict[ObjectKey, Document] = {}
    for document in objects:
        if document["kind"] == "Deployment":
            planned |= {key_of(pod): pod for pod in expand_deployment(document, nodes)}
        elif document["kind"] == "Pod":
            spec = {**document["spec"], "nodeName": document["spec"].get("nodeName") or nodes[0]}
            planned[key_of(document)] = {**document, "spec": spec}
    for key, pod in planned.items():
        if pod["spec"]["nodeName"] not in nodes:
            raise Invalid(f"{key}: spec.nodeName: no node {pod['spec']['nodeName']!r}; nodes: {', '.join(nodes)}")
    return planned


class ClusterIps:
    """Hands out Service addresses: an explicit one is honoured, others get the lowest free one."""

    def __init__(self, range4: str = "10.96.0.0/16", range6: str = "fd00:10:96::/112") -> None:
        self._ranges = {"IPv4": ipaddress.ip_network(range4), "IPv6": ipaddress.ip_network(range6)}

    def assign(self, service: Document, existing: Iterable[Document]) -> Document:
        """`service` with `clusterIP(s)` and `ipFamilies` filled in; addresses of `existing` are taken.

        Raises `Conflict` where a wanted address is another Service's, `Invalid` where it is none of ours.
        """
        spec = dict(service["spec"])
        if spec.get("clusterIP") == "None":
            return {**service, "spec": {**spec, "clusterIPs": ["None"]}}
        key = key_of(service)
        taken: dict[str, ObjectKey] = {}
        for other in existing:
            if other["kind"] == "Service" and key_of(other) != key:
                taken |= dict.fromkeys(other["spec"].get("clusterIPs") or (), key_of(other))
        families = list(spec.get("ipFamilies") or ["IPv4"])
        if len(families) == 1 and spec.get("ipFamilyPolicy") in {"PreferDualStack", "RequireDualStack"}:
            families.append("IPv6" if families[0] == "IPv4" else "IPv4")
        wanted = [text for text in (spec.get("clusterIPs") or [spec.get("clusterIP")]) if text]
        addresses = []
        for index, family in enumerate(families):
            if index < len(wanted):
                addresses.append(self._explicit(key, wanted[index], family, taken))
            else:
                addresses.append(self._lowest_free(family, taken))
        return {**service, "spec": {**spec, "clusterIP": addresses[0], "clusterIPs": addresses, "ipFamilies": families}}

    def _explicit(self, key: ObjectKey, text: str, family: str, taken: Mapping[str, ObjectKey]) -> str:
        try:
            address = ipaddress.ip_address(text)
        except ValueError as error:
            raise Invalid(f"{key}: spec.clusterIP: {text!r} is no address; remove it to get one") from error
        if address not in self._ranges[family]:
            raise Invalid(f"{key}: spec.clusterIP: {text} is outside of {self._ranges[family]}; remove it to get one")
        if str(address) in taken:
            raise Conflict(f"{key}: spec.clusterIP: {text} belongs to {taken[str(address)]}; choose another")
        return str(address)

    def _lowest_free(self, family: str, taken: Mapping[str, ObjectKey]) -> str:
        # The first addresses are left to explicit ones (kube-dns is 10.96.0.10), as Kubernetes does.
        for address in list_from(self._ranges[family], 32):
            if address not in taken:
                return address
        raise Exhausted(f"no Service address is left in {self._ranges[family]}")


def list_from(network: ipaddress.IPv4Network | ipaddress.IPv6Network, start: int) -> Iterable[str]:
    """Addresses of `network` from its `start`-th on, as text."""
    return (str(network[index]) for index in range(start, network.num_addresses - 1))


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether the Pod's status says Ready."""
    conditions = pod.get("status", {}).get("conditions") or ()
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def selected_pods(service: Mapping[str, Any], pods: Iterable[Document]) -> list[Document]:
    """The Service's Pods that have an address, by name."""
    selector = service["spec"].get("selector") or {}
    found = [
        pod
        for pod in pods
        if selector
        and pod["metadata"]["namespace"] == service["metadata"]["namespace"]
        and selector.items() <= (pod["metadata"].get("labels") or {}).items()
        and pod.get("status", {}).get("podIPs")
    ]
    return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))


def _addresses(pod: Mapping[str, Any], version: int) -> list[str]:
    texts = [entry["ip"] for entry in pod["status"]["podIPs"]]
    return [text for text in texts if ipaddress.ip_address(text).version == version]


def _target_number(port: Mapping[str, Any], pod: Mapping[str, Any]) -> int | None:
    """The number behind a Service port on one Pod; None where the Pod has no port of that name."""
    target = port.get("targetPort", port["port"])
    if isinstance(target, int):
        return target
    for container in pod["spec"]["containers"]:
        for declared in container.get("ports") or ():
            same_protocol = declared.get("protocol", "TCP") == port.get("protocol", "TCP")
            if declared.get("name") == target and same_protocol:
                return int(declared["containerPort"])
    return None


def is_ending(pod: Mapping[str, Any]) -> bool:
    """Whether the Pod has been told to end."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def _conditions(service: Mapping[str, Any], pod: Mapping[str, Any]) -> Document:
    ready, ending = is_ready(pod), is_ending(pod)
    published = bool(service["spec"].get("publishNotReadyAddresses"))
    return {"ready": published or (ready and not ending), "serving": ready, "terminating": ending}


def _hints(service: Mapping[str, Any], node: str, zone: str) -> Document:
    """What trafficDistribution asks for: clients stay in their zone, or on their node."""
    wish = service["spec"].get("trafficDistribution")
    if wish == "PreferSameNode":
        return {"forNodes": [{"name": node}], **({"forZones": [{"name": zone}]} if zone else {})}
    if wish in ("PreferClose", "PreferSameZone") and zone:
        return {"forZones": [{"name": zone}]}
    return {}


def endpoint_slices(
    service: Mapping[str, Any], pods: Iterable[Document], zones: Mapping[str, str] | None = None
) -> list[Document]:
    """The Service's EndpointSlices: one per address family and set of port numbers (named ports may differ by pod).
    `zones`: node -> zone."""
    chosen = selected_pods(service, pods)
    ports = service["spec"].get("ports") or []
    grouped: dict[tuple[str, tuple[int | None, ...]], list[Document]] = {}
    for pod in chosen:
        numbers = tuple(_target_number(port, pod) for port in ports)
        for version in (4, 6):
            for address in _addresses(pod, version):
                node = pod["spec"]["nodeName"]
                zone = (zones or {}).get(node, "")
                hints = _hints(service, node, zone)
                grouped.setdefault((f"IPv{version}", numbers), []).append(
                    {
                        "addresses": [address],
                        "conditions": _conditions(service, pod),
                        "nodeName": node,
                        **({"zone": zone} if zone else {}),
                        **({"hints": hints} if hints else {}),
                        "targetRef": {
                            "kind": "Pod",
                            "namespace": pod["metadata"]["namespace"],
                            "name": pod["metadata"]["name"],
                        },
                    }
                )
    return [
        _slice(service, family, numbers, endpoints) for (family, numbers), endpoints in sorted(grouped.items(), key=str)
    ]


def _slice(
    service: Mapping[str, Any], family: str, numbers: tuple[int | None, ...], endpoints: list[Document]
) -> Document:
    metadata = service["metadata"]
    ports = [
        {"name": port.get("name", ""), "port": number, "protocol": port.get("protocol", "TCP")}
        for port, number in zip(service["spec"].get("ports") or [], numbers, strict=True)
        if number is not None
    ]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{metadata['name']}-{_suffix(f'{family}{numbers}', 5)}",
            "namespace": metadata["namespace"],
            "labels": {"kubernetes.io/service-name": metadata["name"]},
        },
        "addressType": family,
        "ports": ports,
        "endpoints": endpoints,
    }


def dns_records(services: Iterable[Document], pods: Sequence[Document]) -> str:
    """Names of Services in the hosts format: the cluster address, or the ready Pods' of a headless one."""
    lines = []
    for service in services:
        name = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local"
        addresses = list(service["spec"].get("clusterIPs") or ())
        if addresses == ["None"]:
            ready = [pod for pod in selected_pods(service, pods) if is_ready(pod) and not is_ending(pod)]
            addresses = [entry["ip"] for pod in ready for entry in pod["status"]["podIPs"]]
        lines += [f"{address} {name}" for address in addresses]
    return "".join(f"{line}\n" for line in sorted(lines))
