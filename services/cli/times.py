"""Points in time as people write them: `5m` ago, `2026-11-23T05:00:00Z`. Pure: now is an argument."""

from __future__ import annotations

import datetime
import re

from services.common.errors import Invalid

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def duration(text: str) -> float | None:
    """Seconds of `1h30m`, `90s`, `250ms`; None where the text is no duration."""
    position, seconds = 0, 0.0
    for part in _PART.finditer(text):
        if part.start() != position:
            return None
        seconds += float(part[1]) * _UNITS[part[2]]
        position = part.end()
    return seconds if position == len(text) and position else None


def point(text: str, field: str, now: datetime.datetime) -> datetime.datetime:
    """A duration before `now`, or a date with or without time (UTC where no zone is given); raises `Invalid`."""
    ago = duration(text)
    try:
        if ago is not None:
            return now - datetime.timedelta(seconds=ago)
        found = datetime.datetime.fromisoformat(text)
        return found.astimezone(datetime.UTC) if found.tzinfo else found.replace(tzinfo=datetime.UTC)
    except OverflowError as error:
        raise Invalid(
            f"{field}: {text[:40]!r} is outside the years 1 to 9999; write 5m or 2026-11-23T05:00:00Z"
        ) from error
    except ValueError as error:
        raise Invalid(f"{field}: {text!r} is no time; write 5m (that long ago) or 2026-11-23T05:00:00Z") from error
