"""Reads CiliumCIDRGroups (policy-semantics 2.6): named lists of prefixes that rules refer to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.model.addresses import IPNetwork
from services.model.objects import PolicyObject
from services.policy.networkpolicy import read_prefix
from services.policy.reader import Reader, join
from services.policy.references import CidrGroup

KIND = "CiliumCIDRGroup"
VERSIONS = ("cilium.io/v2", "cilium.io/v2alpha1")
_FIELDS = frozenset({"apiVersion", "kind", "metadata", "spec", "status"})


def read_cidr_group(source: PolicyObject) -> CidrGroup:
    """Read and validate one document; raises `PolicyInvalid` with all problems."""
    reader = Reader()
    document = reader.mapping(source.document, "", _FIELDS)
    version = document.get("apiVersion")
    if version is not None and version not in VERSIONS:
        reader.report("apiVersion", f"{str(version)[:60]!r} is not {VERSIONS[0]}, the version of {KIND} read here")
    if not source.key.name:
        reader.report(join("metadata", "name"), "is missing; every group needs a name")
    spec = reader.mapping(document.get("spec"), "spec", frozenset({"externalCIDRs"}))
    prefixes: list[IPNetwork] = []
    for path, text in reader.items(spec, "externalCIDRs", "spec"):
        prefix = read_prefix(reader, text, path)
        if prefix is not None:
            prefixes.append(prefix)
    metadata: Mapping[str, Any] = reader.mapping(document.get("metadata"), "metadata")
    labels_path = join("metadata", "labels")
    labels = reader.mapping(metadata.get("labels"), labels_path)
    pairs = tuple(sorted((key, reader.text(value, join(labels_path, key))) for key, value in labels.items()))
    reader.finish()
    return CidrGroup(source.key.name, tuple(dict.fromkeys(prefixes)), pairs)
