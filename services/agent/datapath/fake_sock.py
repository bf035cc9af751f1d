"""Services at the socket, in readable Python: what `bpf/sock.c` must do with a connect, an answer and a close."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection

from services.agent.abi.lb import ClientKind, Scope, ServiceFlags, ServiceInfo, ServiceKey
from services.agent.datapath.fake_lb import Client, Maps, ReferenceBalancer
from services.model.addresses import V4_MAPPED_PREFIX, from_bytes
from services.model.verdict import Protocol

Place = tuple[bytes, int]
"""(address of 16 bytes, port)"""


class Refused(Exception):
    """The call fails with this number. Not an error: how a connect may end."""

    def __init__(self, number: int) -> None:
        self.number = number


class ReferenceSockets:
    """The sockets of one cgroup. `maps` are read at every call; `choose(count)` stands for the random choice. `home`:
    the node's own network namespace; `nodes`: addresses of this and of other nodes."""

    def __init__(
        self,
        maps: Maps,
        choose: Callable[[int], int] = lambda count: 0,
        home: int = 0,
        nodes: Collection[bytes] = (),
    ) -> None:
        self._balancer = ReferenceBalancer(maps, choose)
        self._home, self._nodes = home, nodes
        self.known: dict[tuple[int, int], tuple[Place, Place]] = {}
        """Connected: (socket, protocol) -> (backend, what was asked for)"""
        self.told: dict[tuple[int, Place], Place] = {}
        """Unconnected: (socket, backend) -> what was asked for"""

    def connect(self, socket: int, netns: int, to: Place, protocol: int, now: float = 0.0) -> Place:
        """Where a connection really goes. Raises Refused."""
        backend = self._choose(netns, to, protocol, now)
        if backend is None:
            return to
        self.known[socket, protocol] = backend, to
        return backend

    def send(self, socket: int, netns: int, to: Place, now: float = 0.0) -> Place:
        """Where a message of an unconnected UDP socket really goes. Raises Refused."""
        backend = self._choose(netns, to, Protocol.UDP, now)
        if backend is None:
            return to
        self.told[socket, backend] = to
        return backend

    def _choose(self, netns: int, to: Place, protocol: int, now: float) -> Place | None:
        """A backend; None: it is no Service."""
        if protocol not in (Protocol.TCP, Protocol.UDP):
            return None
        found = self._meant(netns, to, protocol)
        if found is None:
            if self._balancer.find(to[0], 0, 0, Scope.INTERNAL) is not None:
                raise Refused(errno.ECONNREFUSED)  # a Service's address, but none of its ports
            return None
        client = Client(netns.to_bytes(8, "little") + bytes(8), kind=ClientKind.NETNS)
        backend = self._balancer.select(*found, client, now)
        if backend is None:
            refuse = found[1].flags & ServiceFlags.REFUSE
            raise Refused(errno.ECONNREFUSED if refuse else errno.EHOSTUNREACH)
        return backend

    def _meant(self, netns: int, to: Place, protocol: int) -> tuple[ServiceKey, ServiceInfo] | None:
        """The Service at a place; node ports are at addresses of all nodes, and at the node's own loopback."""
        address, port = to
        asked = from_bytes(address)
        loopback = asked.is_loopback or asked.is_unspecified
        if loopback and (not self._home or netns != self._home):
            return None
        found = None if loopback else self._balancer.find(address, port, protocol, Scope.INTERNAL)
        if found is not None:
            return found
        anywhere = (V4_MAPPED_PREFIX + bytes(4)) if asked.version == 4 else bytes(16)
        found = self._balancer.find(anywhere, port, protocol, Scope.INTERNAL)
        if found is None or loopback:
            return found
        return None if found[1].flags & ServiceFlags.HOST_PORT or address not in self._nodes else found

    def seen(self, socket: int, place: Place, protocol: int) -> Place:
        """As whom the socket's owner sees somebody: the sender of an answer, or the peer."""
        backend, asked = self.known.get((socket, protocol), (None, place))
        if backend == place:
            return asked
        return self.told.get((socket, place), place) if protocol == Protocol.UDP else place

    def close(self, socket: int, protocol: int) -> None:
        """The socket is gone."""
        self.known.pop((socket, protocol), None)
