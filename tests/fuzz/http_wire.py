"""Scripts of packets through the kernel's programs, fast, and what a server's socket would make of those that pass.

One connection is used over and over: the state that its handshake left is written back before each script.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass, field

from services.agent.datapath import syscall
from services.agent.datapath.syscall import Cmd
from tests.datapath.http_node import Connection, HttpNode
from tests.datapath.node import TC_ACT_REDIRECT, inside
from tests.datapath.packets import from_pod, tcp
from tests.fuzz.http_streams import Script

TCP_AT = 14 + 20
FIN, RST = 1, 4
MAX_PACKET = 2048
DRAIN_EVERY = 256


@dataclass
class Received:
    """What the server's application can read: the stream, and how it ends."""

    stream: bytes = b""
    closed: bool = False
    """The client's FIN arrived; otherwise the connection was reset or stays open."""
    waiting: dict[int, int] = field(default_factory=dict)


class Runner:
    """BPF_PROG_TEST_RUN of one program over packets in one buffer; call it inside the node's namespace."""

    def __init__(self, program: int, ifindex: int) -> None:
        self.packet = ctypes.create_string_buffer(MAX_PACKET)
        self._out = ctypes.create_string_buffer(MAX_PACKET)
        self._context = ctypes.create_string_buffer(struct.pack("<11I", *[0] * 10, ifindex).ljust(192, b"\0"), 192)
        self._attr = ctypes.create_string_buffer(160)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._program = program
        self.size = 0
        """Of the packet that the program left."""

    def run(self, length: int) -> tuple[int, int]:
        """(verdict, TCP flags of the packet that the program left)."""
        where = ctypes.addressof
        struct.pack_into(
            "IIIIQQIIIIQQ",
            self._attr,
            0,
            self._program,
            0,
            length,
            MAX_PACKET,
            where(self.packet),
            where(self._out),
            1,
            0,
            192,
            0,
            where(self._context),
            0,
        )
        if self._libc.syscall(syscall._NUMBER, int(Cmd.PROG_TEST_RUN), self._attr, 160) < 0:
            raise OSError(ctypes.get_errno(), "BPF_PROG_TEST_RUN")
        verdict = int.from_bytes(self._attr[4:8], "little")
        self.size = int.from_bytes(self._attr[12:16], "little")
        return verdict, self._out[TCP_AT + 13][0]

    def left(self, length: int) -> bytes:
        """The packet that the program left."""
        return self._out.raw[:length]


class Wire:
    """See the module."""

    def __init__(self, node: HttpNode) -> None:
        self._node = node
        connection = Connection(node).open()
        ((self._key, self._pristine),) = list(node.map("http_conns").items())
        self._first = connection.seq(0)
        layer = tcp(connection.port, 80, "PA", b"", seq=self._first, ack=connection.server_isn + 1)
        header = from_pod(node.client, node.server.ipv4, layer)
        self._client = Runner(node.prog("from_endpoint"), node.client.ifindex)
        self._client.packet[: len(header)] = header
        self._length = len(header)
        layer = tcp(80, connection.port, "A", b"", seq=connection.server_isn + 1, ack=self._first)
        ack = from_pod(node.server, node.client.ipv4, layer)
        self._server = Runner(node.prog("from_endpoint"), node.server.ifindex)
        self._server.packet[: len(ack)] = ack
        self._ack_length = len(ack)
        self._ct = [(key, value) for key, value in node.map("ct").items()]
        self._count = 0

    def run(self, script: Script) -> Received:
        """What the server can read after a script and the client's FIN behind it."""
        with inside(self._node.name):
            return self.run_inside(script)

    def run_inside(self, script: Script) -> Received:
        """The same for a caller that is in the namespace already."""
        self._begin()
        received = Received()
        end = 0
        for number, segment in enumerate(script.segments):
            end = max(end, segment.offset + len(segment.payload))
            passed, reset = self._send(segment.offset, segment.payload, 0x18)
            if reset:
                return received
            if passed and not segment.lost:
                # What is refused behind something allowed is cut off.
                payload = segment.payload[: self._client.size - self._length]
                take(received, segment.offset, payload, newer_wins=bool(number & 1))
            if not script.ordered and number % 3 == 2:
                self._acknowledge(len(received.stream))
        if len(received.stream) == end:
            self._acknowledge(end)
        passed, reset = self._send(len(received.stream), b"", 0x10 | FIN)
        received.closed = passed and not reset
        return received

    def _begin(self) -> None:
        self._node.map("http_conns").update(self._key, self._pristine)
        self._count += 1
        if self._count % DRAIN_EVERY == 0:
            for key, value in self._ct:
                self._node.map("ct").update(key, value)
            self._node.events()
            self._node.http_events()
            self._node.answers()

    def _send(self, offset: int, payload: bytes, flags: int) -> tuple[bool, bool]:
        packet, length = self._client.packet, self._length + len(payload)
        struct.pack_into(">H", packet, 16, length - 14)
        struct.pack_into(">I", packet, TCP_AT + 4, (self._first + offset) & 0xFFFFFFFF)
        packet[TCP_AT + 13] = flags
        packet[self._length : length] = payload
        verdict, left = self._client.run(length)
        reset = verdict == TC_ACT_REDIRECT and bool(left & RST)
        return verdict == TC_ACT_REDIRECT and not reset, reset

    def _acknowledge(self, offset: int) -> None:
        struct.pack_into(">I", self._server.packet, TCP_AT + 8, (self._first + offset) & 0xFFFFFFFF)
        self._server.run(self._ack_length)


def take(received: Received, offset: int, payload: bytes, newer_wins: bool) -> None:
    """A socket: in order it takes what comes; out of order, either of two copies may win."""
    have = len(received.stream)
    if offset == have and not received.waiting:
        received.stream += payload
        return
    for i, byte in enumerate(payload, offset):
        if i >= have and (newer_wins or i not in received.waiting):
            received.waiting[i] = byte
    more = bytearray()
    while have in received.waiting:
        more.append(received.waiting.pop(have))
        have += 1
    received.stream += bytes(more)
