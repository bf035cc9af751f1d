"""Sockets of a network namespace by netlink (NETLINK_SOCK_DIAG): list connected UDP sockets, end some of them.

Packed by hand: two messages, of which pyroute2 knows one. Layouts: `linux/inet_diag.h`.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from services.common.errors import Unavailable
from services.model.addresses import V4_MAPPED_PREFIX

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_ESTABLISHED = 1 << 1
"""A UDP socket that was connected is in this state."""
_SO_NETNS_COOKIE = 71
_HEADER = struct.Struct("IHHII")
_REQUEST_V2 = struct.Struct("=BBBxI48s")
_SOCKID = struct.Struct("=2s2s16s16sIQ")
_BUFFER = 1 << 16


@dataclass(frozen=True, slots=True)
class UdpSocket:
    """A connected UDP socket. `sockid` is the kernel's own description of it."""

    family: int
    cookie: int
    peer: bytes
    """Address (16 bytes) and port (network order) of whom it is connected to."""
    sockid: bytes


class SocketDiagnosis:
    """A netlink socket of the namespace in which it is made. Use as a context manager."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        # The answer to a request is there when `send` returns; a missing one is an error, not a wait.
        self._socket.settimeout(1.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def netns_cookie(self) -> int:
        """The namespace's number, as programs see it. Raises `Unavailable` where the kernel does not tell."""
        try:
            return int(struct.unpack("Q", self._socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0])
        except OSError as error:
            raise Unavailable(f"cookie of a network namespace: {error.strerror}") from error

    def connected_udp(self) -> Iterator[UdpSocket]:
        """All connected UDP sockets of both families. Raises `Unavailable`."""
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST_V2.pack(family, socket.IPPROTO_UDP, 0, _ESTABLISHED, bytes(48))
            for payload in self._ask(_SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, request):
                sockid = payload[4:52]
                _, port, _, address, _, cookie = _SOCKID.unpack(sockid)
                four = payload[0] == socket.AF_INET
                peer = (V4_MAPPED_PREFIX + address[:4] if four else address) + port
                yield UdpSocket(payload[0], cookie, peer, sockid)

    def destroy(self, found: UdpSocket) -> bool:
        """End it: its owner gets ECONNABORTED. False when it is gone already. Raises `Unavailable`."""
        request = _REQUEST_V2.pack(found.family, socket.IPPROTO_UDP, 0, _ESTABLISHED, found.sockid)
        try:
            list(self._ask(_SOCK_DESTROY, _REQUEST | _ACK, request))
        except FileNotFoundError:
            return False
        return True

    def _ask(self, kind: int, flags: int, request: bytes) -> Iterator[bytes]:
        try:
            self._socket.send(_HEADER.pack(_HEADER.size + len(request), kind, flags, 0, 0) + request)
            while True:
                for answer, payload in _messages(self._socket.recv(_BUFFER)):
                    if answer in (_DONE, _ERROR):
                        _raise(payload)
                        return
                    yield payload
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Unavailable(f"socket diagnosis: {error.strerror or error}") from error


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]


def _raise(payload: bytes) -> None:
    (code,) = struct.unpack_from("i", payload) if len(payload) >= 4 else (0,)
    if code:
        raise OSError(-code, os.strerror(-code))
