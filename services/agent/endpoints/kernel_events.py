"""What the kernel tells of links, addresses and routes, as raw messages.

A node makes many interfaces, and nearly all messages are about pods. Whoever listens looks at the few bytes that say so
and parses nothing else: a whole message costs a millisecond.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

NEW_LINK, DELETE_LINK, NEW_ADDRESS, DELETE_ADDRESS, NEW_ROUTE, DELETE_ROUTE = 16, 17, 20, 21, 24, 25
_NETLINK_ROUTE = 0
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_BUFFER = 1 << 18


@dataclass(frozen=True, slots=True)
class KernelEvent:
    """One message. `kind` 0: some were lost, anything may have changed."""

    kind: int
    index: int = 0
    """Of the link, or of the link that has the address."""
    scope: int = 0
    """Of the address."""
    prefix_length: int = 0
    """Of the route's destination."""


class KernelEvents:
    """A subscription of the current network namespace, from its making on. `groups`: RTMGRP_*."""

    def __init__(self, groups: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_ROUTE)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._socket.bind((0, groups))

    def close(self) -> None:
        """Hear nothing more."""
        self._socket.close()

    async def read(self) -> AsyncIterator[KernelEvent]:
        """Events, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.sock_recv(self._socket, _BUFFER)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                yield KernelEvent(0)
                continue
            for event in parse_events(data):
                yield event


def parse_events(data: bytes) -> list[KernelEvent]:
    """The messages in one datagram; what is cut short ends the list."""
    found: list[KernelEvent] = []
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        body = data[at + _HEADER.size : at + length]
        if length < _HEADER.size or at + length > len(data):
            break
        if kind in (NEW_LINK, DELETE_LINK) and len(body) >= _LINK.size:
            found.append(KernelEvent(kind, index=_LINK.unpack_from(body)[2]))
        elif kind in (NEW_ADDRESS, DELETE_ADDRESS) and len(body) >= _ADDRESS.size:
            _, _, _, scope, index = _ADDRESS.unpack_from(body)
            found.append(KernelEvent(kind, index=index, scope=scope))
        elif kind in (NEW_ROUTE, DELETE_ROUTE) and len(body) >= _ROUTE.size:
            found.append(KernelEvent(kind, prefix_length=_ROUTE.unpack_from(body)[1]))
        at += (length + 3) & ~3
    return found
