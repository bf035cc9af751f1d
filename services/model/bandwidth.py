"""What a pod may send and receive, by its annotations. Pure.

`kubernetes.io/egress-bandwidth` and `kubernetes.io/ingress-bandwidth`: bits per second as Kubernetes quantities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.common.errors import Invalid
from services.model.quantity import parse_quantity

EGRESS = "kubernetes.io/egress-bandwidth"
INGRESS = "kubernetes.io/ingress-bandwidth"
LOWEST, HIGHEST = 1_000, 10**15
"""Bits per second that make sense: a kilobit to a petabit, as elsewhere in the field."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes per second; 0 = unlimited."""

    egress: int = 0
    ingress: int = 0


def read_limits(annotations: Mapping[str, str]) -> tuple[Limits, tuple[str, ...]]:
    """A pod's limits, and what is wrong with its annotations: one that cannot be read limits nothing."""
    problems: list[str] = []
    rates = [_rate(annotations, name, problems) for name in (EGRESS, INGRESS)]
    return Limits(*rates), tuple(problems)


def _rate(annotations: Mapping[str, str], name: str, problems: list[str]) -> int:
    text = annotations.get(name, "")
    if not text:
        return 0
    try:
        bits = parse_quantity(text.strip())
    except Invalid as error:
        problems.append(f"metadata.annotations[{name!r}]: {error}")
        return 0
    if not LOWEST <= bits <= HIGHEST:
        problems.append(f"metadata.annotations[{name!r}]: {text[:40]} is out of range: write 1k to 1P bits per second")
        return 0
    return max(int(bits / 8), 1)
