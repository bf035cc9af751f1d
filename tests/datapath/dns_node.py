"""A pod that asks a DNS server in the outside world, packet by packet, and what the kernel learns from the answers."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from scapy.all import UDP

from services.agent.abi.endpoints import EndpointFlags
from services.agent.abi.events import NAME_EVENT
from services.agent.abi.names import CONCERNS, FqdnIp, FqdnName, L7Kind, NamesConfig, name_hash
from services.agent.calc.names import NO_SELECTORS, compile_selectors, compile_table
from services.agent.datapath.name_tables import Lifetimes, NameTableWriter
from services.agent.events.reader import RingReader
from services.model.verdict import Direction
from tests.datapath.node import Node, Pod, ip
from tests.datapath.packets import from_pod, parse, to_pod, udp

SERVER, PORT = "192.0.2.53", 53
RULESET = 7
CLASS_BASE = (1 << 25) - 1000


def question(name: str, qtype: int = 1, number: int = 77, *, edns: bool = False, flags: int = 0x0100) -> bytes:
    """A query as a resolver sends it."""
    head = struct.pack(">6H", number, flags, 1, 0, 0, 1 if edns else 0)
    return (
        head
        + encode(name)
        + struct.pack(">HH", qtype, 1)
        + (b"\0" + struct.pack(">HHIH", 41, 1232, 0, 0) if edns else b"")
    )


def encode(name: str) -> bytes:
    """Labels on the wire."""
    return b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split(".") if label) + b"\0"


def record(address: str, ttl: int = 300, owner: bytes = b"\xc0\x0c") -> bytes:
    """An A or AAAA record."""
    raw = ipaddress.ip_address(address).packed
    return owner + struct.pack(">HHIH", 1 if len(raw) == 4 else 28, 1, ttl, len(raw)) + raw


def alias(target: str, ttl: int = 300, owner: bytes = b"\xc0\x0c") -> bytes:
    """A CNAME record."""
    raw = encode(target)
    return owner + struct.pack(">HHIH", 5, 1, ttl, len(raw)) + raw


def answer(asked: bytes, records: Iterable[bytes], rcode: int = 0, number: int | None = None) -> bytes:
    """An answer to a query without EDNS."""
    items = list(records)
    (own,) = struct.unpack_from(">H", asked)
    head = struct.pack(">6H", own if number is None else number, 0x8180 | rcode, 1, len(items), 0, 0)
    return head + asked[12:] + b"".join(items)


class Names:
    """Rules about names on a node, and what it learned."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.classes: dict[frozenset[str], int] = {}
        self._reader: RingReader | None = None
        for name in ("fqdn_ips", "fqdn_names", "dns_asked"):
            node.map(name).delete_batch([key for key, _ in node.map(name).items()])

    def write(
        self,
        rulesets: Mapping[int, Iterable[str]],
        selectors: Iterable[str] = (),
        *,
        min_ttl: float = 0,
        grace: float = 1,
    ) -> None:
        """Put rules in force as the agent does."""
        fqdn = compile_selectors(selectors) if selectors else NO_SELECTORS
        for found in sorted(fqdn.classes(), key=sorted):
            self.classes.setdefault(found, CLASS_BASE + len(self.classes))
        table = compile_table({n: frozenset(p) for n, p in rulesets.items()}, fqdn, self.classes)
        assert not table.errors
        writer = NameTableWriter(self._maps(), Lifetimes(min_ttl, grace))
        writer.write(table)
        writer.classify(lambda name: self.classes.get(fqdn.matching(name), 0))

    def _maps(self) -> dict[str, Any]:
        return {name: self.node.map(name) for name in ("names_config", "name_tables", "fqdn_names")}

    def seed(self) -> int:
        return int(NamesConfig.unpack(self.node.map("names_config").lookup(bytes(4)) or b"").seed)

    def known(self) -> dict[str, FqdnName]:
        """Every name that was learned."""
        found = {}
        for key, raw in self.node.map("fqdn_names").items():
            entry = FqdnName.unpack(raw)
            name = bytes(entry.name)[: entry.length]
            assert int.from_bytes(key, "little") == name_hash(name, self.seed())
            found[name.decode("latin-1")] = entry
        return found

    def addresses(self) -> dict[str, dict[str, int]]:
        """Name -> address -> when it ends (ns)."""
        names = {name_hash(name.encode("latin-1"), self.seed()): name for name in self.known()}
        found: dict[str, dict[str, int]] = {}
        for key, raw in self.node.map("fqdn_ips").items():
            address = ipaddress.ip_address(key)
            text = str(getattr(address, "ipv4_mapped", None) or address)
            for slot in FqdnIp.unpack(raw).slots:
                if slot.name:
                    found.setdefault(names[slot.name], {})[text] = slot.expires_ns & ~CONCERNS
        return found

    def events(self) -> Any:
        if self._reader is None:
            self._reader = RingReader.open(self.node.map("name_events").fd, NAME_EVENT)
        return self._reader.read(1 << 12)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


class Asker:
    """A pod with DNS rules on port 53 of everybody, and whatever else a test gives it."""

    def __init__(self, node: Node, names: Names, pod_id: int = 1, server: str = SERVER) -> None:
        self.node, self.names, self.server = node, names, server
        self.pod: Pod = node.pod(pod_id, 1000 + pod_id)
        self.pod.flags = EndpointFlags.FQDN
        node.put_pod(self.pod)
        for protocol in (6, 17):
            node.rule(self.pod, Direction.EGRESS, 0, protocol, PORT, l7=L7Kind.DNS.ruleset(RULESET), rule_id=3)

    def allow(self, selectors: Iterable[str], port: int = 443, protocol: int = 6, **fields: Any) -> None:
        """A toFQDNs rule for the set of selectors."""
        identity = self.names.classes[frozenset(selectors)]
        self.node.rule(self.pod, Direction.EGRESS, identity, protocol, port, precedence=3, **fields)

    def ask(self, message: bytes, sport: int = 40000, **fields: Any) -> Any:
        """Send a datagram to the server; the result of the hook."""
        packet = from_pod(self.pod, self.server, udp(sport, PORT, message), **fields)
        return self.node.run("from_endpoint", packet, self.pod.ifindex)

    def hear(self, message: bytes, sport: int = 40000, server: str = "", port: int = PORT) -> Any:
        """A datagram from the server to the pod."""
        packet = to_pod(self.pod, server or self.server, udp(port, sport, message))
        return self.node.run("to_endpoint", packet, self.pod.ifindex)

    def connect(self, address: str, port: int = 443, sport: int = 50000) -> int:
        """The verdict on a SYN."""
        from tests.datapath.packets import tcp

        packet = from_pod(self.pod, address, tcp(sport, port, "S"))
        return int(self.node.run("from_endpoint", packet, self.pod.ifindex).verdict)


def payload(packet: bytes) -> bytes:
    """What a UDP packet carries."""
    return bytes(parse(packet)[UDP].payload)


__all__ = ["Asker", "Names", "alias", "answer", "encode", "ip", "payload", "question", "record", "socket"]
