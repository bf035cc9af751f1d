"""How times are printed: the named formats of the field's tool, or a layout of `strftime`. Pure; times are UTC."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable

from services.common.errors import Invalid

Moment = datetime.datetime


def _stamp(at: Moment, nanos: int) -> str:
    return f"{at:%b} {at.day:2d} {at:%H:%M:%S}.{nanos // 1_000_000:03d}"


def _rfc3339(digits: int) -> Callable[[Moment, int], str]:
    def text(at: Moment, nanos: int) -> str:
        fraction = f"{nanos:09d}"[:digits].rstrip("0")
        return f"{at:%Y-%m-%dT%H:%M:%S}{'.' if fraction else ''}{fraction}Z"

    return text


FORMATS: dict[str, Callable[[Moment, int], str]] = {
    "StampMilli": _stamp,
    "YearMonthDay": lambda at, _: f"{at:%Y-%m-%d}",
    "YearMonthDayHour": lambda at, _: f"{at:%Y-%m-%dT%H}Z",
    "YearMonthDayHourMinute": lambda at, _: f"{at:%Y-%m-%dT%H:%M}Z",
    "RFC3339": _rfc3339(0),
    "RFC3339Milli": _rfc3339(3),
    "RFC3339Micro": _rfc3339(6),
    "RFC3339Nano": _rfc3339(9),
    "RFC1123Z": lambda at, _: f"{at:%a, %d %b %Y %H:%M:%S} +0000",
}
STAMP = "StampMilli"


def check(name: str) -> str:
    """The same name; raises `Invalid` for a format that nobody knows."""
    if name not in FORMATS and not re.search("%[a-zA-Z]", name):
        raise Invalid(
            f"--time-format: {name!r} is not known; use one of {', '.join(FORMATS)}, or a layout like %H:%M:%S"
        )
    return name


def text(seconds: int, nanos: int, name: str = STAMP) -> str:
    """A moment in one of the formats."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    known = FORMATS.get(name)
    return known(moment, nanos) if known else moment.replace(microsecond=nanos // 1000).strftime(name)
