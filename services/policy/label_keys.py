"""Which label keys policies look at: what a label must be for, if it is to be worth an identity of its own.

In: a policy in force, references followed. Out: keys as selectors name them (`k8s:app`, `any:app`), those included that
namespace and cluster defaulting adds.
"""

from __future__ import annotations

from collections.abc import Iterator

from services.policy.peers import LabelPeer
from services.policy.rules import Policy
from services.policy.selectors import Selector


def label_keys(policy: Policy) -> tuple[str, ...]:
    """Every `source:key` that the policy compares with labels of pods, sorted."""
    return tuple(
        sorted({f"{term.source}:{term.key}" for selector in _selectors(policy) for term in selector.requirements})
    )


def _selectors(policy: Policy) -> Iterator[Selector]:
    for spec in policy.specs:
        # A host policy's subject is about labels of nodes, which make no identities.
        if not spec.host:
            yield spec.subject
        for rule in spec.rules:
            for peer in rule.peers:
                if isinstance(peer, LabelPeer):
                    yield peer.selector
