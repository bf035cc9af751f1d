"""Reading untrusted documents field by field, with errors that name the path: `spec.ports[1].port: ...`."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Hashable, Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from services.common.errors import Invalid
from services.model.addresses import IPAddress, IPNetwork
from services.model.verdict import Protocol

SHARED = 1 << 12
"""Different values that are remembered for sharing: more than a node has of label sets. To remember one that nobody
shares costs three times the value."""
H = TypeVar("H", bound=Hashable)

Path = tuple[str | int, ...]

_PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}


class FieldError(Invalid):
    """A field that cannot be read. `path` leads to it from the document's root."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{render(path)}: {problem}")
        self.path, self.problem = path, problem


def render(path: Path) -> str:
    """`spec.ports[1].port`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.lstrip(".") or "document"


class Node:
    """A value in a document together with its path. Absent fields read as None or as the given default."""

    __slots__ = ("path", "value")

    def __init__(self, value: Any, path: Path = ()) -> None:
        self.value, self.path = value, path

    def error(self, problem: str) -> FieldError:
        """An error about this very field."""
        return FieldError(self.path, problem)

    def get(self, name: str) -> Node:
        """A member of a mapping; a null or absent mapping has only null members."""
        if self.value is None:
            return Node(None, (*self.path, name))
        if not isinstance(self.value, Mapping):
            raise self.error(f"must be a mapping, not {_kind(self.value)}")
        return Node(self.value.get(name), (*self.path, name))

    def at(self, *names: str) -> Node:
        """A member of nested mappings."""
        node = self
        for name in names:
            node = node.get(name)
        return node

    def items(self) -> Iterator[Node]:
        """Elements of a list; null or absent = none."""
        if self.value is None:
            return
        if not isinstance(self.value, list):
            raise self.error(f"must be a list, not {_kind(self.value)}")
        for index, item in enumerate(self.value):
            yield Node(item, (*self.path, index))

    def text(self, default: str | None = None) -> str:
        """A string; without a default the field is required."""
        if self.value is None and default is not None:
            return default
        if not isinstance(self.value, str) or (not self.value and default is None):
            raise self.error(
                "is required" if not self.value else f"must be a string, not {_kind(self.value)}; quote it"
            )
        if not self.value.isascii() and not is_unicode(self.value):
            raise self.error("holds half of a surrogate pair, which is no character")
        return self.value

    def flag(self, default: bool) -> bool:
        """A boolean."""
        if self.value is None:
            return default
        if not isinstance(self.value, bool):
            raise self.error(f"must be true or false, not {_kind(self.value)}")
        return self.value

    def port(self, default: int | None = None) -> int:
        """A port number, 1..65535."""
        if self.value is None and default is not None:
            return default
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not 1 <= self.value <= 65535:
            raise self.error(f"must be a port number 1..65535, not {self.value!r}")
        return self.value

    def protocol(self) -> int:
        """TCP (the default), UDP or SCTP, as an IP protocol number."""
        name = self.text("TCP")
        if name not in _PROTOCOLS:
            raise self.error(f"must be TCP, UDP or SCTP, not {name!r}")
        return int(_PROTOCOLS[name])

    def address(self) -> IPAddress:
        """An IP address."""
        try:
            return ipaddress.ip_address(self.text())
        except ValueError as error:
            raise self.error(f"must be an IP address, not {self.value!r}") from error

    def network(self) -> IPNetwork:
        """A range of addresses."""
        try:
            return ipaddress.ip_network(self.text())
        except ValueError as error:
            raise self.error(f"must be a range such as 10.244.1.0/24, not {self.value!r}: {error}") from error

    def strings(self) -> dict[str, str]:
        """A mapping of strings to strings (labels, annotations); null or absent = empty."""
        if self.value is None:
            return {}
        if not isinstance(self.value, Mapping):
            raise self.error(f"must be a mapping, not {_kind(self.value)}")
        found = {}
        for key, value in self.value.items():
            if not (isinstance(key, str) and isinstance(value, str) and key.isascii() and value.isascii()):
                key, value = Node(key, self.path).text(""), Node(value, (*self.path, str(key))).text("")  # noqa: PLW2901
            found[sys.intern(key)] = value
        return _same(tuple(found.items()))


@lru_cache(SHARED)
def _same(items: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Thousands of pods have the same labels: they share them. Nobody changes a mapping of strings."""
    return dict(items)


@lru_cache(SHARED)
def shared(value: H) -> H:
    """A value that is equal to one that was seen before is that one."""
    return value


def is_unicode(text: str) -> bool:
    """Whether a string can be written down: JSON's escapes can also spell halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "a mapping"}
    return names.get(type(value), type(value).__name__)
