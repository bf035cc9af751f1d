"""What the suite needs of a cluster, whichever it is: objects, places to ask from, addresses. No I/O here."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Document = Mapping[str, Any]
OWNER_LABEL = "ciliate.io/connectivity-test"
"""On every namespace and cluster-wide object that the suite makes: what it may remove."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request is made: in a pod, on a node (its host network), or outside of the cluster."""

    kind: str
    name: str = ""
    namespace: str = ""

    def __str__(self) -> str:
        return {"pod": self.name, "node": f"node {self.name}"}.get(self.kind, "outside")


OUTSIDE = Place("outside")


def on_node(name: str) -> Place:
    """The host network of a node."""
    return Place("node", name)


@dataclass(frozen=True, slots=True)
class Node:
    """One node and its addresses, IPv4 first."""

    name: str
    addresses: tuple[str, ...]

    def address(self, version: int) -> str:
        """Of that IP version; "" = none."""
        return _of_version(self.addresses, version)


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod of ours."""

    namespace: str
    name: str
    node: str
    addresses: tuple[str, ...]

    @property
    def place(self) -> Place:
        return Place("pod", self.name, self.namespace)

    def address(self, version: int) -> str:
        """Of that IP version; "" = none."""
        return _of_version(self.addresses, version)


@dataclass(frozen=True, slots=True)
class World:
    """The outside: a web server that everybody may ask. `tells`: it answers as our servers do, so that one sees who
    asked; `names` both lead to it."""

    addresses: tuple[str, ...]
    names: tuple[str, str]
    port: int = 80
    tells: bool = False

    def address(self, version: int) -> str:
        """Of that IP version; "" = none."""
        return _of_version(self.addresses, version)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a cluster before anything is asked."""

    nodes: tuple[Node, ...]
    world: World | None
    host_port: int = 0
    """Where every node's own web server is; 0 = nodes have none."""
    can_ask: frozenset[str] = field(default_factory=lambda: frozenset({"pod"}))
    """Kinds of places to ask from."""


class Cluster(Protocol):
    """Access to one. Every call raises an error of the common tree."""

    async def __aenter__(self) -> Facts: ...

    async def __aexit__(self, *problem: object) -> None: ...

    async def apply(self, documents: Sequence[Document]) -> None:
        """Create or replace objects."""
        ...

    async def delete(self, documents: Sequence[Document]) -> None:
        """Remove objects; those that are not there are a success. A namespace takes what is in it along."""
        ...

    async def wait_ready(self, namespaces: Sequence[str], seconds: float) -> None:
        """Until the pods of these namespaces are ready; `Unavailable` names those that are not."""
        ...

    async def get(self, kind: str, namespace: str = "") -> Sequence[Document]:
        """All objects of a kind, in a namespace where one is named."""
        ...

    async def run(self, place: Place, command: Sequence[str], seconds: float) -> tuple[int, str, str]:
        """Run a command there; returns (exit status, output, errors)."""
        ...


def _of_version(addresses: Sequence[str], version: int) -> str:
    return next((text for text in addresses if ipaddress.ip_address(text).version == version), "")


def url(address: str, port: int, path: str = "/", scheme: str = "http") -> str:
    """IPv6 addresses in brackets, as URLs have them."""
    return f"{scheme}://[{address}]:{port}{path}" if ":" in address else f"{scheme}://{address}:{port}{path}"
