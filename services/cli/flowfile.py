"""`--input-file`: flows of a file (JSON lines, as `-o json` and exports write them) as if a server had sent them."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TextIO

from google.protobuf.json_format import Parse, ParseError

from services.common.errors import Invalid, NotFound
from services.common.pb.observer import observer_pb2

MAX_LINE = 1 << 20
MAX_NUMBER = 1_000_000


def read(name: str, call: observer_pb2.GetFlowsRequest) -> AsyncIterator[observer_pb2.GetFlowsResponse]:
    """What a request means in a file ("-" = standard input). Raises `NotFound`, `Invalid` naming the line."""
    return _given(list(_select(_messages(name), call)))


async def _given(
    messages: list[observer_pb2.GetFlowsResponse],
) -> AsyncIterator[observer_pb2.GetFlowsResponse]:
    for message in messages:
        yield message


def _messages(name: str) -> Iterator[observer_pb2.GetFlowsResponse]:
    if name == "-":
        yield from _parsed(sys.stdin, "standard input")
        return
    try:
        with open(name, encoding="utf-8") as file:
            yield from _parsed(file, name)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise NotFound(f"--input-file: cannot read {name}: {reason}") from error


def _parsed(file: TextIO, name: str) -> Iterator[observer_pb2.GetFlowsResponse]:
    for number, text in enumerate(file, 1):
        if not text.strip():
            continue
        if len(text) > MAX_LINE:
            raise Invalid(f"--input-file: {name}:{number}: a line of more than {MAX_LINE} characters")
        try:
            yield Parse(text, observer_pb2.GetFlowsResponse(), ignore_unknown_fields=True)
        except ParseError as error:
            raise Invalid(f"--input-file: {name}:{number}: no flow: {error}") from error


def _select(
    messages: Iterable[observer_pb2.GetFlowsResponse], call: observer_pb2.GetFlowsRequest
) -> Iterable[observer_pb2.GetFlowsResponse]:
    # numpy and the filters are for those alone who read files.
    from services.flows.filters import FilterError
    from services.flows.message_filter import MessageFilters

    try:
        filters = MessageFilters(call.whitelist, call.blacklist)
    except FilterError as error:
        raise Invalid(str(error)) from error
    since = call.since.ToNanoseconds() if call.HasField("since") else 0
    until = call.until.ToNanoseconds() if call.HasField("until") else 1 << 63
    kept = (
        message
        for message in messages
        if since <= message.time.ToNanoseconds() <= until
        and (message.WhichOneof("response_types") != "flow" or filters.match(message.flow))
    )
    number = min(call.number, MAX_NUMBER)
    if call.first:
        return (message for place, message in enumerate(kept) if place < number)
    return deque(kept, maxlen=number) if number else kept
