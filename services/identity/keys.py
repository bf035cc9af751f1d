"""The layout of etcd: which key holds what, and how to read a key back. Pure.

    <root>/state/id/<number>             canonical labels        the master key of an identity
    <root>/state/ref/<number>/<node>     empty, node's lease     the node uses the identity
    <root>/state/ep/<prefix>             Endpoint message, lease one row of the address table
    <root>/state/node/<node>             lease number, lease     where all replicas find the node's lease
    <root>/state/mark                    empty                   written to see a watch catch up; see `mirror.py`
    <root>/labels/<canonical labels>     number                  the value key: makes labels unique
    <root>/history                       random text             names this history of etcd; see `mirror.py`

Everything that replicas mirror is under `state/`, one range, so that one watch sees it in etcd's order; the value
keys say nothing new and stay outside of it. Numbers are zero-padded: etcd's order is the numbers' order.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

DEFAULT_ROOT = "/ciliate/identity/v1"


class IdentityKey(NamedTuple):
    """Master key of an identity."""

    id: int


class ReferenceKey(NamedTuple):
    """A node's use of an identity."""

    id: int
    node: str


class EndpointKey(NamedTuple):
    """A row of the address table."""

    prefix: str


class LeaseKey(NamedTuple):
    """A node's lease."""

    node: str


StateKey = IdentityKey | ReferenceKey | EndpointKey | LeaseKey


class KeyRange(NamedTuple):
    """All keys k with first <= k < end."""

    first: bytes
    end: bytes


class Keys:
    """Builds and reads keys below one root, so that several clusters can share an etcd."""

    def __init__(self, root: str = DEFAULT_ROOT) -> None:
        self._root = root.rstrip("/").encode()
        self.history = self._root + b"/history"
        self.state = below(self._root + b"/state/")
        self.mark = self.state.first + b"mark"

    def identity(self, number: int) -> bytes:
        """Key of the identity's labels."""
        return b"%s/state/id/%08d" % (self._root, number)

    def reference(self, number: int, node: str) -> bytes:
        """Key of the node's reference to the identity."""
        return b"%s/state/ref/%08d/%s" % (self._root, number, node.encode())

    def references(self, number: int) -> KeyRange:
        """Where all references to the identity are."""
        return below(b"%s/state/ref/%08d/" % (self._root, number))

    def endpoint(self, prefix: str) -> bytes:
        """Key of the row for `prefix`, an address with its length in canonical form."""
        return b"%s/state/ep/%s" % (self._root, prefix.encode())

    def lease(self, node: str) -> bytes:
        """Key of the node's lease number."""
        return b"%s/state/node/%s" % (self._root, node.encode())

    def labels(self, canonical: str) -> bytes:
        """Key of the number for these labels."""
        return self._root + b"/labels/" + canonical.encode()

    def parse(self, key: bytes) -> StateKey | None:
        """What a key under `state` is; None for one that this version does not know."""
        kind, _, rest = key[len(self.state.first) :].decode("utf-8", "replace").partition("/")
        match kind:
            case "id" if rest.isdecimal():
                return IdentityKey(int(rest))
            case "ref":
                number, _, node = rest.partition("/")
                # One text per node, not one per reference: there are many.
                return ReferenceKey(int(number), sys.intern(node)) if number.isdecimal() and node else None
            case "ep" if rest:
                return EndpointKey(rest)
            case "node" if rest:
                return LeaseKey(rest)
        return None


def below(prefix: bytes) -> KeyRange:
    """The range of all keys that start with `prefix`, which ends in '/' (so its last byte can be raised)."""
    return KeyRange(prefix, prefix[:-1] + bytes([prefix[-1] + 1]))


def label_texts(canonical: str) -> list[str]:
    """The label texts in a canonical form: `Labels.from_canonical(...).texts()` without reading every label.

    The mirror holds tens of thousands of identities as canonical text and shows them far more often than it
    reasons about their labels.
    """
    parts = canonical.split(";")[:-1]
    if "%" not in canonical:
        return parts
    return [part.replace("%3B", ";").replace("%25", "%") for part in parts]
