"""What the kernel's HTTP grammar means, readable: a stream of bytes in, requests and the first refusal out.

Written against RFC 9112 and the rule "refuse what two implementations could read differently", not against the tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from services.model.verdict import DropReason


@dataclass(frozen=True)
class Head:
    """What is behind the request line: fields in order, names in lower case, values without the spaces before them
    (None until they are read). `absolute`: the target names a host itself."""

    absolute: bool = False
    fields: tuple[tuple[str, str], ...] | None = None


Allow = Callable[[str, str, Head], bool | None]
"""(method, target, head) -> allowed; None: it depends on fields that are not read yet."""

UPPER = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTERS = UPPER + UPPER.lower()
DIGITS = b"0123456789"
HEX = DIGITS + b"abcdefABCDEF"
TOKEN = LETTERS + DIGITS + b"!#$%&'*+-.^_`|~"
UNRESERVED = LETTERS + DIGITS + b"-._~"
VISIBLE = bytes(range(0x21, 0x7F))


class Incomplete(Exception):
    """The stream ends inside something that may still become right."""


class Refused(Exception):
    def __init__(self, reason: DropReason = DropReason.HTTP_MALFORMED) -> None:
        self.reason = reason


Trace = tuple[str, str, int]
"""(trace id, parent id, flags)."""


@dataclass
class Request:
    """`path` is as it was sent, `target` as it is matched: with unnecessary escapes decoded, and with its query.
    `traces`: what stands behind the colons of its traceparent fields."""

    method: str = ""
    path: str = ""
    target: str = ""
    complete: bool = False
    traces: list[bytes] = field(default_factory=list)

    @property
    def trace(self) -> Trace | None:
        """Where the request belongs."""
        return trace_context(self.traces[0]) if len(self.traces) == 1 else None


@dataclass
class Judgement:
    """Heads that were complete and allowed, and why the stream goes no further (None: it may)."""

    requests: list[Request] = field(default_factory=list)
    refused: DropReason | None = None
    at_boundary: bool = True


class Stream:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def peek(self) -> int:
        if self.at >= len(self.data):
            raise Incomplete
        return self.data[self.at]

    def take(self) -> int:
        byte = self.peek()
        self.at += 1
        return byte

    def expect(self, text: bytes) -> None:
        for wanted in text:
            if self.take() != wanted:
                raise Refused

    def run(self, allowed: bytes) -> bytes:
        """As many of `allowed` as there are."""
        start = self.at
        while self.peek() in allowed:
            self.at += 1
        return self.data[start : self.at]

    def skip(self, count: int) -> None:
        if self.at + count > len(self.data):
            self.at = len(self.data)
            raise Incomplete
        self.at += count


def judge(data: bytes, allow: Allow) -> Judgement:
    """Read the whole stream, as far as it goes."""
    stream, result = Stream(data), Judgement()
    request = Request()
    try:
        while True:
            while stream.peek() == 0x0D:
                stream.expect(b"\r\n")
            result.at_boundary = False
            request = Request()
            read_request(stream, request, allow, result)
            result.at_boundary = True
    except Incomplete:
        return result
    except Refused as refusal:
        result.refused = refusal.reason
        return result


def read_request(stream: Stream, request: Request, allow: Allow, result: Judgement) -> None:
    if stream.peek() == 0x16:
        raise Refused(DropReason.HTTP_TLS)
    if stream.peek() not in UPPER:
        raise Refused
    method = stream.run(UPPER + b"-")
    request.method = method.decode()
    stream.expect(b" ")
    if len(method) > 20:
        raise Refused
    absolute = read_target(stream, request)
    old = read_version(stream)
    verdict = allow(request.method, request.target, Head(absolute))
    if verdict is False:
        raise Refused(DropReason.HTTP_DENIED)
    length, chunked, fields = read_fields(stream, request, old, strict_host=verdict is None)
    if verdict is None and not allow(request.method, request.target, Head(absolute, fields)):
        raise Refused(DropReason.HTTP_DENIED)
    request.complete = True
    result.requests.append(request)
    if chunked:
        read_chunks(stream)
    else:
        stream.skip(length)


def read_target(stream: Stream, request: Request) -> bool:
    """Origin form, absolute form or `*`; true: it was absolute."""
    absolute = False
    first = stream.peek()
    if first == ord("*"):
        stream.take()
        request.path = request.target = "*"
        stream.expect(b" ")
        return False
    if first == ord("h"):
        absolute = True
        stream.expect(b"http")
        if stream.peek() == ord("s"):
            stream.take()
        stream.expect(b"://")
        if not stream.run(LETTERS + DIGITS + b"-._~:[]"):
            raise Refused
        if stream.peek() == ord(" "):
            stream.take()
            request.target = "/"
            return True
    if stream.peek() != ord("/"):
        raise Refused
    read_path(stream, request)
    if stream.peek() == ord("?"):
        request.target += stream.run(bytes(set(VISIBLE) - {ord("#")})).decode()
    stream.expect(b" ")
    return absolute


def read_path(stream: Stream, request: Request) -> None:
    """Segment by segment; none may be empty but the last, none may climb."""
    while stream.peek() == ord("/"):
        stream.take()
        request.path += "/"
        request.target += "/"
        read_segment(stream, request)


def read_segment(stream: Stream, request: Request) -> None:
    decoded = ""
    while True:
        byte = stream.peek()
        if byte in b" ?/":
            break
        if byte == ord(";") and decoded in ("", ".", ".."):
            raise Refused
        if byte not in VISIBLE or byte in b"#\\":
            raise Refused
        stream.take()
        if byte != ord("%"):
            decoded += chr(byte)
            request.path += chr(byte)
            continue
        digits = bytes((take_hex(stream), take_hex(stream)))
        value = int(digits, 16)
        if value < 0x20 or value == 0x7F or value in b"/\\%;":
            raise Refused
        request.path += "%" + digits.decode()
        decoded += chr(value) if value in UNRESERVED else "%" + digits.decode()
    if decoded in (".", "..") or (not decoded and stream.peek() == ord("/")):
        raise Refused
    request.target += decoded


def take_hex(stream: Stream) -> int:
    byte = stream.take()
    if byte not in HEX:
        raise Refused
    return byte


def read_version(stream: Stream) -> bool:
    """True: HTTP/1.0."""
    stream.expect(b"HTTP/")
    if stream.peek() == ord("2"):
        raise Refused(DropReason.HTTP_HTTP2)
    stream.expect(b"1.")
    minor = stream.take()
    if minor not in b"01":
        raise Refused
    stream.expect(b"\r\n")
    return minor == ord("0")


def read_fields(
    stream: Stream, request: Request, old: bool, strict_host: bool
) -> tuple[int, bool, tuple[tuple[str, str], ...]]:
    """(content length, chunked, fields). The host is read closely where something depends on fields."""
    length: int | None = None
    chunked = False
    fields: list[tuple[str, str]] = []
    while stream.peek() != 0x0D:
        name = read_name(stream)
        start = stream.at
        if name == b"content-length":
            if length is not None or chunked:
                raise Refused
            length = read_length(stream)
        elif name == b"transfer-encoding":
            if length is not None or chunked or old:
                raise Refused
            stream.run(b" \t")
            for letter in b"chunked":
                if stream.take() | 0x20 != letter:
                    raise Refused
            chunked = True
            stream.run(b" \t")
            stream.expect(b"\r\n")
        elif name == b"host":
            if any(other == "host" for other, _ in fields):
                raise Refused
            if strict_host:
                stream.run(b" \t")
                stream.run(bytes(set(VISIBLE) - set(b'@/\\?#,"<>')))
                stream.run(b" \t")
                stream.expect(b"\r\n")
            else:
                read_value(stream)
        else:
            read_value(stream)
        if name == b"traceparent":
            request.traces.append(stream.data[start : stream.at - 2])
        fields.append((name.decode(), stream.data[start : stream.at - 2].decode("latin-1").lstrip(" ")))
    stream.expect(b"\r\n")
    return length or 0, chunked, tuple(fields)


def trace_context(raw: bytes) -> Trace | None:
    """What a traceparent's value says (W3C Trace Context, 3.2), None for nothing.

    Of later versions the first 55 characters count. Blanks around it are none of it; so many that it does not end
    within 64 bytes are not looked through.
    """
    found = re.fullmatch(
        rb"[ \t]{0,8}([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*|[ \t]*)", raw, re.DOTALL
    )
    if found is None or found[1] == b"ff" or not int(found[2], 16) or not int(found[3], 16):
        return None
    if found[1] == b"00" and found[5].startswith(b"-"):
        return None
    if not found[5].startswith(b"-") and len(raw) >= 64:
        return None
    return found[2].decode(), found[3].decode(), int(found[4], 16)


FRAMING = (b"content-length", b"transfer-encoding", b"host")


def read_name(stream: Stream) -> bytes:
    name = b""
    while stream.peek() in TOKEN:
        name += bytes((stream.take(),)).lower()
        # An underscore where one of the three has a hyphen, so far alike.
        if name.endswith(b"_") and any(other.startswith(name[:-1] + b"-") for other in FRAMING):
            raise Refused
    if not name:
        raise Refused
    stream.expect(b":")
    return name


def read_value(stream: Stream) -> None:
    stream.run(b"\t " + VISIBLE + bytes(range(0x80, 0x100)))
    stream.expect(b"\r\n")


def read_length(stream: Stream) -> int:
    stream.run(b" \t")
    digits = b""
    while stream.peek() in DIGITS:
        digits += bytes((stream.take(),))
        if len(digits) > 15:
            raise Refused
    if not digits:
        raise Refused
    stream.run(b" \t")
    stream.expect(b"\r\n")
    return int(digits)


def read_chunks(stream: Stream) -> None:
    while True:
        digits = b""
        while stream.peek() in HEX:
            digits += bytes((stream.take(),))
            if len(digits) > 12:
                raise Refused
        if not digits:
            raise Refused
        if stream.peek() == ord(";"):
            stream.take()
            stream.run(b"\t " + VISIBLE)
        stream.expect(b"\r\n")
        if not int(digits, 16):
            break
        stream.skip(int(digits, 16))
        stream.expect(b"\r\n")
    while stream.peek() != 0x0D:
        if not stream.run(TOKEN):
            raise Refused
        stream.expect(b":")
        read_value(stream)
    stream.expect(b"\r\n")


@dataclass(frozen=True)
class Header:
    """A header that must be there; exactly once, if with a value."""

    name: str
    value: str | None = None


@dataclass(frozen=True)
class Rule:
    """A policy's HTTP rule, for tests."""

    method: str | None = None
    path: str | None = None
    host: str | None = None
    headers: tuple[Header, ...] = ()


def allow_by(*rules: Rule) -> Allow:
    """What the rules mean, by Python's own regular expressions."""

    def fits(pattern: str | None, text: str) -> bool:
        return pattern is None or re.fullmatch(pattern, text) is not None

    def allow(method: str, target: str, head: Head) -> bool | None:
        matching = [rule for rule in rules if fits(rule.method, method) and fits(rule.path, target)]
        if any(rule.host is None and not rule.headers for rule in matching):
            return True
        if head.absolute:
            matching = [rule for rule in matching if not looks_at_host(rule)]
        if not matching:
            return False
        return None if head.fields is None else any(meets(rule, head.fields) for rule in matching)

    return allow


def looks_at_host(rule: Rule) -> bool:
    return rule.host is not None or any(header.name.lower() == "host" for header in rule.headers)


def meets(rule: Rule, fields: tuple[tuple[str, str], ...]) -> bool:
    """Do the fields meet the rule's host and headers?"""
    hosts = [value for name, value in fields if name == "host"]
    if rule.host is not None:
        host = hosts[0] if hosts else ""
        # Other blanks around a value belong to it for some servers.
        if host != host.strip() or re.fullmatch(rule.host, host) is None:
            return False
    for header in rule.headers:
        name = header.name.lower()
        values = [value for other, value in fields if other == name]
        if not values or (header.value is not None and (values != [header.value] or aliased(name, fields))):
            return False
    return True


def aliased(name: str, fields: tuple[tuple[str, str], ...]) -> bool:
    """Is there a field that gateways take for `name`, which has hyphens where it has underscores?"""
    return any(
        other != name
        and len(other) == len(name)
        and all(a == b or (a, b) == ("-", "_") for a, b in zip(name, other, strict=True))
        for other, _ in fields
    )
