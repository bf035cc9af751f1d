"""Reads CiliumNetworkPolicies and CiliumClusterwideNetworkPolicies (policy-semantics 2): envelope and specs.

What an ingress or egress element says is read by `cilium_rule`.
"""

from __future__ import annotations

import re

from services.model.labels import POD_NAMESPACE, SOURCE_K8S, SOURCE_RESERVED
from services.model.objects import PolicyObject
from services.model.verdict import Direction
from services.policy.cilium_rule import Scope, read_element
from services.policy.options import PolicyOptions
from services.policy.reader import Doc, Reader, join, present
from services.policy.rules import Policy, Rule, Spec
from services.policy.selectors import Requirement, Selector, equals, read_selector

CLUSTERWIDE = "CiliumClusterwideNetworkPolicy"
SPEC_FIELDS = frozenset(
    {
        "endpointSelector",
        "nodeSelector",
        "ingress",
        "ingressDeny",
        "egress",
        "egressDeny",
        "enableDefaultDeny",
        "labels",
        "description",
        "log",
    }
)
LISTS = (
    ("ingress", Direction.INGRESS, False),
    ("ingressDeny", Direction.INGRESS, True),
    ("egress", Direction.EGRESS, False),
    ("egressDeny", Direction.EGRESS, True),
)
LABEL_FIELDS = frozenset({"key", "value", "source"})
DEFAULT_DENY_FIELDS = frozenset({"ingress", "egress"})
LOG_VALUE = re.compile(r"[ -~]{0,32}\Z")


def read_cilium_policy(source: PolicyObject, reader: Reader, options: PolicyOptions) -> Policy:
    """Normalise one document; mistakes go to the reader."""
    document = source.document
    if not present(document, "spec") and not present(document, "specs"):
        reader.report("spec", "is missing; a policy needs spec or specs")
    bodies = [("spec", document["spec"])] if present(document, "spec") else []
    bodies += list(reader.items(document, "specs", ""))
    if not bodies and present(document, "specs"):
        reader.report("specs", "is empty; a policy needs at least one rule")
    counts = {Direction.INGRESS: 0, Direction.EGRESS: 0}
    specs = tuple(_read_spec(reader, body, path, source, options, counts) for path, body in bodies)
    kind = source.key.kind
    labels = [f"k8s:io.cilium.k8s.policy.derived-from={kind}", f"k8s:io.cilium.k8s.policy.name={source.key.name}"]
    if kind != CLUSTERWIDE:
        labels.append(f"k8s:io.cilium.k8s.policy.namespace={source.key.namespace}")
    labels.append(f"k8s:io.cilium.k8s.policy.uid={source.uid}")
    return Policy(source.key, specs, source.uid, tuple(labels), tuple(reader.warnings))


def _read_spec(
    reader: Reader,
    document: object,
    path: str,
    source: PolicyObject,
    options: PolicyOptions,
    counts: dict[Direction, int],
) -> Spec:
    body = reader.mapping(document, path, SPEC_FIELDS)
    subject, host = _read_subject(reader, body, path, source)
    scope = Scope(
        namespace=source.key.namespace,
        clusterwide=source.key.kind == CLUSTERWIDE,
        init_subject=subject.has_key("init", SOURCE_RESERVED),
        host=host,
        options=options,
    )
    rules: list[Rule] = []
    for key, direction, deny in LISTS:
        for at, element in reader.items(body, key, path):
            rules += read_element(reader, element, at, direction, deny, counts[direction], scope)
            counts[direction] += 1
    if not any(reader.sequence(body.get(key), join(path, key)) for key, *_ in LISTS):
        reader.report(path, "must have at least one element in ingress, ingressDeny, egress or egressDeny")
    default_deny = _read_default_deny(reader, body, path)
    _check_metadata(reader, body, path)
    log = reader.mapping(body.get("log"), join(path, "log"), frozenset({"value"}))
    value = reader.text(log.get("value"), f"{path}.log.value")
    if not LOG_VALUE.match(value):
        reader.report(f"{path}.log.value", "must have at most 32 printable ASCII characters")
    return Spec(subject, tuple(rules), default_deny, host, value)


def _read_subject(reader: Reader, body: Doc, path: str, source: PolicyObject) -> tuple[Selector, bool]:
    clusterwide = source.key.kind == CLUSTERWIDE
    endpoints, nodes = present(body, "endpointSelector"), present(body, "nodeSelector")
    if endpoints and nodes:
        reader.report(path, "has both endpointSelector and nodeSelector; write two specs")
    if not endpoints and not nodes:
        wanted = "endpointSelector or nodeSelector" if clusterwide else "endpointSelector"
        reader.report(path, f"must have {wanted}; {{}} selects everything")
    if nodes and not clusterwide:
        reader.report(join(path, "nodeSelector"), f"is allowed in a {CLUSTERWIDE} only")
    if nodes:
        at = join(path, "nodeSelector")
        return read_selector(reader, body["nodeSelector"], at, sourced=True), True
    at = join(path, "endpointSelector")
    subject = read_selector(reader, body.get("endpointSelector"), at, sourced=True)
    if clusterwide:
        return subject, False
    if subject.has_key("init", SOURCE_RESERVED):
        reader.report(at, f"endpoints with reserved:init have no namespace; use a {CLUSTERWIDE}")
    return _in_namespace(reader, subject, at, source.key.namespace), False


def _in_namespace(reader: Reader, subject: Selector, path: str, namespace: str) -> Selector:
    """The subject within the policy's namespace: another one in matchLabels is overwritten."""
    kept: list[Requirement] = []
    for requirement in subject.requirements:
        if requirement.key == POD_NAMESPACE and requirement.operator == "In" and len(requirement.values) == 1:
            if requirement.values[0] != namespace:
                reader.warn(path, f"namespace {requirement.values[0]!r} is replaced by the policy's own, {namespace!r}")
            continue
        kept.append(requirement)
    return Selector.of((*kept, equals(SOURCE_K8S, POD_NAMESPACE, namespace)))


def _read_default_deny(reader: Reader, body: Doc, path: str) -> frozenset[Direction]:
    at = join(path, "enableDefaultDeny")
    given = reader.mapping(body.get("enableDefaultDeny"), at, DEFAULT_DENY_FIELDS)
    found = set()
    for direction, key in ((Direction.INGRESS, "ingress"), (Direction.EGRESS, "egress")):
        explicit = reader.boolean(given.get(key), join(at, key))
        elements = reader.sequence(body.get(key), path) or reader.sequence(body.get(f"{key}Deny"), path)
        if bool(elements) if explicit is None else explicit:
            found.add(direction)
    return frozenset(found)


def _check_metadata(reader: Reader, body: Doc, path: str) -> None:
    """Fields without any effect on verdicts are checked all the same."""
    reader.text(body.get("description"), join(path, "description"))
    for at, label in reader.items(body, "labels", path):
        fields = reader.mapping(label, at, LABEL_FIELDS)
        for key in ("key", "value", "source"):
            reader.text(fields.get(key), join(at, key))
