"""Reading manifests that people wrote: text in, checked objects out, errors with file, line and field.

Pure. Policies are read by the agents' own reader, so that one that they would refuse is refused here, at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from services.common.errors import Invalid
from services.common.yaml_places import refuse_repeated
from services.model.objects import ObjectKey, PolicyObject
from services.policy.cidr_group import KIND as CIDR_GROUP
from services.policy.cidr_group import read_cidr_group
from services.policy.egress_gateway import KIND as EGRESS_GATEWAY
from services.policy.egress_gateway import read_egress_gateway_policy
from services.policy.problems import PolicyInvalid
from services.policy.read import KINDS, read_policy

Document = dict[str, Any]
"""A Kubernetes object as its manifest says it."""

API_VERSIONS = {
    "Namespace": "v1",
    "Node": "v1",
    "Pod": "v1",
    "Service": "v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "Deployment": "apps/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "CiliumNetworkPolicy": "cilium.io/v2",
    "CiliumClusterwideNetworkPolicy": "cilium.io/v2",
    "CiliumCIDRGroup": "cilium.io/v2",
    "CiliumEgressGatewayPolicy": "cilium.io/v2",
    "CiliumLoadBalancerIPPool": "cilium.io/v2",
}
CLUSTER_SCOPED = frozenset(
    {
        "Namespace",
        "Node",
        "CiliumClusterwideNetworkPolicy",
        "CiliumCIDRGroup",
        "CiliumEgressGatewayPolicy",
        "CiliumLoadBalancerIPPool",
    }
)
_OTHER_POLICIES: dict[str, Callable[[PolicyObject], object]] = {
    EGRESS_GATEWAY: read_egress_gateway_policy,
    CIDR_GROUP: read_cidr_group,
}
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_SERVICE_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
_STEP = re.compile(r"\[(\d+)\]|\[['\"](.*?)['\"]\]|([^.\[\]]+)")


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object of a manifest file; `origin` is "file:line"."""

    key: ObjectKey
    document: Document
    origin: str


def key_of(document: Document) -> ObjectKey:
    """The key of a checked document."""
    metadata = document["metadata"]
    return ObjectKey(document["kind"], metadata.get("namespace", ""), metadata["name"])


def parse(text: str, origin: str, namespace: str = "default") -> list[Manifest]:
    """Read a YAML (or JSON) text of any number of objects.

    Namespaced objects without a namespace get `namespace`. Raises `Invalid` with every problem found, one per line,
    each as `file:line: field: what is wrong; the fix`.
    """
    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
        for node in nodes:
            refuse_repeated(node)
        documents = [yaml.SafeLoader("").construct_document(node) for node in nodes]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{origin}:{mark.line + 1}" if mark else origin
        raise Invalid(f"{where}: not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise Invalid(f"{origin}: not YAML: {error}") from error
    problems: list[str] = []
    found: list[Manifest] = []
    for node, document in zip(nodes, documents, strict=True):
        if document is None:  # nothing between two `---`
            continue
        mistakes = [
            f"{origin}:{line_of(node, path)}: {path_text(path) or 'document'}: {message}"
            for path, message in _mistakes(document)
        ]
        problems += mistakes
        if not mistakes:
            whole = _with_defaults(document, namespace)
            found.append(Manifest(key_of(whole), whole, f"{origin}:{node.start_mark.line + 1}"))
    if problems:
        raise Invalid("\n".join(problems))
    return found


def line_of(node: yaml.Node, path: Sequence[str | int]) -> int:
    """The 1-based line of the field at `path`, or of its nearest parent that is there."""
    line = node.start_mark.line
    for step in path:
        if isinstance(node, yaml.MappingNode):
            child = next((pair for pair in node.value if pair[0].value == step), None)
            if child is None:
                break
            line, node = child[0].start_mark.line, child[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line
        else:
            break
    return int(line) + 1


def path_text(path: Sequence[str | int]) -> str:
    """`spec.containers[0].image`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def _path_steps(text: str) -> tuple[str | int, ...]:
    """Inverse of `path_text`, for the paths that the policy reader reports: `spec.ingress[0].a['b.c/d']`."""
    steps: list[str | int] = []
    for index, quoted, plain in _STEP.findall(text):
        steps.append(int(index) if index else quoted or plain)
    return tuple(steps)


def _with_defaults(document: Document, namespace: str) -> Document:
    metadata = dict(document["metadata"])
    if document["kind"] not in CLUSTER_SCOPED:
        metadata.setdefault("namespace", namespace)
    if document["kind"] == "Namespace":
        # What the API server does: selectors on a namespace's name rely on it.
        metadata["labels"] = {**(metadata.get("labels") or {}), "kubernetes.io/metadata.name": metadata["name"]}
    return {**document, "metadata": metadata}


_Mistake = tuple[tuple[str | int, ...], str]


def _mistakes(document: Any) -> Iterator[_Mistake]:
    if not isinstance(document, dict):
        yield (), "must be a mapping with apiVersion, kind and metadata"
        return
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in API_VERSIONS:
        yield ("kind",), f"{kind!r} is not known here; known: {', '.join(API_VERSIONS)}"
        return
    version = document.get("apiVersion")
    if version != API_VERSIONS[kind]:
        yield ("apiVersion",), f"is {version!r}; {kind} wants {API_VERSIONS[kind]!r}"
    yield from _metadata_mistakes(document.get("metadata"), ("metadata",), needs_name=True)
    if kind in {"Namespace", "Node"}:
        return
    if kind in KINDS.keys() | _OTHER_POLICIES.keys():
        yield from _policy_mistakes(document)
    elif kind in {"Pod", "Service", "Deployment"} and not isinstance(document.get("spec"), dict):
        yield ("spec",), "is missing; it must be a mapping"
    elif kind == "Deployment":
        yield from _deployment_mistakes(document["spec"])
    elif kind == "Pod":
        yield from _pod_mistakes(document["spec"], ("spec",))
    elif kind == "Service":
        yield from _service_mistakes(document["spec"])


def _policy_mistakes(document: Document) -> Iterator[_Mistake]:
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        return  # told already
    namespace = "" if document["kind"] in CLUSTER_SCOPED else str(metadata.get("namespace") or "default")
    try:
        policy = PolicyObject(ObjectKey(document["kind"], namespace, metadata["name"]), document)
        _OTHER_POLICIES.get(document["kind"], read_policy)(policy)
    except PolicyInvalid as error:
        for problem in error.problems:
            yield _path_steps(problem.path), problem.message


def _metadata_mistakes(metadata: Any, path: tuple[str | int, ...], *, needs_name: bool) -> Iterator[_Mistake]:
    if not isinstance(metadata, dict):
        yield path, "is missing; it must be a mapping with a name" if needs_name else "must be a mapping"
        return
    for field in ("name", "namespace"):
        value = metadata.get(field)
        if value is None and (field == "namespace" or not needs_name):
            continue
        pattern = _NAME if field == "name" else _NAMESPACE
        if not isinstance(value, str) or not pattern.fullmatch(value):
            yield (*path, field), f"{value!r} is no name; use lower-case letters, digits and '-'"
    labels = metadata.get("labels") or {}
    if not isinstance(labels, dict):
        yield (*path, "labels"), "must be a mapping of text to text"
        return
    for key, value in labels.items():
        if not isinstance(key, str) or not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
            yield (*path, "labels", key), f"{value!r} is no label value; use up to 63 of A-Z a-z 0-9 - _ . in quotes"


def _deployment_mistakes(spec: Document) -> Iterator[_Mistake]:
    replicas = spec.get("replicas", 1)
    if not isinstance(replicas, int) or isinstance(replicas, bool) or not 0 <= replicas <= 1000:
        yield ("spec", "replicas"), f"{replicas!r} must be a whole number from 0 to 1000"
    template = spec.get("template")
    if not isinstance(template, dict) or not isinstance(template.get("spec"), dict):
        yield ("spec", "template"), "must hold metadata and spec of the pods"
        return
    mistakes = list(
        _metadata_mistakes(template.get("metadata") or {}, ("spec", "template", "metadata"), needs_name=False)
    )
    yield from mistakes
    wanted = (spec.get("selector") or {}).get("matchLabels") or {}
    labels = (template.get("metadata") or {}).get("labels") or {}
    if not wanted:
        yield ("spec", "selector"), "must hold matchLabels that select the pods of the template"
    elif not mistakes and not wanted.items() <= labels.items():
        yield ("spec", "selector", "matchLabels"), "does not select the template's labels; make them equal"
    yield from _pod_mistakes(template["spec"], ("spec", "template", "spec"))


def _pod_mistakes(spec: Document, path: tuple[str | int, ...]) -> Iterator[_Mistake]:
    containers = spec.get("containers")
    if not isinstance(containers, list) or not containers:
        yield (*path, "containers"), "must be a list with one container"
        return
    if len(containers) > 1:
        yield (*path, "containers", 1), "the sandbox runs one program per pod; remove the other containers"
    container = containers[0]
    here = (*path, "containers", 0)
    if not isinstance(container, dict) or not isinstance(container.get("image"), str):
        yield (*here, "image"), "is missing; name an image"
        return
    for index, port in enumerate(container.get("ports") or ()):
        number = port.get("containerPort") if isinstance(port, dict) else None
        if not isinstance(number, int) or not 0 < number < 65536:
            yield (*here, "ports", index, "containerPort"), f"{number!r} must be a port number, 1 to 65535"


def _service_mistakes(spec: Document) -> Iterator[_Mistake]:
    kind = spec.get("type", "ClusterIP")
    if kind not in _SERVICE_TYPES:
        yield ("spec", "type"), f"{kind!r} is no type of Services; use one of {', '.join(_SERVICE_TYPES)}"
    ports = spec.get("ports") or []
    if not isinstance(ports, list):
        yield ("spec", "ports"), "must be a list"
        return
    if not ports and spec.get("clusterIP") != "None" and kind != "ExternalName":
        yield ("spec", "ports"), "is missing; a Service needs at least one port"
    for index, port in enumerate(ports):
        number = port.get("port") if isinstance(port, dict) else None
        if not isinstance(number, int) or not 0 < number < 65536:
            yield ("spec", "ports", index, "port"), f"{number!r} must be a port number, 1 to 65535"
        elif port.get("protocol", "TCP") not in ("TCP", "UDP", "SCTP"):
            yield ("spec", "ports", index, "protocol"), f"{port['protocol']!r} must be TCP, UDP or SCTP"
        elif not isinstance(port.get("nodePort") or 0, int):
            yield ("spec", "ports", index, "nodePort"), f"{port['nodePort']!r} must be a port number"
        elif len(ports) > 1 and not port.get("name"):
            yield ("spec", "ports", index, "name"), "is missing; a Service with several ports names each"
