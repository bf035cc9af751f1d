"""Conditions in statuses, as the field writes them. Pure: time is an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

Condition = Mapping[str, Any]
MAX_MESSAGE = 4096


def condition(kind: str, holds: bool, reason: str, message: str = "") -> dict[str, Any]:
    """A condition without its time."""
    text = message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…"
    return {"type": kind, "status": "True" if holds else "False", "reason": reason, "message": text}


def conditions_of(document: Mapping[str, Any]) -> list[Condition]:
    """Those that an object has."""
    status = document.get("status")
    found = status.get("conditions") if isinstance(status, Mapping) else None
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []


def updated(
    document: Mapping[str, Any], wanted: Sequence[Mapping[str, Any]], now: datetime
) -> list[dict[str, Any]] | None:
    """All conditions with the wanted ones in place; None where they are already. A time changes with its status."""
    present = conditions_of(document)
    if all(any(wish.items() <= each.items() for each in present) for wish in wanted):
        return None
    ours = []
    for wish in wanted:
        before = next((each for each in present if each.get("type") == wish["type"]), {})
        same = before.get("status") == wish["status"] and before.get("lastTransitionTime")
        since = before["lastTransitionTime"] if same else now.strftime("%Y-%m-%dT%H:%M:%SZ")
        ours.append({**wish, "lastTransitionTime": since})
    types = {wish["type"] for wish in wanted}
    return [*(dict(each) for each in present if each.get("type") not in types), *ours]
