"""`http_method`, `http_path`, `http_url`, `http_status_code`, `http_header`: requests and responses; a status has only
a response.

Refused, as Hubble does, together with event types that leave L7 (129) out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import unquote

import numpy as np

from services.common.pb.flow import flow_pb2
from services.flows.columns import Array, Kind
from services.flows.entries import HttpRequest, L7Record
from services.flows.facets import L7, responses
from services.flows.filters.base import Condition, FilterError, Pattern, Rows, regex, where_entry
from services.flows.names import request_url

_STATUS = re.compile(r"[1-5][0-9]{2}|[1-5][0-9]?\+")


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    fields = ("http_status_code", "http_method", "http_path", "http_url", "http_header")
    asked = [field for field in fields if getattr(given, field)]
    if not asked:
        return []
    if given.event_type and not any(each.type == L7 for each in given.event_type):
        raise FilterError(f"{asked[0]}: needs event type l7 (129) among the event types, or none at all")
    found: list[Condition] = []
    for value in given.http_status_code:
        if not _STATUS.fullmatch(value):
            raise FilterError(f"http_status_code: {value!r} is neither a code (404) nor a prefix (4+, 40+)")
    if given.http_status_code:
        found.append(_has_status(list(given.http_status_code)))
    if given.http_header:
        found.append(Rows.none)  # headers are not recorded
    if given.http_method:
        methods = frozenset(method.lower() for method in given.http_method)
        found.append(where_entry("http", _has_method(methods)))
    if given.http_path:
        found.append(where_entry("http", _has_path([regex(text, "http_path") for text in given.http_path])))
    if given.http_url:
        found.append(_has_url([regex(text, "http_url") for text in given.http_url]))
    return found


def _has_status(asked: list[str]) -> Condition:
    wanted = np.zeros(1 << 16, np.bool_)
    for text in asked:
        prefix = text.rstrip("+")
        span = 10 ** (3 - len(prefix))
        wanted[int(prefix) * span : (int(prefix) + 1) * span] = True

    def condition(rows: Rows) -> Array:
        columns = {name: rows[name] for name in ("kind", "ct_state")}
        found: Array = responses(columns) & wanted[rows["status"]]
        return found

    return condition


def _has_method(methods: frozenset[str]) -> Callable[[L7Record], bool]:
    def has(entry: L7Record) -> bool:
        return isinstance(entry, HttpRequest) and bool(entry.method) and entry.method.lower() in methods

    return has


def _has_path(patterns: list[Pattern]) -> Callable[[L7Record], bool]:
    def has(entry: L7Record) -> bool:
        if not isinstance(entry, HttpRequest):
            return False
        path = unquote(re.split(r"[?#]", entry.path, maxsplit=1)[0])
        return entry.path.startswith("/") and any(pattern.search(path) for pattern in patterns)

    return has


def _has_url(patterns: list[Pattern]) -> Condition:
    """A URL is made of three columns, so it is decided per distinct triple of a run."""

    def condition(rows: Rows) -> Array:
        mask = rows.none()
        index = np.flatnonzero((rows["kind"] == Kind.HTTP) & (rows["http"] != 0))
        known: dict[tuple[int, int, int], bool] = {}
        answers = responses({name: rows[name][index] for name in ("kind", "ct_state")})
        servers = np.where(answers, rows["source"][index], rows["destination"][index])
        ports = np.where(answers, rows["source_port"][index], rows["destination_port"][index])
        columns = (rows["http"][index], servers, ports)
        for place, key in zip(index.tolist(), zip(*(column.tolist() for column in columns), strict=True), strict=True):
            answer = known.get(key)
            if answer is None:
                request, server = rows.dictionaries.requests[key[0]], rows.dictionaries.parties[key[1]]
                url = request_url(request, server, key[2]) if isinstance(request, HttpRequest) and server else ""
                answer = known[key] = any(pattern.search(url) for pattern in patterns)
            mask[place] = answer
        return mask

    return condition
