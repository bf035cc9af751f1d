"""Syntax trees of patterns, and character sets as 128-bit masks over ASCII. No recursion limits, no strings: data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Mask = int


def chars(text: str) -> Mask:
    """The set of the characters of `text`."""
    mask = 0
    for char in text:
        mask |= 1 << ord(char)
    return mask


def span(first: str, last: str) -> Mask:
    """The set of all characters from `first` to `last`."""
    return (1 << (ord(last) + 1)) - (1 << ord(first))


def fold(mask: Mask) -> Mask:
    """Both cases of every letter in the set."""
    return mask | ((mask & UPPER) << 32) | ((mask & LOWER) >> 32)


DIGIT: Final = span("0", "9")
LOWER: Final = span("a", "z")
UPPER: Final = span("A", "Z")
WORD: Final = DIGIT | LOWER | UPPER | chars("_")
SPACE: Final = chars("\t\n\f\r ")
ASCII: Final = (1 << 128) - 1
ALPHABET: Final = span("!", "~")
"""What a method, target or host may consist of on the wire."""

POSIX: Final = {
    "alnum": DIGIT | LOWER | UPPER,
    "alpha": LOWER | UPPER,
    "ascii": ASCII,
    "blank": chars("\t "),
    "cntrl": span("\0", "\x1f") | chars("\x7f"),
    "digit": DIGIT,
    "graph": span("!", "~"),
    "lower": LOWER,
    "print": span(" ", "~"),
    "punct": span("!", "~") & ~(DIGIT | LOWER | UPPER),
    "space": SPACE | chars("\v"),
    "upper": UPPER,
    "word": WORD,
    "xdigit": DIGIT | span("a", "f") | span("A", "F"),
}


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of a set; the empty set never matches."""

    mask: Mask


@dataclass(frozen=True, slots=True)
class Concat:
    """One after the other; none of them: the empty string."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alternate:
    """One of them."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`least` to `most` times; `most` None: without end."""

    part: Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Anchor:
    """The empty string, at the beginning of the text or at its end."""

    at_end: bool


Node = Chars | Concat | Alternate | Repeat | Anchor

EMPTY: Final = Concat(())
