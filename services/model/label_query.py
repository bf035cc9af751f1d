"""Label selectors as text, the way `kubectl -l` writes them: `zone=a, tier in (web, app), !legacy`."""

from __future__ import annotations

import re
from collections.abc import Mapping

_TERM = re.compile(
    r"\s*(?:(?P<absent>!\s*(?P<akey>[^\s=!,()]+))"
    r"|(?P<skey>[^\s=!,()]+)\s+(?P<set>in|notin)\s*\((?P<values>[^()]*)\)"
    r"|(?P<key>[^\s=!,()]+)\s*(?:(?P<op>==|=|!=)\s*(?P<value>[^\s,()]*))?)\s*(?:,|$)"
)


def matches(query: str, labels: Mapping[str, str]) -> bool:
    """Whether labels satisfy every term; '' matches everything. Raises ValueError for text that is no selector."""
    position, held = 0, True
    while position < len(query.rstrip()):
        term = _TERM.match(query, position)
        if term is None:
            raise ValueError(f"{query!r} is no label selector; write it like 'zone=a,tier in (web,app),!legacy'")
        held = _term_holds(term, labels) and held
        position = term.end()
    return held


def _term_holds(term: re.Match[str], labels: Mapping[str, str]) -> bool:
    if term["absent"]:
        return term["akey"] not in labels
    if term["set"]:
        inside = labels.get(term["skey"]) in {value.strip() for value in term["values"].split(",")}
        # An absent label is not in any set.
        return inside if term["set"] == "in" else not inside
    if term["op"] == "!=":
        return labels.get(term["key"]) != term["value"]
    return term["key"] in labels and (not term["op"] or labels[term["key"]] == term["value"])
