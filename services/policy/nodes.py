"""Nodes as subjects of policy: what a `nodeSelector` sees (policy-semantics 2.2). As peers nodes are entities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.model.labels import SOURCE_K8S, SOURCE_RESERVED, Label, Labels
from services.policy.rules import Policy
from services.policy.selectors import LabelView


def node_view(labels: Mapping[str, str]) -> LabelView:
    """A node's labels as its host policies select it; a node that nobody has told about has the reserved one only."""
    own = [Label(SOURCE_K8S, key, value) for key, value in labels.items()]
    return LabelView(Labels([Label(SOURCE_RESERVED, "host"), *own]))


def is_about_nodes(policies: Iterable[Policy | None]) -> bool:
    """Whether any of the policies has a part with a `nodeSelector`."""
    return any(spec.host for policy in policies if policy is not None for spec in policy.specs)
