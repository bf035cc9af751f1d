"""Request streams that somebody might use to get past HTTP policy, cut into packets; the same for the same number.

Most of each stream is right, so that the kernel reads far into it, and one or two things in it are not: a field that
frames the body in an odd way, an odd line end, a target that climbs, a forbidden request hidden in a body.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from tests.fuzz.http_words import (
    CRLF,
    FIELDS,
    FORBIDDEN,
    LINE_ENDS,
    METHODS,
    NASTY_BYTES,
    ODD_FIELDS,
    ODD_METHODS,
    ODD_TARGETS,
    ODD_VERSIONS,
    SIZES,
    TARGETS,
)


@dataclass(frozen=True)
class Segment:
    """A packet of the client's: where in the stream it begins and what it says. `lost`: the server never gets it."""

    offset: int
    payload: bytes
    lost: bool = False


@dataclass(frozen=True)
class Script:
    """All packets of a connection; `ordered`: each begins where the one before ended."""

    segments: tuple[Segment, ...]
    ordered: bool


class Generator:
    """Script number N of a seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = random.Random()

    def script(self, number: int) -> Script:
        """Deterministic: (seed, number) tells all of it."""
        chance = self._random
        chance.seed((self._seed << 40) + number)
        stream = self._stream()
        if chance.random() < 0.8:
            return Script(tuple(self._cut(stream)), ordered=True)
        return Script(tuple(self._tricks(self._cut(stream))), ordered=False)

    def _stream(self) -> bytes:
        chance = self._random
        messages = [self._message(chance.random() < 0.35) for _ in range(chance.choice((1, 2, 2, 3)))]
        stream = b"".join(messages)
        if chance.random() < 0.2:
            stream = self._damaged(stream)
        if chance.random() < 0.05:
            stream = stream[: chance.randrange(len(stream) + 1)] or b"G"
        if chance.random() < 0.3:
            stream += FORBIDDEN
        return stream or b"\r"

    def _message(self, odd: bool) -> bytes:
        chance = self._random
        what = chance.choice(("method", "target", "version", "field", "field", "field", "end", "body")) if odd else ""
        method = chance.choice(ODD_METHODS if what == "method" else METHODS)
        target = chance.choice(ODD_TARGETS if what == "target" else TARGETS)
        if target == b"/up":
            method = b"POST"
        elif target != b"*" and what != "method" and method not in (b"GET", b"HEAD") and chance.random() < 0.9:
            method = b"POST" if target.startswith(b"/ok") else b"GET"
        version = chance.choice(ODD_VERSIONS) if what == "version" else b"HTTP/1.1"
        lines = [method + b" " + target + (b" " + version if version else b"")]
        lines += [b"Host: a.example"] if chance.random() < 0.9 else []
        lines += [chance.choice(FIELDS) for _ in range(chance.choice((0, 1, 1, 2, 3)))]
        body = b""
        if method in (b"POST", b"PUT") or chance.random() < 0.15:
            framing, body = self._body(what == "body")
            lines.insert(chance.randrange(1, len(lines) + 1), framing)
        if what == "field":
            for _ in range(chance.choice((1, 1, 2))):
                lines.insert(chance.randrange(1, len(lines) + 1), chance.choice(ODD_FIELDS))
        ends = [CRLF] * (len(lines) + 1)
        if what == "end":
            ends[chance.randrange(len(ends))] = chance.choice(LINE_ENDS)
        return b"".join(line + end for line, end in zip([*lines, b""], ends, strict=True)) + body

    def _body(self, odd: bool) -> tuple[bytes, bytes]:
        chance = self._random
        content = chance.choice((b"hello", b"", FORBIDDEN, b"0\r\n\r\n" + FORBIDDEN, b"x" * 300, b"a=b\r\n\r\n"))
        if chance.random() < 0.6:
            length = len(content) + (chance.choice((-1, 1, -2, 2, 4)) if odd else 0)
            return b"Content-Length: %d" % max(length, 0), content
        parts = [content[i : i + 20] for i in range(0, len(content), 20)] or [b""]
        body = b"".join(self._chunk(part, odd and chance.random() < 0.5) for part in parts if part)
        last = chance.choice(SIZES) % 0 if odd and chance.random() < 0.3 else b"0"
        trailer = chance.choice(
            (b"", b"", b"T: u\r\n", b"Content-Length: 5\r\n", b"T\r\n", b"T: u\n", b"Host: b.example\r\n")
        )
        return b"Transfer-Encoding: chunked", body + last + CRLF + (trailer if odd else b"") + CRLF

    def _chunk(self, part: bytes, odd: bool) -> bytes:
        chance = self._random
        size = (chance.choice(SIZES) if odd else b"%x") % len(part)
        end = chance.choice(LINE_ENDS) if odd and chance.random() < 0.3 else CRLF
        after = chance.choice((b"", b"\n", b"\r", b"xx\r\n")) if odd and chance.random() < 0.3 else CRLF
        return size + end + part + after

    def _damaged(self, stream: bytes) -> bytes:
        chance = self._random
        data = bytearray(stream)
        for _ in range(chance.choice((1, 1, 2))):
            at = chance.randrange(len(data)) if data else 0
            byte = chance.choice(NASTY_BYTES) if chance.random() < 0.8 else chance.randrange(256)
            how = chance.randrange(4)
            if how == 0:
                data[at : at + 1] = bytes((byte,))
            elif how == 1:
                data.insert(at, byte)
            elif how == 2:
                del data[at : at + chance.choice((1, 1, 2, 5))]
            else:
                data[at:at] = data[at : at + chance.choice((1, 4, 16))]
        return bytes(data)

    def _cut(self, stream: bytes) -> list[Segment]:
        chance = self._random
        how = chance.random()
        if how < 0.45:
            places = []
        elif how < 0.8:
            places = [chance.randrange(len(stream)) for _ in range(chance.choice((1, 1, 2, 3)))]
        else:
            step = chance.choice((1, 2, 3, 5, 8, 17, 40)) if len(stream) < 200 else chance.choice((17, 40, 100))
            places = list(range(step, len(stream), step))
        places = sorted({*places, *range(1400, len(stream), 1400), 0, len(stream)})
        return [Segment(a, stream[a:b]) for a, b in itertools.pairwise(places)]

    def _tricks(self, segments: list[Segment]) -> list[Segment]:
        """What TCP lets a sender do: repeat, overlap, reorder, say something else the second time; and lost packets."""
        chance = self._random
        done: list[Segment] = []
        for segment in segments:
            how = chance.random()
            lost = chance.random() < 0.2
            payload = segment.payload
            if how < 0.3 or not done:
                done.append(Segment(segment.offset, payload, lost))
            elif how < 0.45:
                done.append(Segment(segment.offset, payload.replace(b"/ok", b"/no"), lost))
                done.append(segment)
            elif how < 0.6:
                done.append(segment)
                done.append(Segment(segment.offset, payload.replace(b"/ok", b"/no").replace(b"ok", b"no")))
            elif how < 0.75:
                back = min(chance.choice((1, 3, 8, 20)), segment.offset)
                done.append(Segment(segment.offset - back, bytes(chance.choices(b"nox/ \r\n", k=back)) + payload))
            elif how < 0.9:
                done.insert(len(done) - 1, Segment(segment.offset, payload, lost))
            else:
                done.append(Segment(segment.offset, FORBIDDEN[: len(payload)], lost))
                done.append(Segment(segment.offset, payload))
            if lost:
                done.append(segment)
        return done
