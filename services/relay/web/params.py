"""A request's query string: the filters of the command line, a time range, a way to group. Pure.

Filters have the names of `ciliate observe`'s flags (`pod=default/web`, `to-port=80`); `not.` in front excludes.
Repeating one means "or", different ones mean "and".
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from services.common.errors import Invalid
from services.flows.filters import FilterError, Filters
from services.flows.flags import BY_NAME, NOT, build
from services.relay.web.groups import By

NANOSECONDS = 1_000_000_000
MAX_LIMIT, LIMIT = 1000, 100
MAX_VALUES, MAX_VALUE = 64, 1024
DEFAULT_WINDOW_S = 300.0
MAX_WINDOW_S = 10 * 365 * 86_400.0
MAX_POSITION = float(1 << 53)
EXCLUDE = "not."
OTHERS = ("since", "until", "window", "limit", "by", "source", "destination", "group", "position")


class InvalidParameter(Invalid):
    """One parameter is wrong; `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for. Times are wall-clock nanoseconds, inclusive; no `since_ns` = `window_s` before the end."""

    filters: Filters
    since_ns: int | None = None
    until_ns: int | None = None
    window_s: float = DEFAULT_WINDOW_S
    limit: int = LIMIT
    by: By = By.WORKLOAD
    source: str = ""
    destination: str = ""
    group: str = ""
    """Ids of groups that a row's ends (`source`, `destination`) or one of them (`group`) must be in."""
    position: int | None = None
    """Where a stream goes on; None = with what comes."""

    def span(self, now_ns: int) -> tuple[int, int]:
        """(first, last) nanosecond."""
        until = now_ns if self.until_ns is None else self.until_ns
        since = until - int(self.window_s * NANOSECONDS) if self.since_ns is None else self.since_ns
        return since, until


def parse(pairs: Iterable[tuple[str, str]]) -> Query:
    """The query; raises `InvalidParameter`."""
    values: dict[str, list[str]] = {}
    flags: dict[str, list[str]] = {}
    for name, text in pairs:
        _check(name, text)
        flag = name.removeprefix(EXCLUDE)
        if flag in BY_NAME:
            flags.setdefault(flag, []).append(NOT + text if name.startswith(EXCLUDE) else text)
        elif name in OTHERS:
            values.setdefault(name, []).append(text)
        else:
            raise InvalidParameter(name, "is not known" + _nearest(name))
    if twice := [name for name, texts in values.items() if len(texts) > 1]:
        raise InvalidParameter(twice[0], "may be given once")
    single = {name: texts[0] for name, texts in values.items()}
    return _query(_filters(flags), single)


def _query(filters: Filters, single: dict[str, str]) -> Query:
    since, until = (_time(name, single[name]) if name in single else None for name in ("since", "until"))
    if since is not None and until is not None and since > until:
        raise InvalidParameter("since", "is later than until")
    by = single.get("by", By.WORKLOAD)
    if by not in set(By):
        raise InvalidParameter("by", f"{by!r} is not known; use one of {', '.join(By)}")
    return Query(
        filters,
        since,
        until,
        _number("window", single.get("window", str(DEFAULT_WINDOW_S)), 1, MAX_WINDOW_S),
        int(_number("limit", single.get("limit", str(LIMIT)), 1, MAX_LIMIT)),
        By(by),
        single.get("source", ""),
        single.get("destination", ""),
        single.get("group", ""),
        int(_number("position", single["position"], 0, MAX_POSITION)) if "position" in single else None,
    )


def _check(name: str, text: str) -> None:
    if len(name) > MAX_VALUE or len(text) > MAX_VALUE:
        raise InvalidParameter(name[:40], f"is longer than {MAX_VALUE} characters")
    if NOT in text:
        raise InvalidParameter(name, "holds a character that no value may have (U+0000)")


def _filters(flags: dict[str, list[str]]) -> Filters:
    for name, texts in flags.items():
        if len(texts) > MAX_VALUES:
            raise InvalidParameter(name, f"is given {len(texts)} times; {MAX_VALUES} are the most")
    try:
        found = build(flags)
    except Invalid as error:
        name, message = _blamed(str(error))
        raise InvalidParameter(name, message) from error
    try:
        return Filters(found.allow, found.deny)
    except FilterError as error:
        raise InvalidParameter(next(iter(flags), "filter"), str(error)) from error


def _blamed(message: str) -> tuple[str, str]:
    """`--port: …` names the flag."""
    found = re.match(r"--([\w-]+): (.*)", message, re.DOTALL)
    return (found[1], found[2]) if found else ("filter", message)


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name.removeprefix(EXCLUDE), [*BY_NAME, *OTHERS], 1)
    return f"; did you mean {close[0]}?" if close else f"; use one of {', '.join([*BY_NAME, *OTHERS])}"


def _number(name: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise InvalidParameter(name, f"{text!r} is no number") from error
    if not low <= value <= high:
        raise InvalidParameter(name, f"must be from {low:g} to {high:g}")
    return value


def _time(name: str, text: str) -> int:
    """Nanoseconds of an RFC 3339 time or of Unix seconds."""
    try:
        if re.fullmatch(r"\d+(\.\d+)?", text):
            whole, _, part = text.partition(".")
            found = int(whole) * NANOSECONDS + int((part + "0" * 9)[:9])
        else:
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is None:
                raise InvalidParameter(name, f"{text!r} has no zone; add Z or +02:00")
            found = int(moment.timestamp()) * NANOSECONDS + moment.microsecond * 1000
    except (ValueError, OverflowError) as error:
        raise InvalidParameter(name, f"{text!r} is no time; use 2026-01-31T12:00:00Z or Unix seconds") from error
    if not 0 <= found < 1 << 62:
        raise InvalidParameter(name, f"{text!r} is outside of what flows can have")
    return found
