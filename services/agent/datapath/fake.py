"""The datapath in readable Python: what the compiled programs must do, packet by packet. The tests' oracle.

`ReferenceDatapath` reads the same bytes as the kernel (maps as dicts), tracks connections, and says of a packet where
it goes or why not, and which events it raises. No speed, no rewriting of checksums, no clock: time is an argument.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from services.agent.abi.endpoints import HOST_ENDPOINT, EndpointFlags, EndpointInfo
from services.agent.abi.events import EventType
from services.agent.abi.ipcache import IpcacheKey, RemoteEndpointInfo, RemoteFlags
from services.agent.abi.lb import Scope
from services.agent.abi.refined import RefinedKey
from services.agent.datapath.fake_lb import Client, ReferenceBalancer
from services.agent.datapath.fake_policy import decide
from services.model.identity import Reserved
from services.model.verdict import Direction, DropReason, Protocol

Maps = Mapping[str, Mapping[bytes, bytes]]
SYN, FIN, RST, ACK = 2, 1, 4, 16


@dataclass(frozen=True, slots=True)
class Packet:
    """What matters of a packet. Addresses have 16 bytes; for ICMP `sport` is the type, `dport` the code and `icmp_id`
    the id."""

    source: bytes
    destination: bytes
    protocol: int
    sport: int = 0
    dport: int = 0
    tcp_flags: int = 0
    icmp_id: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a packet went: `to` is an endpoint id, a tunnel endpoint (16 bytes), or None for the node's stack."""

    packet: Packet
    reason: DropReason | None = None
    to: int | bytes | None = None
    events: tuple[tuple[EventType, int, int], ...] = ()
    """(type, endpoint id, rule id)"""


@dataclass(slots=True)
class Connection:
    """A conntrack entry."""

    direction: Direction
    rule_id: int
    revision: int
    peer_identity: int
    denied: DropReason | None = None
    audited: DropReason | None = None
    """What it would be denied for, were the endpoint not only audited."""
    replied: bool = False
    fins: set[bool] = field(default_factory=set)
    reset: bool = False
    closed: bool = False
    service: tuple[bytes, int] | None = None

    @property
    def closing(self) -> bool:
        """A SYN with the same ports starts anew."""
        return self.reset or self.closed or len(self.fins) == 2


class _Dropped(Exception):
    """Not an error: how a walk ends."""

    def __init__(self, reason: DropReason) -> None:
        self.reason = reason


Key = tuple[bytes, bytes, int, int, int]


class ReferenceDatapath:
    """One node. `maps` are read at every packet; `choose(count)` stands for the random choice of a backend."""

    def __init__(self, maps: Maps, choose: Callable[[int], int] = lambda count: 0) -> None:
        self.maps, self._choose = maps, choose
        self.conntrack: dict[Key, Connection] = {}
        self.chosen: dict[Key, tuple[bytes, int]] = {}
        self._events: list[tuple[EventType, int, int]] = []

    def from_endpoint(self, packet: Packet, ifindex: int) -> Outcome:
        """A pod sent this."""
        return self._walk(packet, lambda: self._from_endpoint(packet, ifindex))

    def to_endpoint(self, packet: Packet, ifindex: int) -> Outcome:
        """The node's stack sends this to a pod."""
        return self._walk(packet, lambda: self._to_endpoint(packet, ifindex))

    def from_netdev(self, packet: Packet) -> Outcome:
        """This arrives at one of the node's devices."""
        return self._walk(packet, lambda: self._from_netdev(packet))

    def to_netdev(self, packet: Packet) -> Outcome:
        """This leaves by one of the node's devices."""
        return self._walk(packet, lambda: self._to_netdev(packet))

    def _walk(self, packet: Packet, walk: Callable[[], tuple[Packet, int | bytes | None]]) -> Outcome:
        self._events = []
        try:
            after, to = walk()
        except _Dropped as dropped:
            return Outcome(packet, reason=dropped.reason, events=tuple(self._events))
        return Outcome(after, to=to, events=tuple(self._events))

    def _drop(self, reason: DropReason, endpoint: int, rule: int) -> _Dropped:
        self._events.append((EventType.DROP, endpoint, rule))
        return _Dropped(reason)

    def _from_endpoint(self, packet: Packet, ifindex: int) -> tuple[Packet, int | bytes | None]:
        sender = self._endpoint(self.maps["endpoint_ifs"].get(struct.pack("<I", ifindex)))
        if sender is None:
            raise self._drop(DropReason.DROP_EP_NOT_READY, 0, 0)
        if packet.source not in (bytes(sender.ipv4), bytes(sender.ipv6)):
            raise self._drop(DropReason.INVALID_SOURCE_IP, sender.id, 0)
        packet, service = self._service(packet, sender)
        receiver = self._endpoint(self.maps["endpoint_addrs"].get(packet.destination))
        remote = self._ipcache(packet.destination)
        identity = receiver.identity if receiver else remote.identity
        self._police(packet, sender, Direction.EGRESS, identity, service)
        if receiver is not None:
            return self._ingress(packet, receiver, sender.identity), int(receiver.id)
        tunnel = bytes(16) if remote.flags & RemoteFlags.ROUTED else bytes(remote.tunnel_endpoint)
        if not any(tunnel):
            self._to_host(packet, identity, sender.identity)
        return packet, tunnel if any(tunnel) else None

    def _to_endpoint(self, packet: Packet, ifindex: int) -> tuple[Packet, int | bytes | None]:
        receiver = self._endpoint(self.maps["endpoint_ifs"].get(struct.pack("<I", ifindex)))
        if receiver is None:
            raise self._drop(DropReason.DROP_EP_NOT_READY, 0, 0)
        if packet.destination not in (bytes(receiver.ipv4), bytes(receiver.ipv6)):
            raise self._drop(DropReason.STALE_OR_UNROUTABLE_IP, receiver.id, 0)
        identity = self._ipcache(packet.source).identity
        host = self._host()
        if host is not None and identity == Reserved.HOST:
            self._police(packet, host, Direction.EGRESS, receiver.identity, None)
        return self._ingress(packet, receiver, identity), int(receiver.id)

    def _from_netdev(self, packet: Packet) -> tuple[Packet, None]:
        identity = self._ipcache(packet.source).identity
        if identity == Reserved.HOST:
            identity = Reserved.WORLD  # nobody out there is this node
        self._to_host(packet, self._ipcache(packet.destination).identity, identity)
        return packet, None

    def _to_netdev(self, packet: Packet) -> tuple[Packet, None]:
        host = self._host()
        if host is not None and self._ipcache(packet.source).identity == Reserved.HOST:
            self._police(packet, host, Direction.EGRESS, self._ipcache(packet.destination).identity, None)
        return packet, None

    def _to_host(self, packet: Packet, destination: int, source: int) -> None:
        """The node's own turn with what its stack gets."""
        host = self._host()
        if host is not None and destination == Reserved.HOST:
            self._police(packet, host, Direction.INGRESS, source, None)

    def _ingress(self, packet: Packet, receiver: EndpointInfo, identity: int) -> Packet:
        connection = self._police(packet, receiver, Direction.INGRESS, identity, None)
        if connection.direction == Direction.EGRESS and connection.service is not None:
            return replace(packet, source=connection.service[0], sport=connection.service[1])
        return packet

    # One endpoint's turn.

    def _police(
        self,
        packet: Packet,
        endpoint: EndpointInfo,
        direction: Direction,
        identity: int,
        service: tuple[bytes, int] | None,
    ) -> Connection:
        key = connection_key(packet, sends=direction == Direction.EGRESS)
        connection = self.conntrack.get(key)
        if connection is not None and connection.closing and opens(packet):
            if not connection.closed:
                self._events.append((EventType.CLOSE, endpoint.id, connection.rule_id))
            connection = None
        if connection is None:
            return self._new(key, packet, endpoint, direction, identity, service)
        original = connection.direction == direction
        told = False
        if original:
            told = self._again(connection, packet, endpoint, direction, identity)
            if connection.denied is not None:
                raise self._drop(connection.denied, endpoint.id, connection.rule_id)
            if service is not None and connection.service is None:
                connection.service = service
        self._follow(connection, packet, endpoint, original, told=told)
        return connection

    def _new(
        self,
        key: Key,
        packet: Packet,
        endpoint: EndpointInfo,
        direction: Direction,
        identity: int,
        service: tuple[bytes, int] | None,
    ) -> Connection:
        rule, reason, audited = self._decide(packet, endpoint, direction, identity)
        if reason is not None:
            raise self._drop(reason, endpoint.id, rule)
        connection = Connection(direction, rule, endpoint.policy_revision, identity, audited=audited, service=service)
        if packet.protocol == Protocol.TCP:
            connection.fins |= {True} if packet.tcp_flags & FIN else set()
            connection.reset = bool(packet.tcp_flags & RST)
        self.conntrack[key] = connection
        self._events.append((EventType.NEW, endpoint.id, rule))
        return connection

    def _again(
        self, connection: Connection, packet: Packet, endpoint: EndpointInfo, direction: Direction, identity: int
    ) -> bool:
        """A changed policy or peer meets an open connection; whether that was told."""
        if (connection.revision, connection.peer_identity) == (endpoint.policy_revision, identity):
            return False
        rule, reason, audited = self._decide(packet, endpoint, direction, identity)
        before = connection.denied is None, connection.audited is None
        changed = before != (reason is None, audited is None)
        connection.rule_id, connection.denied, connection.audited = rule, reason, audited
        connection.revision, connection.peer_identity = endpoint.policy_revision, identity
        if changed:
            self._events.append((EventType.VERDICT_CHANGE, endpoint.id, rule))
        return changed

    def _follow(
        self, connection: Connection, packet: Packet, endpoint: EndpointInfo, original: bool, *, told: bool
    ) -> None:
        """Counters and the end; a packet tells one thing, and a changed verdict goes before a close."""
        connection.replied |= not original
        if packet.protocol != Protocol.TCP:
            return
        if packet.tcp_flags & FIN:
            connection.fins.add(original)
        connection.reset |= bool(packet.tcp_flags & RST)
        over = connection.reset or len(connection.fins) == 2
        if over and not told and not connection.closed and not packet.tcp_flags & FIN:
            connection.closed = True
            self._events.append((EventType.CLOSE, endpoint.id, connection.rule_id))

    def _decide(
        self, packet: Packet, endpoint: EndpointInfo, direction: Direction, identity: int
    ) -> tuple[int, DropReason | None, DropReason | None]:
        """(rule, why not, why not if it were not only audited)"""
        if (packet.protocol, packet.sport, packet.dport) == (Protocol.ICMP, 3, 4):
            return 0, None, None  # fragmentation needed
        remote = packet.source if direction == Direction.INGRESS else packet.destination
        identity = self._refine(endpoint, direction, identity, remote)
        port = packet.sport if packet.protocol in (Protocol.ICMP, Protocol.ICMPV6) else packet.dport
        rule, reason = decide(self.maps["policy"], endpoint.policy_id, direction, identity, packet.protocol, port)
        return (rule, None, reason) if endpoint.flags & EndpointFlags.AUDIT else (rule, reason, None)

    # Tables.

    def _refine(self, endpoint: EndpointInfo, direction: Direction, identity: int, address: bytes) -> int:
        flag = EndpointFlags.REFINE_INGRESS if direction == Direction.INGRESS else EndpointFlags.REFINE_EGRESS
        if not endpoint.flags & flag:
            return identity
        part = self.maps["refined"].get(RefinedKey(address=address, identity=identity).pack())
        return identity if part is None else int.from_bytes(part, "little")

    def _endpoint(self, number: bytes | None) -> EndpointInfo | None:
        raw = self.maps["endpoints"].get(number) if number is not None else None
        info = EndpointInfo.unpack(raw) if raw is not None else None
        return info if info is not None and info.id else None

    def _host(self) -> EndpointInfo | None:
        """The node as an endpoint, while host policies select it."""
        return self._endpoint(struct.pack("<I", HOST_ENDPOINT))

    def _ipcache(self, address: bytes) -> RemoteEndpointInfo:
        wanted = int.from_bytes(address, "big")
        best, info = -1, RemoteEndpointInfo(identity=Reserved.WORLD)
        for raw, value in self.maps["ipcache"].items():
            key = IpcacheKey.unpack(raw)
            shift = 128 - int(key.prefixlen)
            prefix = int.from_bytes(bytes(key.address), "big")
            if wanted >> shift == prefix >> shift and int(key.prefixlen) > best:
                best, info = int(key.prefixlen), RemoteEndpointInfo.unpack(value)
        return info

    def _service(self, packet: Packet, sender: EndpointInfo) -> tuple[Packet, tuple[bytes, int] | None]:
        """Where a Service's client really goes, and what it had addressed."""
        key = connection_key(packet, sends=True)
        with_services = packet.protocol in (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
        if not with_services or self._settled(packet, self.conntrack.get(key)):
            return packet, None
        backend = self.chosen.get(key)
        if backend is None:
            balancer = ReferenceBalancer(self.maps, self._choose)
            found = balancer.find(packet.destination, packet.dport, packet.protocol, Scope.INTERNAL)
            if found is None:
                return packet, None
            backend = balancer.select(*found, Client(packet.source, packet.sport)) if opens(packet) else None
            if backend is None:
                raise self._drop(DropReason.SERVICE_BACKEND_NOT_FOUND, sender.id, 0)
        service = packet.destination, packet.dport
        after = replace(packet, destination=backend[0], dport=backend[1])
        if self._is_elses(after, service):
            raise self._drop(DropReason.NO_MAPPING_FOR_NAT_MASQUERADE, sender.id, 0)
        self.chosen[key] = backend
        return after, service

    def _is_elses(self, packet: Packet, service: tuple[bytes, int]) -> bool:
        """Another connection has the tuple that this packet would open."""
        if packet.protocol != Protocol.TCP or not opens(packet):
            return False
        connection = self.conntrack.get(connection_key(packet, sends=True))
        return connection is not None and not connection.closing and connection.service != service

    @staticmethod
    def _settled(packet: Packet, connection: Connection | None) -> bool:
        """The connection was seen to go where it goes: no Service any more."""
        if connection is None:
            return False
        if packet.protocol == Protocol.TCP:
            return not opens(packet)
        return connection.direction == Direction.INGRESS or connection.replied


def opens(packet: Packet) -> bool:
    """May this packet start a connection?"""
    return packet.protocol != Protocol.TCP or packet.tcp_flags & (SYN | ACK) == SYN


def connection_key(packet: Packet, *, sends: bool) -> Key:
    """The connection as the endpoint sees it that sends or receives the packet."""
    sport, dport = packet.sport, packet.dport
    if packet.protocol in (Protocol.ICMP, Protocol.ICMPV6) and packet.sport in (0, 8, 128, 129):
        asks = packet.sport in (8, 128)
        sport, dport = (packet.icmp_id, 0) if asks else (0, packet.icmp_id)
    ends = (packet.source, packet.destination, sport, dport)
    local, remote, lport, rport = ends if sends else (ends[1], ends[0], ends[3], ends[2])
    return local, remote, lport, rport, packet.protocol
