"""A pod's TCP connection to its DNS server, segment by segment, and a whole conversation on it."""

from __future__ import annotations

import itertools
import random
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from scapy.all import TCP

from tests.datapath import dns_model as model
from tests.datapath.dns_node import Asker, answer, record
from tests.datapath.node import TC_ACT_OK, TC_ACT_SHOT, Node, inside
from tests.datapath.packets import checksums_hold, from_pod, parse, tcp, to_pod

START, SERVER_START = 0xFFFFFFE0, 7000
"""The first bytes of the two streams."""
_ports = itertools.count(30000)


def framed(message: bytes) -> bytes:
    """A message as it stands in a stream."""
    return struct.pack(">H", len(message)) + message


def messages(stream: bytes) -> list[bytes]:
    """The complete messages at the beginning of a stream."""
    found = []
    while len(stream) >= 2 and len(stream) >= 2 + (size := struct.unpack_from(">H", stream)[0]):
        found.append(stream[2 : 2 + size])
        stream = stream[2 + size :]
    return found


class Stream:
    """A connection that is open; positions count from each side's first byte."""

    def __init__(self, node: Node, asker: Asker) -> None:
        self.node, self.asker, self.port = node, asker, next(_ports)
        assert self.send(b"", -1, "S").verdict == TC_ACT_OK
        assert self.hear(b"", -1, "SA", acked=0).verdict == TC_ACT_OK

    def send(self, data: bytes, at: int = 0, flags: str = "PA", heard: int = 0, **fields: Any) -> Any:
        """The pod's segment; `heard`: what it has of the server's stream."""
        fields |= {"seq": (START + at) & 0xFFFFFFFF, "ack": SERVER_START + heard}
        l4 = tcp(self.port, 53, flags, data, **fields)
        return self.node.run("from_endpoint", from_pod(self.asker.pod, self.asker.server, l4), self.asker.pod.ifindex)

    def hear(self, data: bytes, at: int = 0, flags: str = "PA", acked: int = 0) -> Any:
        """The server's segment; `acked`: what it has of the pod's stream."""
        l4 = tcp(53, self.port, flags, data, seq=SERVER_START + at, ack=(START + acked) & 0xFFFFFFFF)
        return self.node.run("to_endpoint", to_pod(self.asker.pod, self.asker.server, l4), self.asker.pod.ifindex)


class Sniffer:
    """What the kernel sends to the pod by itself."""

    def __init__(self, node: Node) -> None:
        with inside(node.name):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.ntohs(3))
        self._socket.bind(("pod0", 0))

    def told(self) -> list[Any]:
        """Segments since the last look."""
        found = []
        while True:
            try:
                raw = self._socket.recv(65536)
            except BlockingIOError:
                return found
            packet = parse(raw)
            if TCP in packet and packet[TCP].sport == 53:
                assert checksums_hold(raw)
                found.append(packet)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


def passes(result: Any, data: bytes) -> bool:
    """Whether the segment went on as it came."""
    return result.verdict == TC_ACT_OK and bytes(parse(result.packet)[TCP].payload) == data


def is_reset(result: Any, expected: int) -> bool:
    """Whether the segment became a reset of the server, of which `expected` is the next byte."""
    seen = parse(result.packet)[TCP]
    assert checksums_hold(result.packet)
    return result.verdict == TC_ACT_OK and "R" in str(seen.flags) and bool(seen.seq == (START + expected) & 0xFFFFFFFF)


@dataclass(slots=True)
class Conversation:
    """A pod that sends its questions in segments of any size, again when it must, and a server that answers when it
    likes: both know what TCP knows and nothing of rules."""

    stream: Stream
    sniffer: Sniffer
    whole: bytes
    chance: random.Random
    server_has: bytearray = field(default_factory=bytearray)
    server_said: bytearray = field(default_factory=bytearray)
    pod_has: bytearray = field(default_factory=bytearray)
    sent: int = 0
    acked: int = 0
    answered: int = 0
    ended: bool = False
    """The pod was told that the connection ends."""
    reset: bool = False
    """It was told so by a reset."""
    server_reset: int | None = None
    _heard: int = 0

    def run(self, steps: int = 3000) -> None:
        """Until the connection ends, or all is asked and answered."""
        for _ in range(steps):
            moves = (self._pod_sends, self._pod_sends, self._server_answers, self._server_sends)
            self.chance.choice(moves)()
            if self.ended or self.finished:
                return

    @property
    def finished(self) -> bool:
        """All is asked, answered and heard."""
        asked, heard = len(messages(self.whole)), len(self.pod_has) == len(self.server_said)
        return self.acked == len(self.whole) and self.answered == asked and heard

    def close(self) -> None:
        """The pod acknowledges its answer and closes."""
        heard = len(self.pod_has) + 1
        for flags in ("A", "FA", "FA"):
            result = self.stream.send(b"", self.sent, flags, heard)
            if result.verdict == TC_ACT_OK:
                self._server_takes(parse(result.packet)[TCP])
        assert all(str(packet[TCP].flags) == "A" for packet in self.sniffer.told())

    def _pod_sends(self) -> None:
        """What comes next, or everything from the last acknowledged byte on."""
        if self.chance.random() < 0.3 or self.sent >= len(self.whole):
            self.sent = self.acked
        end = min(len(self.whole), self.sent + self.chance.choice((1, 2, 13, 40, 90, 300)))
        heard = self.chance.choice((self._heard, len(self.pod_has), len(self.pod_has)))  # or it crosses what comes
        self._heard = len(self.pod_has)
        result = self.stream.send(self.whole[self.sent : end], self.sent, heard=heard)
        if result.verdict == TC_ACT_OK:
            self._server_takes(parse(result.packet)[TCP])
        self.sent = end
        for packet in self.sniffer.told():
            self._pod_takes(packet[TCP])

    def _server_takes(self, segment: Any) -> None:
        at = (segment.seq - START) & 0xFFFFFFFF
        if "R" in str(segment.flags):
            if at == len(self.server_has):
                self.server_reset = at
            elif self.server_reset is None and at > len(self.server_has):  # RFC 5961, 3.2: a challenge
                assert self.stream.hear(b"", len(self.server_said), "A", len(self.server_has)).verdict == TC_ACT_SHOT
            return
        data = bytes(segment.payload)
        if self.chance.random() < 0.8 and at <= len(self.server_has) < at + len(data):  # or it is lost
            self.server_has += data[len(self.server_has) - at :]

    def _pod_takes(self, segment: Any) -> None:
        if self.chance.random() < 0.1:
            return  # lost
        self.reset = "R" in str(segment.flags)
        self.ended = self.reset or "F" in str(segment.flags)
        assert segment.seq == SERVER_START + len(self.pod_has), "it does not follow what the pod has"
        self.pod_has += bytes(segment.payload)

    def _server_answers(self) -> None:
        asked = messages(bytes(self.server_has))[self.answered :]
        if asked and self.server_reset is None:
            message = model.read(asked[0])
            assert message is not None
            records = [record("203.0.113.5")] * self.chance.randint(0, 9)
            self.server_said += framed(answer(asked[0][: message.end], records))
            self.answered += 1

    def _server_sends(self) -> None:
        """A piece from where the pod is, or an acknowledgement only."""
        at = len(self.pod_has)
        data = bytes(self.server_said[at : at + self.chance.choice((1, 2, 60, 300))])
        result = self.stream.hear(data, at, acked=len(self.server_has))
        lost = self.chance.random() < 0.1
        if result.verdict == TC_ACT_OK and not lost:
            self.acked = len(self.server_has)
            self.sent = max(self.sent, self.acked)
            self.pod_has += data
