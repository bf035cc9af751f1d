"""RE2's dialect of regular expressions -> a syntax tree of character sets.

Requests reach the matcher as visible ASCII only (the grammar refuses everything else), so a character set is a
128-bit mask over `ALPHABET`; what lies outside can be written in a pattern but never matches. Capturing, laziness and
names mean nothing to a yes-or-no full match and are read over. What RE2 has and a one-pass automaton over bytes has not
(word boundaries, Unicode classes, multi-line mode) is refused by name, as is what RE2 itself refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.agent.calc.http_tree import (
    ASCII,
    DIGIT,
    POSIX,
    SPACE,
    WORD,
    Alternate,
    Anchor,
    Chars,
    Concat,
    Mask,
    Node,
    Repeat,
    chars,
    fold,
)

_PERL: Final = {"d": DIGIT, "w": WORD, "s": SPACE}
_ESCAPES: Final = {"a": 7, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}
MAX_REPEAT = 1000  # RE2's own bound
MAX_DEPTH = 100


class RegexError(ValueError):
    """A pattern that cannot be compiled; the message says what and where."""


@dataclass(frozen=True, slots=True)
class _Flags:
    fold: bool = False
    dot_newline: bool = False


def parse(pattern: str) -> Node:
    """Read a pattern; raises RegexError."""
    parser = _Parser(pattern)
    node = parser.alternation(_Flags(), 0)
    if parser.more():
        raise parser.error("unexpected )")
    return node


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def error(self, what: str, back: int = 0) -> RegexError:
        return RegexError(f"{what} at position {self._at - back}")

    def more(self) -> bool:
        return self._at < len(self._text)

    def _peek(self, ahead: str) -> bool:
        return self._text.startswith(ahead, self._at)

    def _take(self) -> str:
        if not self.more():
            raise self.error("pattern ends too early")
        char = self._text[self._at]
        self._at += 1
        return char

    def _take_if(self, ahead: str) -> bool:
        if not self._peek(ahead):
            return False
        self._at += len(ahead)
        return True

    def _take_until(self, stop: str, what: str) -> str:
        end = self._text.find(stop, self._at)
        if end < 0:
            raise self.error(f"{what} is not closed")
        taken = self._text[self._at : end]
        self._at = end + len(stop)
        return taken

    def alternation(self, flags: _Flags, depth: int) -> Node:
        """`a|b|c`, up to a closing parenthesis or the end. `(?i)` holds to the end of the group, across `|`."""
        if depth > MAX_DEPTH:
            raise self.error(f"groups nested deeper than {MAX_DEPTH}")
        branches: list[Node] = []
        parts: list[Node] = []
        while self.more() and not self._peek(")"):
            if self._take_if("|"):
                branches.append(Concat(tuple(parts)))
                parts = []
            elif self._take_if("\\Q"):
                end = self._text.find("\\E", self._at)
                literal = self._text[self._at : end if end >= 0 else None]
                self._at += len(literal) + (2 if end >= 0 else 0)
                parts.extend(self._literal(char, flags) for char in literal)
                if literal:
                    parts[-1] = self._repeated(parts[-1])
            else:
                node, flags = self._atom(flags, depth)
                if node is not None:
                    parts.append(self._repeated(node))
        branches.append(Concat(tuple(parts)))
        return branches[0] if len(branches) == 1 else Alternate(tuple(branches))

    def _atom(self, flags: _Flags, depth: int) -> tuple[Node | None, _Flags]:
        char = self._take()
        if char == "(":
            return self._group(flags, depth)
        if char == "[":
            return Chars(self._class(flags)), flags
        if char == ".":
            return Chars(ASCII if flags.dot_newline else ASCII & ~chars("\n")), flags
        if char in "^$":
            return Anchor(at_end=char == "$"), flags
        if char == "\\":
            return self._escape(flags), flags
        if char in "*+?":
            raise self.error(f"nothing to repeat before {char}", 1)
        return self._literal(char, flags), flags

    @staticmethod
    def _literal(char: str, flags: _Flags) -> Chars:
        mask = 1 << ord(char) if ord(char) < 128 else 0
        return Chars(fold(mask) if flags.fold else mask)

    def _group(self, flags: _Flags, depth: int) -> tuple[Node | None, _Flags]:
        inner = flags
        if self._take_if("?"):
            if self._peek("=") or self._peek("!") or self._peek("<=") or self._peek("<!"):
                raise self.error("look-around is not part of RE2", 2)
            if self._take_if("P<") or self._take_if("<"):
                self._take_until(">", "group name")
            elif self._peek("P"):
                raise self.error("named back-references are not part of RE2", 2)
            else:
                inner, closed = self._flags(flags)
                if closed:  # `(?i)`: for the rest of the enclosing group
                    return None, inner
        node = self.alternation(inner, depth + 1)
        if not self._take_if(")"):
            raise self.error("missing )")
        return node, flags

    def _flags(self, flags: _Flags) -> tuple[_Flags, bool]:
        """`i`, `s`, `U` and their negations, up to `:` or `)`; true: it was `)`."""
        value = True
        while True:
            char = self._take()
            if char == "i":
                flags = _Flags(value, flags.dot_newline)
            elif char == "s":
                flags = _Flags(flags.fold, value)
            elif char == "m":
                raise self.error("multi-line mode is not supported: paths have no lines", 1)
            elif char == "-" and value:
                value = False
            elif char in ":)":
                return flags, char == ")"
            elif char != "U":
                raise self.error(f"unknown group flag {char!r}", 1)

    def _escape(self, flags: _Flags) -> Node:
        char = self._take()
        if char == "A":
            return Anchor(at_end=False)
        if char == "z":
            return Anchor(at_end=True)
        if char in "bB":
            raise self.error("word boundaries are not supported", 2)
        perl = self._perl(char)
        if perl is not None:
            return Chars(perl)
        return self._literal(chr(self._escaped_code(char)), flags)

    def _perl(self, char: str) -> Mask | None:
        if char in "pP":
            raise self.error("Unicode classes are not supported: targets are ASCII on the wire", 2)
        mask = _PERL.get(char.lower())
        if mask is None:
            return None
        return mask if char.islower() else ASCII & ~mask

    def _escaped_code(self, char: str) -> int:
        """A single character behind a backslash."""
        if char in _ESCAPES:
            return _ESCAPES[char]
        if char == "x":
            digits = self._take_until("}", "\\x{") if self._take_if("{") else self._take() + self._take()
            return self._number(digits, 16)
        if char in "01234567" and (char == "0" or self._text[self._at : self._at + 1] in tuple("01234567")):
            digits = char
            while len(digits) < 3 and self.more() and self._text[self._at] in "01234567":
                digits += self._take()
            return self._number(digits, 8)
        if char.isdigit():
            raise self.error("back-references are not part of RE2", 2)
        if ord(char) < 128 and not char.isalnum():
            return ord(char)
        raise self.error(f"unknown escape \\{char}", 2)

    def _number(self, digits: str, base: int) -> int:
        try:
            value = int(digits, base)
        except ValueError:
            raise self.error(f"{digits!r} is no number") from None
        if not 0 <= value <= 0x10FFFF or "_" in digits or digits[:1] in "+- ":
            raise self.error(f"{digits!r} is no character")
        return value

    def _class(self, flags: _Flags) -> Mask:
        negate = self._take_if("^")
        mask = 0
        first = True
        while first or not self._peek("]"):
            first = False
            mask |= self._class_item(flags)
        self._at += 1
        return ASCII & ~mask if negate else mask

    def _class_item(self, flags: _Flags) -> Mask:
        if self._take_if("[:"):
            negate = self._take_if("^")
            name = self._take_until(":]", "character class")
            if name not in POSIX:
                raise self.error(f"unknown character class {name!r}")
            return ASCII & ~POSIX[name] if negate else self._folded(POSIX[name], flags)
        char = self._take()
        if char == "\\":
            escaped = self._take()
            perl = self._perl(escaped)
            if perl is not None:
                return perl
            low = self._escaped_code(escaped)
        else:
            low = ord(char)
        high = low
        if self._peek("-") and not self._peek("-]"):
            self._at += 1
            char = self._take()
            high = self._escaped_code(self._take()) if char == "\\" else ord(char)
            if high < low:
                raise self.error("range runs backwards")
        return self._folded(((1 << (min(high, 127) + 1)) - (1 << low)) if low < 128 else 0, flags)

    @staticmethod
    def _folded(mask: Mask, flags: _Flags) -> Mask:
        return fold(mask) if flags.fold else mask

    def _repeated(self, node: Node) -> Node:
        """The postfix operators behind an atom."""
        bounds = self._bounds()
        if bounds is None:
            return node
        self._take_if("?")
        least, most = bounds
        if max(least, most or 0) > MAX_REPEAT:
            raise self.error(f"more than {MAX_REPEAT} repetitions")
        if most is not None and most < least:
            raise self.error("repetition bounds run backwards")
        if self._bounds() is not None:
            raise self.error("repetition of a repetition: use a group", 1)
        return Repeat(node, least, most)

    def _bounds(self) -> tuple[int, int | None] | None:
        if not self.more():
            return None
        simple = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(self._text[self._at])
        if simple is not None:
            self._at += 1
            return simple
        if not self._peek("{"):
            return None
        body, closed, _ = self._text[self._at + 1 :].partition("}")
        least, comma, most = body.partition(",")
        if not closed or not _is_count(least) or not (_is_count(most) or not most):
            return None  # an ordinary brace, as in RE2
        self._at += len(body) + 2
        return int(least), (int(most) if most else None) if comma else int(least)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit()
