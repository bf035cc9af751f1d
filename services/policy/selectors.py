"""Label selectors: what policies say about subjects and peers, matched against an identity's labels.

Input: `matchLabels` / `matchExpressions` documents. Output: frozen, canonical `Selector` values, so that equal
selectors of thousands of policies are one object to the index that evaluates them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from services.model.labels import POD_NAMESPACE, SOURCE_ANY, SOURCE_K8S, SOURCE_RESERVED, SOURCES, Labels
from services.policy.reader import Reader, join, present

NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?\Z")
PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
MAX_NAME = 63
MAX_PREFIX = 253
SELECTOR_FIELDS = frozenset({"matchLabels", "matchExpressions"})
EXPRESSION_FIELDS = frozenset({"key", "operator", "values"})


class Operator(Enum):
    """The four operators that selectors have."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class LabelView:
    """An identity's labels arranged for matching: key -> (source, value) pairs."""

    __slots__ = ("by_key", "labels")

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.by_key: dict[str, list[tuple[str, str]]] = {}
        for label in labels:
            self.by_key.setdefault(label.key, []).append((label.source, label.value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelView) and self.labels == other.labels

    def __hash__(self) -> int:
        return hash(self.labels)

    def value(self, source: str, key: str) -> str | None:
        """The value of one label, None where there is none."""
        return next((value for found, value in self.by_key.get(key, ()) if found == source), None)

    def has_source(self, source: str) -> bool:
        """Whether any label comes from the source."""
        return any(label.source == source for label in self.labels)


@dataclass(frozen=True, slots=True, order=True)
class Requirement:
    """One term. `source` 'any' matches labels of every source; `values` is sorted and free of duplicates."""

    source: str
    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, view: LabelView) -> bool:
        """Whether the labels fulfil the term."""
        found = view.by_key.get(self.key, ())
        if self.source != SOURCE_ANY:
            found = [pair for pair in found if pair[0] == self.source]
        if self.operator == "In":
            return any(value in self.values for _, value in found)
        if self.operator == "NotIn":
            return not any(value in self.values for _, value in found)
        return bool(found) == (self.operator == "Exists")

    def __str__(self) -> str:
        name = self.key if self.source == SOURCE_ANY else f"{self.source}:{self.key}"
        if self.operator == "In" and len(self.values) == 1:
            return f"{name}={self.values[0]}"
        return f"{name} {self.operator}" + (f" ({', '.join(self.values)})" if self.values else "")


@dataclass(frozen=True, slots=True)
class Selector:
    """All requirements must hold; none at all selects everything. They are sorted: equal meaning, equal value."""

    requirements: tuple[Requirement, ...] = ()
    hashed: int = field(default=0, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hashed", hash(self.requirements))

    def __hash__(self) -> int:
        return self.hashed

    @classmethod
    def of(cls, requirements: Iterable[Requirement]) -> Selector:
        """A selector in canonical form."""
        return cls(tuple(sorted(set(requirements))))

    def matches(self, view: LabelView) -> bool:
        """Whether the labels are selected."""
        return all(requirement.matches(view) for requirement in self.requirements)

    def also(self, *more: Requirement) -> Selector:
        """This selector with further requirements."""
        return Selector.of((*self.requirements, *more))

    def has_key(self, key: str, *sources: str) -> bool:
        """Whether a requirement names the key, with one of the sources."""
        return any(r.key == key and r.source in sources for r in self.requirements)

    def has_source(self, source: str) -> bool:
        """Whether a requirement names the source."""
        return any(r.source == source for r in self.requirements)

    @property
    def namespaces(self) -> tuple[str, ...] | None:
        """The only namespaces that selected pods can be in, None where that is open. For indexes."""
        for requirement in self.requirements:
            if requirement.key == POD_NAMESPACE and requirement.operator == "In":
                return requirement.values
        return None

    def __str__(self) -> str:
        return ", ".join(str(requirement) for requirement in self.requirements) or "everything"


def equals(source: str, key: str, value: str) -> Requirement:
    """The label exists with this value."""
    return Requirement(source, key, Operator.IN.value, (value,))


def exists(source: str, key: str) -> Requirement:
    """The label exists."""
    return Requirement(source, key, Operator.EXISTS.value)


def read_selector(
    reader: Reader, document: object, path: str, *, sourced: bool, key_prefix: str = "", source: str = SOURCE_K8S
) -> Selector:
    """Read a selector.

    `sourced`: keys may begin with a label source (`k8s:app`), as in Cilium policies; else their source is 'any'.
    Without it keys are plain Kubernetes keys of `source`, put behind `key_prefix` (namespace labels live under one).
    """
    body = reader.mapping(document, path, SELECTOR_FIELDS)
    found: list[Requirement] = []
    labels_path = join(path, "matchLabels")
    for key, value in reader.mapping(body.get("matchLabels"), labels_path).items():
        at = join(labels_path, key)
        key_source, name = _read_key(reader, key, at, sourced, source)
        text = reader.text(value, at)
        _check_value(reader, text, at)
        found.append(Requirement(key_source, key_prefix + name, Operator.IN.value, (text,)))
    for at, expression in reader.items(body, "matchExpressions", path):
        requirement = _read_expression(reader, expression, at, sourced, source, key_prefix)
        if requirement is not None:
            found.append(requirement)
    return Selector.of(found)


def _read_expression(
    reader: Reader, document: object, path: str, sourced: bool, source: str, key_prefix: str
) -> Requirement | None:
    body = reader.mapping(document, path, EXPRESSION_FIELDS)
    if not body:
        reader.report(path, "must have a key and an operator")
        return None
    key_source, name = _read_key(
        reader, reader.text(body.get("key"), join(path, "key")), join(path, "key"), sourced, source
    )
    operator = reader.text(body.get("operator"), join(path, "operator"))
    values = [reader.text(value, at) for at, value in reader.items(body, "values", path)]
    if operator not in {known.value for known in Operator}:
        reader.report(join(path, "operator"), f"{operator[:40]!r} is not one of In, NotIn, Exists, DoesNotExist")
        return None
    if operator in {"In", "NotIn"}:
        if not values:
            reader.report(join(path, "values"), f"{operator} needs at least one value")
    elif present(body, "values") and values:
        reader.report(join(path, "values"), f"{operator} takes no values; remove them")
    for index, value in enumerate(values):
        _check_value(reader, value, f"{path}.values[{index}]")
    return Requirement(key_source, key_prefix + name, operator, tuple(sorted(set(values))))


def _read_key(reader: Reader, text: str, path: str, sourced: bool, source: str) -> tuple[str, str]:
    if sourced:
        source, name = split_key(text)
        if source not in SOURCES:
            reader.report(path, f"unknown label source {source[:40]!r}; one of {', '.join(sorted(SOURCES))}")
    else:
        name = text
    problem = key_problem(name)
    if problem and source not in {"cidr", "fqdn"}:
        reader.report(path, f"{problem}: {name[:80]!r}")
    return source, name


def split_key(text: str) -> tuple[str, str]:
    """(source, key) of a selector key: `k8s:app`, `$host`, `app` (any source)."""
    if text.startswith("$"):
        return SOURCE_RESERVED, text[1:]
    source, colon, name = text.partition(":")
    return (source, name) if colon else (SOURCE_ANY, text)


def key_problem(key: str) -> str:
    """Why a text cannot be a label key, '' if it can."""
    prefix, slash, name = key.rpartition("/")
    if slash and (not prefix or len(prefix) > MAX_PREFIX or not PREFIX.match(prefix)):
        return "the part of a label key before '/' must be a DNS name in lower case"
    # Namespace labels carry their own prefix inside: io.cilium.k8s.namespace.labels.<any label key>.
    if not name or len(name) > MAX_NAME or not NAME.match(name):
        return f"a label key has 1 to {MAX_NAME} of A-Z, a-z, 0-9, '-', '_', '.', with a letter or digit at both ends"
    return ""


def _check_value(reader: Reader, value: str, path: str) -> None:
    if value and (len(value) > MAX_NAME or not NAME.match(value)):
        reader.report(
            path,
            f"label value {value[:80]!r} must have at most {MAX_NAME} letters, digits, '-', '_', '.', "
            "and begin and end with a letter or digit",
        )
