"""The way in: a policy document of any kind becomes a normalised `Policy`, or every mistake in it at once."""

from __future__ import annotations

from services.model.objects import PolicyObject
from services.policy.cilium import read_cilium_policy
from services.policy.networkpolicy import read_network_policy
from services.policy.options import PolicyOptions
from services.policy.reader import Reader, join, nearest
from services.policy.rules import Policy

KINDS = {
    "NetworkPolicy": ("networking.k8s.io/v1",),
    "CiliumNetworkPolicy": ("cilium.io/v2",),
    "CiliumClusterwideNetworkPolicy": ("cilium.io/v2",),
}
TOP_FIELDS = frozenset({"apiVersion", "kind", "metadata", "spec", "status"})
CILIUM_TOP_FIELDS = TOP_FIELDS | {"specs"}


def read_policy(source: PolicyObject, options: PolicyOptions | None = None) -> Policy:
    """Read and validate one document; raises `PolicyInvalid` with all problems."""
    options = options or PolicyOptions()
    reader = Reader()
    kind = source.key.kind
    if kind not in KINDS:
        reader.report("kind", f"{kind[:60]!r} is not a kind of policy{nearest(kind, frozenset(KINDS))}")
        reader.finish()
    cilium = kind != "NetworkPolicy"
    reader.mapping(source.document, "", CILIUM_TOP_FIELDS if cilium else TOP_FIELDS)
    version = source.document.get("apiVersion")
    if version is not None and version not in KINDS[kind]:
        reader.report("apiVersion", f"{str(version)[:60]!r} is not {KINDS[kind][0]}, the version of {kind} read here")
    if not source.key.name:
        reader.report(join("metadata", "name"), "is missing; every policy needs a name")
    if cilium:
        policy = read_cilium_policy(source, reader, options)
    else:
        policy = read_network_policy(source, reader, options.cluster)
    reader.finish()
    return policy
