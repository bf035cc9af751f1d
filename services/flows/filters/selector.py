"""Label selectors in Kubernetes' syntax, with the source of a label in the key (`k8s:app=web`, `reserved:world`).

A comma is AND; a key without a source, or with `any:`, is found under every source.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

from services.flows.filters.base import FilterError
from services.model.addresses import IPNetwork

_PARTS = re.compile(r",(?![^(]*\))")
_KEY = r"(?P<key>[$]?[A-Za-z0-9](?:[-A-Za-z0-9_./:]*[A-Za-z0-9])?)"
_VALUE = r"[-A-Za-z0-9_./:@]*"
_FORMS = (
    re.compile(rf"(?P<not>!)?\s*{_KEY}"),
    re.compile(rf"{_KEY}\s*(?P<op>==|=|!=|<|>)\s*(?P<value>{_VALUE})"),
    re.compile(rf"{_KEY}\s+(?P<op>in|notin)\s*\((?P<values>[^()]*)\)"),
)

Label = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Requirement:
    """One part of a selector."""

    source: str
    """Empty = any."""
    key: str
    operator: str
    """exists, absent, in, notin, <, >"""
    values: frozenset[str] = frozenset()

    def matches(self, labels: list[Label]) -> bool:
        """Is it met by these (source, key, value) triples?"""
        found = [value for source, key, value in labels if self._names(source, key)]
        match self.operator:
            case "exists":
                return bool(found)
            case "absent":
                return not found
            case "in":
                return any(value in self.values for value in found)
            case "notin":
                return not any(value in self.values for value in found)
            case _:
                return any(self._compares(value) for value in found)

    def _names(self, source: str, key: str) -> bool:
        if self.source and source != self.source:
            return False
        if key == self.key:
            return True
        wanted, given = _prefix(self.source, self.key), _prefix(source, key)
        if wanted is None or given is None or wanted.version != given.version:
            return False
        return wanted.prefixlen <= given.prefixlen and given.network_address in wanted

    def _compares(self, value: str) -> bool:
        try:
            given, wanted = int(value), int(next(iter(self.values)))
        except ValueError:
            return False
        return given < wanted if self.operator == "<" else given > wanted


def _prefix(source: str, key: str) -> IPNetwork | None:
    """The prefix of a `cidr:` label; in IPv6 ones '-' stands for ':'."""
    if source != "cidr":
        return None
    try:
        return ipaddress.ip_network(key, strict=False)
    except ValueError:
        pass
    try:
        return ipaddress.ip_network(key.replace("-", ":"), strict=False)
    except ValueError:
        return None


def split_label(text: str) -> Label:
    """(source, key, value) of a flow's label; the source of a bare one is `unspec`."""
    name, _, value = text.partition("=")
    source, colon, key = name.partition(":")
    return (source, key, value) if colon else ("unspec", name, value)


def selector(values: list[str], field: str) -> Callable[[tuple[str, ...]], bool]:
    """A test of label texts against a list of selectors, any of which may match; raises `FilterError`."""
    alternatives = [_parse(value, field) for value in values]

    def matches(texts: tuple[str, ...]) -> bool:
        labels = [split_label(text) for text in texts]
        return any(all(requirement.matches(labels) for requirement in each) for each in alternatives)

    return matches


def _parse(text: str, field: str) -> list[Requirement]:
    if not text.strip():
        return []
    return [_requirement(part.strip(), text, field) for part in _PARTS.split(text)]


def _requirement(part: str, whole: str, field: str) -> Requirement:
    for form in _FORMS:
        found = form.fullmatch(part)
        if found is None:
            continue
        groups = found.groupdict()
        key = groups["key"]
        source, colon, name = ("reserved", ":", key[1:]) if key.startswith("$") else key.partition(":")
        if not colon:
            source, name = "", key
        source = "" if source == "any" else source
        operator = groups.get("op")
        if operator is None:
            return Requirement(source, name, "absent" if groups["not"] else "exists")
        if operator in ("in", "notin"):
            return Requirement(source, name, operator, frozenset(v.strip() for v in groups["values"].split(",")))
        if operator in ("<", ">") and not groups["value"].lstrip("-").isdigit():
            break
        return Requirement(
            source, name, {"=": "in", "==": "in", "!=": "notin"}.get(operator, operator), frozenset({groups["value"]})
        )
    raise FilterError(f"{field}: invalid label selector {whole!r} at {part!r}")
