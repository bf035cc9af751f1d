"""Route netlink (rtnetlink(7)) as thin as possible: messages packed by hand, many in one system call.

The kernel works a batch off in order while it is being sent, so its answers are there when the call returns: nobody
waits and nothing is asynchronous. Numbers and layouts: linux/rtnetlink.h, if_link.h, neighbour.h, pkt_sched.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

NEW_LINK, DELETE_LINK, GET_LINK = 16, 17, 18
NEW_ADDRESS, GET_ADDRESS = 20, 22
NEW_ROUTE, DELETE_ROUTE, GET_ROUTE = 24, 25, 26
NEW_NEIGHBOUR = 28
NEW_QDISC, DELETE_QDISC = 36, 37
NEW_FILTER, DELETE_FILTER, GET_FILTER = 44, 45, 46
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
REPLACE, EXCLUSIVE, CREATE = 0x100, 0x200, 0x400
UP = 1
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _CAP_ACK = 270, 10
_BUFFER = 1 << 20
_NESTED = 0x8000
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
UNICAST, UNREACHABLE = 1, 7
"""Types of routes."""
MAIN_TABLE, _STATIC = 254, 4
_ROUTE = struct.Struct("=BBBBBBBBI")
ROUTE_BYTES = _ROUTE.size
_NAMES = 1 << 3
"""RTEXT_FILTER_SKIP_STATS: links are asked for without their counters, which are most of an answer."""

IFLA_ADDRESS, IFLA_NAME, IFLA_MTU, IFLA_LINK, IFLA_LINKINFO, IFLA_ALIAS = 1, 3, 4, 5, 18, 20
_IFLA_NETNS_FD, _IFLA_EXT_MASK = 28, 29


class NetlinkRefused(OSError):
    """The kernel refused a message; `place`: which of the batch."""

    def __init__(self, code: int, place: int) -> None:
        super().__init__(code, os.strerror(code))
        self.code, self.place = code, place


@dataclass(frozen=True, slots=True)
class Message:
    """A request. `fine`: errors that mean that nothing is left to do."""

    kind: int
    body: bytes
    flags: int = 0
    fine: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """An interface: `peer` is the index of a veth's other end where that is told."""

    index: int
    name: str
    alias: str = ""
    peer: int = 0
    mtu: int = 0


class Netlink:
    """A socket of the network namespace in which it is made. Use as a context manager, or `close`."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(10.0)  # a missing answer is an error, not a wait
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def do(self, messages: Sequence[Message]) -> list[bytes]:
        """All of them in order, in one call; the body that each was answered with, if any. Those after a refused one
        are carried out as well; then the first refusal is raised."""
        answers, refused = self.attempt(messages)
        if refused:
            raise refused[0]
        return answers

    def attempt(self, messages: Sequence[Message]) -> tuple[list[bytes], list[NetlinkRefused]]:
        """As `do`, but every refusal is returned beside the answers."""
        first = self._sequence + 1
        raw = []
        for message in messages:
            self._sequence += 1
            raw.append(
                _HEADER.pack(16 + len(message.body), message.kind, REQUEST | ACK | message.flags, self._sequence, 0)
                + message.body
                + bytes(-len(message.body) % 4)
            )
        self._socket.send(b"".join(raw))
        answers, refused = [b""] * len(messages), list[NetlinkRefused]()
        waiting = len(messages)
        while waiting:
            for kind, sequence, body in self._receive():
                place = sequence - first
                if not 0 <= place < len(messages):
                    continue  # of an earlier batch that was given up
                if kind != _ERROR:
                    answers[place] = body
                    continue
                waiting -= 1
                code = -int.from_bytes(body[:4], "little", signed=True)
                if code and code not in messages[place].fine:
                    refused.append(NetlinkRefused(code, place))
        return answers, refused

    def dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        """Every object of a kind; the bodies of the answers."""
        self._sequence += 1
        wanted = self._sequence
        self._socket.send(_HEADER.pack(16 + len(body), kind, REQUEST | DUMP, wanted, 0) + body)
        while True:
            for what, sequence, answer in self._receive():
                if sequence != wanted:
                    continue
                if what == _DONE:
                    return
                if what == _ERROR:
                    raise NetlinkRefused(-int.from_bytes(answer[:4], "little", signed=True), 0)
                yield answer

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        """(kind, sequence, body) of the next datagram."""
        data, at = self._socket.recv(_BUFFER), 0
        while at + 16 <= len(data):
            length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
            yield kind, sequence, data[at + 16 : at + length]
            at += (length + 3) & ~3

    def links(self) -> Iterator[Link]:
        """All interfaces."""
        for body in self.dump(GET_LINK, _LINK.pack(0, 0, 0, 0, 0) + u32(_IFLA_EXT_MASK, _NAMES)):
            yield read_link(body)

    def addresses(self) -> Iterator[tuple[int, int, bytes]]:
        """(interface's index, scope, address) of all addresses."""
        for body in self.dump(GET_ADDRESS, bytes(8)):
            _, _, _, scope, index = _ADDRESS.unpack_from(body)
            found = attributes(body, _ADDRESS.size)
            address = found.get(2) or found.get(1)  # the own end of a point-to-point link
            if address:
                yield index, scope, address

    def default_routes(self) -> Iterator[tuple[int, int, int]]:
        """(family, metric, interface's index) of default routes."""
        for family_ in (2, 10):
            for body in self.dump(GET_ROUTE, bytes([family_]) + bytes(11)):
                if not body[1] and body[7] == UNICAST:
                    found = attributes(body, ROUTE_BYTES)
                    metric, index = (int.from_bytes(found.get(kind, b""), "little") for kind in (6, 4))
                    yield family_, metric, index

    def link(self, name: str) -> Link | None:
        """An interface by name."""
        try:
            return read_link(self.do([get_link(name)])[0])
        except NetlinkRefused as error:
            if error.code != errno.ENODEV:
                raise
            return None


# Packing and reading.


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """Attributes in an attribute."""
    return attribute(kind, b"".join(parts))


def text(kind: int, value: str) -> bytes:
    """A string attribute."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """A number attribute."""
    return attribute(kind, value.to_bytes(4, "little"))


def attributes(body: bytes, at: int) -> dict[int, bytes]:
    """The attributes behind a message's fixed part of `at` bytes."""
    found = {}
    while at + 4 <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < 4:
            break
        found[kind & ~_NESTED] = body[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def read_link(body: bytes) -> Link:
    """An interface as the kernel tells it."""
    index = _LINK.unpack_from(body)[2]
    found = attributes(body, _LINK.size)
    name, alias = (found.get(kind, b"").rstrip(b"\0").decode(errors="replace") for kind in (IFLA_NAME, IFLA_ALIAS))
    peer, mtu = (int.from_bytes(found.get(kind, b""), "little") for kind in (IFLA_LINK, IFLA_MTU))
    return Link(index, name, alias, peer, mtu)


def get_link(name: str) -> Message:
    """Ask for an interface."""
    return Message(GET_LINK, _LINK.pack(0, 0, 0, 0, 0) + text(IFLA_NAME, name) + u32(_IFLA_EXT_MASK, _NAMES))


def delete_link(name: str) -> Message:
    """Remove an interface; absent = success."""
    return Message(DELETE_LINK, _LINK.pack(0, 0, 0, 0, 0) + text(IFLA_NAME, name), fine=(errno.ENODEV, errno.ENOENT))


def set_link(index: int, *, up: bool = True, alias: str = "", mtu: int = 0) -> Message:
    """Change an interface."""
    flags = UP if up else 0
    body = _LINK.pack(0, 0, index, flags, flags)
    body += text(IFLA_ALIAS, alias) if alias else b""
    return Message(NEW_LINK, body + (u32(IFLA_MTU, mtu) if mtu else b""))


def add_veth(name: str, mac: bytes, peer: str, peer_mac: bytes, netns: int, mtu: int) -> Message:
    """A pair, whose other end is made in the namespace behind the descriptor `netns`; both are down."""
    common = text(IFLA_NAME, name) + attribute(IFLA_ADDRESS, mac) + u32(IFLA_MTU, mtu)
    other = _LINK.pack(0, 0, 0, 0, 0) + text(IFLA_NAME, peer) + attribute(IFLA_ADDRESS, peer_mac)
    other += u32(IFLA_MTU, mtu) + u32(_IFLA_NETNS_FD, netns)
    info = nested(IFLA_LINKINFO, text(1, "veth"), nested(2, attribute(1, other)))
    return Message(NEW_LINK, _LINK.pack(0, 0, 0, 0, 0) + common + info, CREATE | EXCLUSIVE)


def add_address(index: int, address: bytes, *, scope: int = 0, flags: int = 0) -> Message:
    """Give an interface an address of its own, without a network around it."""
    body = _ADDRESS.pack(family(address), 8 * len(address), flags, scope, index)
    return Message(NEW_ADDRESS, body + attribute(1, address) + attribute(2, address), CREATE | EXCLUSIVE)


def set_neighbour(index: int, address: bytes, mac: bytes) -> Message:
    """Who has an address, for good."""
    body = struct.pack("=BxxxiHBB", family(address), index, 0x80, 0, 0)
    return Message(NEW_NEIGHBOUR, body + attribute(1, address) + attribute(2, mac), CREATE | REPLACE)


def rtmsg(
    version: int, length: int = 0, *, table: int = 0, protocol: int = 0, scope: int = 0, kind: int = 0, flags: int = 0
) -> bytes:
    """struct rtmsg (linux/rtnetlink.h), for a destination of `length` bits; what is 0 is left open."""
    return _ROUTE.pack(2 if version == 4 else 10, length, 0, 0, table, protocol, scope, kind, flags)


def set_route(
    index: int, version: int, destination: bytes = b"", gateway: bytes = b"", *, scope: int = 0, flags: int = 0
) -> Message:
    """A route over an interface, in the main table; without a destination it is the default one."""
    body = rtmsg(
        version, 8 * len(destination), table=MAIN_TABLE, protocol=_STATIC, scope=scope, kind=UNICAST, flags=flags
    )
    body += attribute(1, destination) if destination else b""
    body += attribute(5, gateway) if gateway else b""
    return Message(NEW_ROUTE, body + u32(4, index), CREATE | REPLACE)


def add_clsact(index: int) -> Message:
    """The place where programs are put."""
    body = struct.pack("=BxxxiIII", 0, index, 0xFFFF0000, 0xFFFFFFF1, 0)
    return Message(NEW_QDISC, body + text(1, "clsact"), CREATE | EXCLUSIVE, fine=(errno.EEXIST,))


def delete_queue(index: int, handle: int) -> Message:
    """Take an interface's queue away if it is the one with that handle; others stay."""
    body = struct.pack("=BxxxiIII", 0, index, handle, 0xFFFFFFFF, 0)
    return Message(DELETE_QDISC, body, fine=(errno.EINVAL, errno.ENOENT))


def _filter(index: int, parent: int, priority: int, handle: int) -> bytes:
    info = priority << 16 | socket.htons(0x0003)  # ETH_P_ALL
    return struct.pack("=BxxxiIII", 0, index, handle, parent, info)


def set_program(index: int, parent: int, priority: int, handle: int, program: int, name: str) -> Message:
    """A program (descriptor) on a hook; one that is there is replaced in place."""
    options = nested(2, u32(6, program), text(7, name), u32(8, 1))  # direct action
    body = _filter(index, parent, priority, handle) + text(1, "bpf") + options
    return Message(NEW_FILTER, body, CREATE)


def delete_program(index: int, parent: int, priority: int, handle: int) -> Message:
    """No program there; none and no place for one is a success."""
    body = _filter(index, parent, priority, handle) + text(1, "bpf")
    return Message(DELETE_FILTER, body, fine=(errno.ENOENT, errno.EINVAL))


def programs(netlink: Netlink, index: int, parent: int) -> Iterable[str]:
    """Names of the programs on a hook; a device without the place for them has none."""
    try:
        for body in netlink.dump(GET_FILTER, struct.pack("=BxxxiIII", 0, index, 0, parent, 0)):
            options = attributes(body, 20).get(2)
            name = attributes(options, 0).get(7) if options else None
            if name is not None:
                yield name.rstrip(b"\0").decode(errors="replace")
    except NetlinkRefused:
        return


def family(address: bytes) -> int:
    """AF_INET or AF_INET6, by length."""
    return 2 if len(address) == 4 else 10
