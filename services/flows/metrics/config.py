"""The field's way to say which metrics: `drop flow:sourceContext=pod|ip;labelsContext=source_namespace`.

Groups are list elements; options follow a colon, separated by `;`; several identifiers are separated by `|`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.common.errors import Invalid
from services.flows.metrics.contexts import IDENTIFIERS, LABELS
from services.flows.metrics.groups import GROUPS

ALL = tuple(name for name in GROUPS if name != "httpV2")
"""The default: everything, HTTP in its first form."""
CONTEXTS = ("sourceContext", "destinationContext", "labelsContext")
OPTIONS: dict[str, tuple[str, ...]] = {"dns": ("query", "ignoreAAAA"), "flows-to-world": ("any-drop", "port")}


@dataclass(frozen=True, slots=True)
class Group:
    """One group that is wanted."""

    name: str
    source: tuple[str, ...] = ()
    destination: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)


def parse(texts: Iterable[str]) -> tuple[Group, ...]:
    """The groups; raises `Invalid` that names the setting, the text and what is known."""
    found: dict[str, Group] = {}
    for text in texts:
        group = _group(text)
        if group.name in found:
            raise Invalid(f"hubble_metrics: {group.name!r} is there twice")
        found[group.name] = group
    if {"http", "httpV2"} <= found.keys():
        raise Invalid("hubble_metrics: http and httpV2 exclude each other; keep one of them")
    return tuple(found.values())


def _group(text: str) -> Group:
    name, _, rest = text.partition(":")
    _known(name, tuple(GROUPS), "group")
    values: dict[str, str] = {}
    for part in filter(None, rest.split(";")):
        option, _, value = part.partition("=")
        _known(option, (*CONTEXTS, *OPTIONS.get(name, ())), f"option of {name}")
        values[option] = value
    sides = [_list(values.pop(option, ""), tuple(IDENTIFIERS), option) for option in CONTEXTS[:2]]
    labels = _list(values.pop("labelsContext", "").replace(",", "|"), LABELS, "labelsContext")
    return Group(name, sides[0], sides[1], labels, values)


def _list(text: str, known: Sequence[str], what: str) -> tuple[str, ...]:
    found = tuple(filter(None, text.split("|")))
    for each in found:
        _known(each, known, what)
    return found


def _known(name: str, known: Sequence[str], what: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise Invalid(f"hubble_metrics: {what}: {name!r} is not known; {hint}")
