"""Name patterns that several filters share: `namespace/prefix`, FQDN patterns, node names."""

from __future__ import annotations

import re
from collections.abc import Callable

from services.flows.filters.base import FilterError

_FQDN = re.compile(r"[-a-z0-9_.*]+")


def namespaced(values: list[str], field: str) -> Callable[[str, str], bool]:
    """A test of (namespace, name) against `ns/prefix`, `ns/`, `/prefix`, `/`; without a slash: namespace `default`."""
    patterns: list[tuple[str, str]] = []
    for value in values:
        if not value:
            raise FilterError(f"{field}: an empty name; write namespace/name, namespace/ or /")
        namespace, slash, rest = value.partition("/")
        patterns.append((namespace, rest.partition("/")[0]) if slash else ("default", value))

    def matches(namespace: str, name: str) -> bool:
        if not namespace and not name:
            return False
        return any((not wanted or namespace == wanted) and name.startswith(prefix) for wanted, prefix in patterns)

    return matches


def fqdn_pattern(value: str, field: str) -> re.Pattern[str]:
    """An FQDN pattern: `*` is any run of letters, digits, '-' and '.'; the whole name must match."""
    text = value.strip().lower().removesuffix(".")
    if not text or text.endswith(".") or not _FQDN.fullmatch(text):
        raise FilterError(f"{field}: invalid pattern {value!r}; use a-z, 0-9, '-', '_', '.', '*'")
    return re.compile("".join("[-.0-9a-z]*" if part == "*" else re.escape(part) for part in text))


def node_matcher(values: list[str], field: str) -> Callable[[str], bool]:
    """A test of absolute node names (`cluster/node`, or `node` in the cluster `default`)."""
    patterns: list[tuple[re.Pattern[str] | None, re.Pattern[str] | None]] = []
    for value in values:
        cluster, slash, node = value.rpartition("/")
        if "/" in cluster or not value:
            raise FilterError(f"{field}: invalid node name {value!r}; write node, cluster/ or cluster/node")
        patterns.append(
            (
                fqdn_pattern(cluster, field) if cluster else None,
                fqdn_pattern(node, field) if node or not slash else None,
            )
        )

    def matches(name: str) -> bool:
        cluster, slash, node = name.partition("/")
        if not slash:
            cluster, node = "default", name
        if not node or name != name.lower():
            return False
        return any(
            (first is None or first.fullmatch(cluster)) and (second is None or second.fullmatch(node))
            for first, second in patterns
        )

    return matches
