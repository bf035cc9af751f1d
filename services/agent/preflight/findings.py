"""What was found: one line per thing that was looked at. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum


class Status(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """Something is lost, the agent works."""
    FAILED = "failed"
    """The agent does not work here."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing: where it belongs, what it is, how it stands, what was seen, and what to do about it."""

    area: str
    name: str
    status: Status
    detail: str = ""
    fix: str = ""

    def document(self) -> dict[str, str]:
        """For JSON."""
        return {key: str(value) for key, value in asdict(self).items()}


def judged(area: str, name: str, problem: str, *, needed: bool, detail: str = "", fix: str = "") -> Finding:
    """A finding from "what is wrong" ("" = nothing); what is not needed is a warning at most."""
    if not problem:
        return Finding(area, name, Status.OK, detail)
    return Finding(area, name, Status.FAILED if needed else Status.WARNING, problem, fix)
