"""Reads parsed YAML or JSON with the care that hostile input needs: wrong types and unknown fields become problems.

Every method returns a usable value (empty where the input was wrong), so that one pass finds all mistakes. A field
that is present with the value null counts as absent, as the Kubernetes API server has it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from services.policy.problems import MAX_PROBLEMS, PolicyInvalid, Problem

Doc = Mapping[str, Any]
EMPTY: Doc = {}
MAX_ELEMENTS = 100_000
"""List elements in one document, all lists together: aliases can make a huge tree of a few lines of YAML."""


class Reader:
    """Collects problems while a document is read."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._dropped = 0
        self._left = MAX_ELEMENTS

    def report(self, path: str, message: str) -> None:
        """Note a mistake; beyond `MAX_PROBLEMS` they are only counted."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(path, message))
        else:
            self._dropped += 1

    def warn(self, path: str, message: str) -> None:
        """Note something that is accepted but probably not meant."""
        if len(self.warnings) < MAX_PROBLEMS:
            self.warnings.append(Problem(path, message))

    def finish(self) -> None:
        """Raise `PolicyInvalid` if anything was reported."""
        if self._dropped:
            self.problems.append(Problem("", f"and {self._dropped} more problems"))
            self._dropped = 0
        if self.problems:
            raise PolicyInvalid(self.problems)

    def mapping(self, value: object, path: str, known: frozenset[str] | None = None) -> Doc:
        """An object with text keys; with `known`, other keys are problems."""
        if value is None:
            return EMPTY
        if not isinstance(value, Mapping):
            self.report(path, f"must be an object, not {describe(value)}")
            return EMPTY
        for key in value:
            if not isinstance(key, str):
                self.report(path, f"key {key!r} must be text; put quotes around it")
                return EMPTY
            if not _is_unicode(key):
                self.report(path, f"key {key[:40]!r} {_HALF}")
                return EMPTY
            if known is not None and key not in known:
                self.report(join(path, key), f"unknown field{nearest(key, known)}")
        return value

    def sequence(self, value: object, path: str, limit: int = MAX_ELEMENTS) -> Sequence[Any]:
        """A list of at most `limit` elements."""
        if value is None:
            return ()
        if isinstance(value, str) or not isinstance(value, Sequence):
            self.report(path, f"must be a list, not {describe(value)}")
            return ()
        if len(value) > limit:
            self.report(path, f"has {len(value)} elements; at most {limit} are allowed")
            return ()
        return value

    def items(self, owner: Doc, key: str, path: str, limit: int = MAX_ELEMENTS) -> Iterator[tuple[str, Any]]:
        """(path, element) pairs of the list in a field; none where it is absent, or the document too large."""
        base = join(path, key)
        for index, element in enumerate(self.sequence(owner.get(key), base, limit)):
            self._left -= 1
            if self._left == 0:
                self.report(base, f"the document has more than {MAX_ELEMENTS} list elements; split the policy")
            if self._left <= 0:
                return
            yield f"{base}[{index}]", element

    def text(self, value: object, path: str, default: str = "") -> str:
        """A string; null gives the default."""
        if value is None:
            return default
        if not isinstance(value, str):
            self.report(path, f"must be text, not {describe(value)}; put quotes around it")
            return default
        if not _is_unicode(value):
            self.report(path, _HALF)
            return default
        return value

    def integer(self, value: object, path: str, low: int, high: int) -> int | None:
        """A whole number within bounds, or None where it is absent or wrong."""
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self.report(path, f"must be a whole number, not {describe(value)}")
            return None
        if not low <= value <= high:
            self.report(path, f"{value} is out of range; must be {low} to {high}")
            return None
        return value

    def boolean(self, value: object, path: str) -> bool | None:
        """True, false, or None where it is absent or wrong."""
        if value is None or isinstance(value, bool):
            return value
        self.report(path, f"must be true or false, not {describe(value)}")
        return None


@lru_cache(maxsize=8192)
def join(path: str, key: str) -> str:
    """The path of a field; keys with dots or slashes are quoted so that the path stays readable.

    Thousands of policies have the same paths, hence the cache.
    """
    if any(character in key for character in "./[] "):
        return f"{path}[{key[:120]!r}]"
    return f"{path}.{key[:120]}" if path else key[:120]


_HALF = "holds half of a surrogate pair, which is no character"


def _is_unicode(text: str) -> bool:
    """Whether a string can be written down: JSON's escapes can also spell halves of characters."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def present(owner: Doc, key: str) -> bool:
    """Whether a field is there with a value: null counts as absent."""
    return owner.get(key) is not None


def describe(value: object) -> str:
    """A value in words for messages, short whatever its size."""
    match value:
        case bool():
            return "a truth value"
        case int() | float():
            return f"the number {value!r}"[:60]
        case str():
            return f"the text {value[:40]!r}"
        case Mapping():
            return "an object"
        case Sequence():
            return "a list"
        case _:
            return type(value).__name__


def nearest(word: str, known: frozenset[str]) -> str:
    """`; did you mean 'x'?` for a close spelling, else a list of what is possible."""
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word[:64].lower(), list(folded), n=1, cutoff=0.7)
    if close:
        return f"; did you mean {folded[close[0]]!r}?"
    return f"; known here: {', '.join(sorted(known))}"
