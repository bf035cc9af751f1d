"""A client and a server pod on a node, one of them with HTTP policy, packet by packet: nothing but our programs runs.

What the kernel sends to the client enters through the server's veth, or in the client's own turn leaves by its own; a
packet socket there sees it.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scapy.all import TCP

from services.agent.abi.conntrack import CtKey
from services.agent.abi.events import HTTP_EVENT
from services.agent.abi.http import HttpConn
from services.agent.abi.layout import be16
from services.agent.calc.http import HttpTables, compile_rulesets
from services.agent.datapath.http_tables import HttpTableWriter
from services.agent.events.lanes import EventReader, open_events
from services.model.verdict import Direction
from tests.datapath.http_model import Rule, Trace
from tests.datapath.node import TC_ACT_REDIRECT, TC_ACT_SHOT, Node, inside, ip, sh
from tests.datapath.packets import from_pod, parse, tcp

CLIENT, SERVER = 1001, 1002
RULESET = 5
_ports = itertools.count(20000)


class HttpNode(Node):
    """See the module."""

    def __init__(self, cache_dir: Path, side: Direction = Direction.INGRESS, **sizes: int) -> None:
        self.side = side
        """Whose rules: the server's, or the client's on egress."""
        self._sniffer: socket.socket | None = None
        self._http_reader: EventReader | None = None
        super().__init__(cache_dir, links=2, **sizes)
        for link in ("host0", "host1", "pod0"):
            sh("ip", "link", "set", link, "up", netns=self.name)
        with inside(self.name):
            self._sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.ntohs(3))
            self._sniffer.bind(("host1" if side == Direction.INGRESS else "pod0", 0))
        self.writer = HttpTableWriter({n: self.map(n) for n in ("http_grammar", "http_tables", "http_config")})
        self.client, self.server = self.pod(1, CLIENT), self.pod(2, SERVER)
        self.policy()

    def close(self) -> None:
        if self._sniffer is not None:
            self._sniffer.close()
        if self._http_reader is not None:
            self._http_reader.close()
        super().close()

    def reset(self) -> None:
        super().reset()
        self.client, self.server = self.pod(1, CLIENT), self.pod(2, SERVER)
        self.policy()
        self.answers()
        self.http_events()

    def policy(self, l7: int = RULESET) -> None:
        """The server takes the client on port 80, or the client may go there, under a rule set (0: none)."""
        if self.side == Direction.EGRESS:
            self.open(self.server)
            self.open(self.client, Direction.INGRESS)
            self.rule(self.client, Direction.EGRESS, SERVER, 6, 80, rule_id=77, l7=l7)
            self.change_policy(self.client)
            return
        self.open(self.client)
        self.open(self.server, Direction.EGRESS)
        self.rule(self.server, Direction.INGRESS, CLIENT, 6, 80, rule_id=77, l7=l7)
        self.change_policy(self.server)

    def rules(self, *rules: Rule, ruleset: int = RULESET) -> HttpTables:
        return self.compile({ruleset: rules})

    def compile(self, rulesets: Mapping[int, Sequence[Rule]]) -> HttpTables:
        tables = compile_rulesets(rulesets)
        self.writer.write(tables)
        return tables

    def answers(self) -> list[Any]:
        """What the kernel sent to the client since the last call."""
        assert self._sniffer is not None
        found = []
        while True:
            try:
                found.append(parse(self._sniffer.recv(65536)))
            except BlockingIOError:
                return [packet for packet in found if TCP in packet]

    def http_events(self) -> np.ndarray[Any, np.dtype[Any]]:
        if self._http_reader is None:
            self._http_reader = open_events(self.map("http_events").fd, HTTP_EVENT)
        return self._http_reader.read(1 << 16)

    @staticmethod
    def trace(event: Any) -> Trace | None:
        """The trace that an HTTP event names."""
        if not event["traced"]:
            return None
        return event["trace_id"].tobytes().hex(), event["parent_id"].tobytes().hex(), int(event["trace_flags"])

    def states(self) -> list[HttpConn]:
        return [HttpConn.unpack(value) for _, value in self.map("http_conns").items()]


@contextlib.contextmanager
def serving(cache_dir: Path, *rules: Rule, side: Direction = Direction.INGRESS) -> Iterator[HttpNode]:
    """A node whose server, or client, has these rules."""
    http = HttpNode(cache_dir, side)
    try:
        http.rules(*rules)
        yield http
    finally:
        http.close()


@dataclass
class Outcome:
    """What became of a client's packet: it went on as it was, was turned into a reset, or went nowhere."""

    verdict: int
    packet: Any
    payload: bytes

    @property
    def passed(self) -> bool:
        return self.verdict == TC_ACT_REDIRECT and "R" not in str(self.packet[TCP].flags)

    @property
    def reset(self) -> bool:
        return self.verdict == TC_ACT_REDIRECT and "R" in str(self.packet[TCP].flags)

    @property
    def dropped(self) -> bool:
        return self.verdict == TC_ACT_SHOT


@dataclass
class Connection:
    """A client's view: sequence numbers count from `isn`, payload offsets from 0."""

    node: HttpNode
    v6: bool = False
    isn: int = 1000
    server_isn: int = 5000
    port: int = field(default_factory=lambda: next(_ports))

    def open(self, syn_flags: str = "S") -> Connection:
        self.raw(tcp(self.port, 80, syn_flags, seq=self.isn))
        self.from_server("SA", seq=self.server_isn, ack=(self.isn + 1) & 0xFFFFFFFF)
        self.raw(tcp(self.port, 80, "A", seq=self.isn + 1, ack=self.server_isn + 1))
        return self

    def seq(self, offset: int) -> int:
        return (self.isn + 1 + offset) & 0xFFFFFFFF

    def raw(self, l4: Any, **fields: Any) -> Outcome:
        destination = self.node.server.ipv6 if self.v6 else self.node.server.ipv4
        packet = from_pod(self.node.client, destination, l4, **fields)
        result = self.node.run("from_endpoint", packet, self.node.client.ifindex)
        parsed = parse(result.packet)
        payload = bytes(parsed[TCP].payload) if TCP in parsed else b""
        return Outcome(result.verdict, parsed, payload)

    def send(self, offset: int, payload: bytes, flags: str = "PA", ack: int = 1, **fields: Any) -> Outcome:
        """A segment of the stream at `offset`."""
        layer = tcp(
            self.port, 80, flags, payload, seq=self.seq(offset), ack=(self.server_isn + ack) & 0xFFFFFFFF, **fields
        )
        return self.raw(layer)

    def from_server(self, flags: str, payload: bytes = b"", **fields: Any) -> int:
        """A packet of the server's; returns the verdict."""
        destination = self.node.client.ipv6 if self.v6 else self.node.client.ipv4
        packet = from_pod(self.node.server, destination, tcp(80, self.port, flags, payload, **fields))
        return self.node.run("from_endpoint", packet, self.node.server.ifindex).verdict

    def let_answer(self) -> None:
        """As if the server had answered long ago what a packet brought that was cut (`bpf/lib/http_cut.h`)."""
        ends = [(self.node.server, 80), (self.node.client, self.port)]
        (local, local_port), (remote, remote_port) = ends if self.node.side == Direction.INGRESS else ends[::-1]
        key = CtKey(
            local=ip(local.ipv6 if self.v6 else local.ipv4),
            remote=ip(remote.ipv6 if self.v6 else remote.ipv4),
            local_port=be16(local_port),
            remote_port=be16(remote_port),
            protocol=6,
        ).pack()
        state = HttpConn.unpack(self.node.map("http_conns").lookup(key) or b"")
        assert state.cut
        state.heard_ns, state.heard_seq = 1, self.server_isn
        self.node.map("http_conns").update(key, state.pack())

    def acknowledge(self, offset: int) -> int:
        """The server says that it has everything up to `offset`."""
        return self.from_server("A", seq=self.server_isn + 1, ack=self.seq(offset))
