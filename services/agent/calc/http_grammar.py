"""HTTP/1.x request streams as a byte automaton: which byte may follow, and what the kernel does with it.

Strict on purpose. Whatever two implementations could read differently (bare CR or LF, folded lines, two lengths,
length and coding, signs, spaces before a colon, dot segments, doubled or encoded slashes, encoded percent signs) ends
in refusal, because what the server does with it is not known. Row 0 refuses everything, so does a table of zeros.

A target is matched as `path[?query]`: escapes of characters that need none are decoded, all others stay as sent.

The table has all states twice: in the second view, for requests whose fields a rule looks at, the fields' bytes go to
the policy automaton too.
"""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np

from services.agent.abi.http import GRAMMAR_COLUMNS, GRAMMAR_STATES, HttpAction, HttpPhase

DIGITS: Final = b"0123456789"
HEX: Final = DIGITS + b"abcdefABCDEF"
UPPER: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTERS: Final = UPPER + UPPER.lower()
UNRESERVED: Final = LETTERS + DIGITS + b"-._~"
TOKEN: Final = LETTERS + DIGITS + b"!#$%&'*+-.^_`|~"
VISIBLE: Final = bytes(range(0x21, 0x7F))
TEXT: Final = b"\t " + VISIBLE
FOREIGN: Final = bytes(range(0x80, 0x100))
BLANK: Final = b"\t "
PATH_PLAIN: Final = bytes(c for c in VISIBLE if c not in b"%?#\\/.;")
ESCAPE_KEPT: Final = bytes(c for c in range(0x20, 0x100) if c not in b"/\\%;\x7f")
"""What may be sent escaped: not what ends a segment or hides another escape, not control characters."""
HOST_VALUE: Final = bytes(c for c in VISIBLE if c not in b'@/\\?#,"<>')

Table = np.ndarray[tuple[int, int], np.dtype[np.uint16]]


class Grammar:
    """A view under construction: states get numbers in order of their first mention, so both views have the same."""

    def __init__(self, attentive: bool) -> None:
        self.heard = HttpAction.FEED if attentive else HttpAction.NONE
        """What becomes of a field's bytes ..."""
        self.foreign = HttpAction.FOREIGN if attentive else HttpAction.NONE
        self.colon = HttpAction.FEED if attentive else HttpAction.VALUE
        self.line = HttpAction.LINE_END if attentive else HttpAction.NONE
        """... and of its end."""
        self._numbers: dict[str, int] = {phase.name: phase.value for phase in HttpPhase}
        self._table: Table = np.full((GRAMMAR_STATES, GRAMMAR_COLUMNS), HttpAction.REFUSE << 8, np.uint16)

    def state(self, name: str) -> int:
        """The number behind a name."""
        number = self._numbers.setdefault(name, len(self._numbers))
        if number >= GRAMMAR_STATES:
            raise AssertionError("the grammar has outgrown its table")
        return number

    def knows(self, name: str) -> bool:
        """Was it mentioned before?"""
        return name in self._numbers

    def on(self, state: str, characters: bytes, following: str, action: HttpAction = HttpAction.NONE) -> None:
        """In `state`, each of `characters` leads to `following`."""
        self._table[self.state(state), list(characters)] = self.state(following) | (action << 8)

    def refuse(self, state: str, characters: bytes, action: HttpAction) -> None:
        """In `state`, each of `characters` is refused, for a reason of its own."""
        self._table[self.state(state), list(characters)] = action << 8

    def word(self, prefix: str, text: bytes, end: str, action: HttpAction = HttpAction.NONE) -> str:
        """`text` byte by byte, `action` on its last one; returns the state in which it begins."""
        for i, char in enumerate(text):
            last = i == len(text) - 1
            following = end if last else f"{prefix}:{i + 1}"
            self.on(f"{prefix}:{i}", bytes((char,)), following, action if last else HttpAction.NONE)
        return f"{prefix}:0"

    def line_end(self, state: str, following: str, action: HttpAction = HttpAction.NONE) -> None:
        """CR LF, never one without the other."""
        self.on(state, b"\r", f"{state}.cr")
        self.on(f"{state}.cr", b"\n", following, action)

    def table(self) -> Table:
        """The finished table."""
        return self._table


def build() -> Table:
    """The whole grammar, one view behind the other."""
    return np.concatenate([_view(attentive) for attentive in (False, True)])


def _view(attentive: bool) -> Table:
    g = Grammar(attentive)
    _request_line(g)
    _path(g)
    _absolute_form(g)
    _version(g)
    _headers(g)
    _framing_headers(g)
    _upgrade(g)
    _trace(g)
    _bodies(g)
    return g.table()


def fingerprint(table: Table) -> int:
    """A number that changes with the table, never 0: connections are not followed across different grammars."""
    return zlib.crc32(table.tobytes()) or 1


def _request_line(g: Grammar) -> None:
    g.line_end("START", "START", HttpAction.EMPTY_LINE)  # RFC 9112 2.2: empty lines before a request are read over
    g.refuse("START", b"\x16", HttpAction.REFUSE_TLS)
    g.on("START", UPPER, "method", HttpAction.FEED)
    g.on("method", UPPER + b"-", "method", HttpAction.FEED)
    g.on("method", b" ", "target", HttpAction.METHOD_END)
    g.on("target", b"/", "segment", HttpAction.FEED)
    g.on("target", b"*", "asterisk", HttpAction.FEED)
    g.on("asterisk", b" ", "version:0", HttpAction.TARGET_END)
    g.on("query", bytes(c for c in VISIBLE if c not in b"#"), "query", HttpAction.FEED)
    g.on("query", b" ", "version:0", HttpAction.TARGET_END)


def _path(g: Grammar) -> None:
    """Segments: "segment" is an empty one so far, "dot" and "dots" would climb, "plain" is harmless."""
    after_dot = {"segment": "dot", "dot": "dots", "dots": "plain", "plain": "plain"}
    for state, dotted in after_dot.items():
        g.on(state, PATH_PLAIN, "plain", HttpAction.FEED)
        g.on(state, b".", dotted, HttpAction.FEED)
        g.on(state, b"%", f"{state}%")
        g.on(f"{state}%", HEX, f"{state}%%", HttpAction.ESCAPE_FIRST)
        g.on(f"{state}%%", HEX, f"{state}%decoded", HttpAction.ESCAPE_SECOND)
        decoded = f"{state}%decoded"
        g.on(decoded, ESCAPE_KEPT, "plain", HttpAction.ESCAPE_KEPT)
        g.on(decoded, UNRESERVED, "plain", HttpAction.FEED)
        g.on(decoded, b".", dotted, HttpAction.FEED)
    g.on("plain", b"/", "segment", HttpAction.FEED)
    g.on("plain", b";", "plain", HttpAction.FEED)
    for state in ("segment", "plain"):
        g.on(state, b"?", "query", HttpAction.QUERY)
        g.on(state, b" ", "version:0", HttpAction.TARGET_END)


def _absolute_form(g: Grammar) -> None:
    """`http://authority/path`: matched by its path; rules with a host refuse it, as two hosts would be named."""
    g.on("target", b"h", "scheme:1")
    g.word("scheme", b"http", "scheme.end")
    g.on("scheme.end", b"s", "scheme.s")
    g.on("scheme.s", b":", "scheme.colon")
    g.on("scheme.end", b":", "scheme.colon")
    g.on("scheme.colon", b"/", "scheme.slash")
    g.on("scheme.slash", b"/", "authority.first", HttpAction.ABSOLUTE)
    authority = LETTERS + DIGITS + b"-._~:[]"
    g.on("authority.first", authority, "authority")
    g.on("authority", authority, "authority")
    g.on("authority", b"/", "segment", HttpAction.TARGET)
    g.on("authority", b" ", "version:0", HttpAction.ROOT)


def _version(g: Grammar) -> None:
    g.word("version", b"HTTP/", "major")
    g.on("major", b"1", "major.dot")
    g.refuse("major", b"2", HttpAction.REFUSE_HTTP2)
    g.on("major.dot", b".", "minor")
    g.on("minor", b"0", "line.10")
    g.on("minor", b"1", "line.11")
    g.line_end("line.10", "FIELD", HttpAction.LINE_10)
    g.line_end("line.11", "FIELD", HttpAction.LINE_11)


def _headers(g: Grammar) -> None:
    """Any field; the three that frame or route a request are spelt out by `_framing_headers`."""
    g.line_end("FIELD", "START", HttpAction.HEAD_END)
    g.on("FIELD", TOKEN, "name", g.heard)
    g.on("name", TOKEN, "name", g.heard)
    g.on("name", b":", "VALUE", g.colon)
    g.on("VALUE", TEXT, "VALUE", g.heard)
    g.on("VALUE", FOREIGN, "VALUE", g.foreign)
    g.line_end("VALUE", "FIELD", g.line)


def _field_name(g: Grammar, name: bytes, value: str, action: HttpAction) -> None:
    """A field name in either case; anything else that begins alike is an ordinary name.

    An underscore for a hyphen is refused: gateways that turn names into variables read both as one.
    """
    state = "FIELD"
    for i, char in enumerate(name):
        following = f"name:{name[: i + 1].decode()}"
        shared = g.knows(following)  # another name begins alike
        g.on(state, bytes((char,)) + bytes((char,)).upper(), following, g.heard)
        if char == ord("-"):
            g.refuse(state, b"_", HttpAction.REFUSE)
        state = following
        if not shared:
            g.on(state, TOKEN, "name", g.heard)
            g.on(state, b":", "VALUE", g.colon)
    g.on(state, b":", value, action)


def _framing_headers(g: Grammar) -> None:
    _field_name(g, b"content-length", "length.before", HttpAction.LENGTH_NAME)
    g.on("length.before", BLANK, "length.before")
    g.on("length.before", DIGITS, "length", HttpAction.LENGTH_DIGIT)
    g.on("length", DIGITS, "length", HttpAction.LENGTH_DIGIT)
    _field_end(g, "length")

    _field_name(g, b"transfer-encoding", "coding:0", HttpAction.CODING_NAME)
    g.on("coding:0", BLANK, "coding:0")
    for i, char in enumerate(b"chunked"):
        following = "coding" if i == len(b"chunked") - 1 else f"coding:{i + 1}"
        g.on(f"coding:{i}", bytes((char,)) + bytes((char,)).upper(), following, g.heard)
    _field_end(g, "coding")

    _field_name(g, b"host", "host.before", HttpAction.HOST_NAME)
    # Blanks other than spaces before it belong to the value for some servers: a rule that looks at hosts sees them.
    g.on("host.before", b" ", "host.before")
    g.on("host.before", b"\t", "host.before", g.heard)
    g.line_end("host.before", "FIELD", g.line)
    for state in ("host.before", "host"):
        g.on(state, HOST_VALUE, "host", g.heard)
    _field_end(g, "host", g.heard)


def _upgrade(g: Grammar) -> None:
    """`Upgrade: websocket`, once and alone: the one that may end in something else than HTTP."""
    text = b"websocket"
    _field_name(g, b"upgrade", "upgrade:0", HttpAction.UPGRADE_NAME)
    g.on("upgrade:0", b" ", "upgrade:0", g.heard)
    for i, char in enumerate(text):
        state, both = f"upgrade:{i}", bytes((char,)) + bytes((char,)).upper()
        last = i == len(text) - 1
        g.on(state, bytes(c for c in TEXT if c not in both and (i or c != ord(" "))), "VALUE", g.heard)
        g.on(state, both, f"upgrade:{i + 1}", HttpAction.UPGRADE_VALUE if last else g.heard)
    end = f"upgrade:{len(text)}"
    g.on(end, TEXT, "VALUE", HttpAction.UPGRADE_NAME)  # as if there were another one
    for i in range(len(text) + 1):
        g.on(f"upgrade:{i}", FOREIGN, "VALUE", HttpAction.UPGRADE_NAME)
        g.line_end(f"upgrade:{i}", "FIELD", g.line)


def _trace(g: Grammar) -> None:
    """`traceparent`: an ordinary field whose value's place is told. What the value says is read elsewhere."""
    _field_name(g, b"traceparent", "VALUE", HttpAction.TRACE_NAME)


def _field_end(g: Grammar, state: str, blanks: HttpAction = HttpAction.NONE) -> None:
    """Blanks behind a value, then the end of the line."""
    after = f"{state}.after"
    g.line_end(state, "FIELD", g.line)
    g.on(state, BLANK, after, blanks)
    g.on(after, BLANK, after, blanks)
    g.line_end(after, "FIELD", g.line)


def _bodies(g: Grammar) -> None:
    """Data itself is skipped over: the kernel leaves BODY and CHUNK_DATA by counting."""
    for state in ("CHUNK_SIZE", "size"):
        g.on(state, HEX, "size", HttpAction.CHUNK_DIGIT)
    g.on("size", b";", "extension")
    g.on("extension", b"\t " + VISIBLE, "extension")
    for state in ("size", "extension"):
        g.line_end(state, "CHUNK_DATA", HttpAction.CHUNK_LINE)
    g.line_end("CHUNK_END", "CHUNK_SIZE")
    g.line_end("TRAILER", "START", HttpAction.MESSAGE_END)
    g.on("TRAILER", TOKEN, "trailer.name")
    g.on("trailer.name", TOKEN, "trailer.name")
    g.on("trailer.name", b":", "trailer.value")
    g.on("trailer.value", TEXT + FOREIGN, "trailer.value")
    g.line_end("trailer.value", "TRAILER")
