"""Which labels make an identity: the default filter of the field, with user patterns appended.

Without a filter, labels that change at every roll-out (`pod-template-hash`) would mint a new identity per
ReplicaSet. Rule (policy-semantics 4.5): patterns are regular expressions anchored at the start of the key;
the longest matching include is compared with the shortest matching exclude.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from services.model.labels import SOURCE_RESERVED, Label, Labels

DEFAULT_INCLUDES = (
    r"reserved:.*",
    r"io\.kubernetes\.pod\.namespace",
    r"io\.cilium\.k8s\.namespace\.labels",
    r"app\.kubernetes\.io",
    r"io\.cilium\.k8s\.policy\.cluster",
    r"io\.cilium\.k8s\.policy\.serviceaccount",
)
DEFAULT_EXCLUDES = (
    r"io\.kubernetes",
    r"kubernetes\.io",
    r"statefulset\.kubernetes\.io/pod-name",
    r"apps\.kubernetes\.io/pod-index",
    r"batch\.kubernetes\.io/job-completion-index",
    r"batch\.kubernetes\.io/controller-uid",
    r".*beta\.kubernetes\.io",
    r"k8s\.io",
    r"pod-template-generation",
    r"pod-template-hash",
    r"controller-revision-hash",
    r"controller-uid",
    r"annotation.*",
    r"etcd_node",
    r"topology\.kubernetes\.io",
)


class LabelFilter:
    """Decides label by label; `apply` reduces a label set to the identity-relevant ones."""

    def __init__(self, user_patterns: Iterable[str] = ()) -> None:
        """`user_patterns`: regular expressions, a leading '!' excludes; one user include turns whitelisting on."""
        includes, excludes = list(DEFAULT_INCLUDES), list(DEFAULT_EXCLUDES)
        self._whitelist = False
        for pattern in user_patterns:
            if pattern.startswith("!"):
                excludes.append(pattern[1:])
            else:
                includes.append(pattern)
                self._whitelist = True
        try:
            self._includes = [re.compile(pattern) for pattern in includes]
            self._excludes = [re.compile(pattern) for pattern in excludes]
        except re.error as error:
            raise ValueError(f"label filter pattern {error.pattern!r}: {error}") from error

    def accepts(self, label: Label) -> bool:
        """Whether the label is part of an identity."""
        subject = f"{SOURCE_RESERVED}:{label.key}" if label.source == SOURCE_RESERVED else label.key
        include = max((m.end() for p in self._includes if (m := p.match(subject))), default=-1)
        exclude = min((m.end() for p in self._excludes if (m := p.match(subject))), default=-1)
        if include >= 0 and include > exclude:
            return True
        return not self._whitelist and exclude < 0

    def apply(self, labels: Labels) -> Labels:
        """The subset that `accepts` lets through."""
        return Labels(label for label in labels if self.accepts(label))
