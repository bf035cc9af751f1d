"""The compiled programs do what the readable reference says: random policies, random packets, one after the other."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.all import ICMP, IP, TCP, UDP, Ether, ICMPv6EchoReply, ICMPv6EchoRequest, IPv6

from services.agent.abi.endpoints import HOST_ENDPOINT, EndpointFlags
from services.agent.abi.events import EventType
from services.agent.calc.maps import refined_key
from services.agent.datapath.fake import Outcome, Packet, ReferenceDatapath
from services.agent.datapath.syscall import RunResult
from services.model.addresses import from_bytes
from services.model.verdict import Direction, DropReason
from tests.datapath.node import HOST, TC_ACT_OK, TC_ACT_SHOT, Node, Pod, ip, u32
from tests.datapath.packets import from_pod, parse, to_pod

pytestmark = pytest.mark.root

PODS = (1, 2, 3)
OUTSIDE, HOST_ADDRESS, REMOTE, VIP = "203.0.113.5", "192.168.77.1", "10.244.2.9", "10.96.0.10"
PART = (1 << 25) + 9
IDENTITIES = (0, 0, 1001, 1001, 1002, 1003, 9, HOST, 1009, PART)
PORTS = (53, 80, 8080, 81)


@dataclass(frozen=True)
class Rule:
    """An entry of a policy map."""

    pod: int
    direction: Direction
    identity: int
    protocol: int
    port: int
    port_bits: int
    deny: bool
    precedence: int


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    protocol = draw(st.sampled_from([0, 0, 6, 6, 6, 17, 1]))
    bits = draw(st.sampled_from([0, 16, 16, 12, 4])) if protocol else 0
    port = draw(st.sampled_from([8, 80, 80, *PORTS])) & (0xFFFF << (16 - bits)) & 0xFFFF if bits else 0
    return Rule(
        pod=draw(st.sampled_from([1, 2, 2, 3, HOST_ENDPOINT])),
        direction=draw(st.sampled_from(list(Direction))),
        identity=draw(st.sampled_from(IDENTITIES)),
        protocol=protocol,
        port=port,
        port_bits=bits if port else 0 if bits == 0 else 16,
        deny=draw(st.booleans()),
        precedence=draw(st.sampled_from([1, 2, 255])),
    )


@dataclass(frozen=True)
class Send:
    """A packet: from a pod, or (source 0) from the outside or the host to a pod, or between outside and host."""

    source: int
    target: str
    protocol: int
    sport: int
    dport: int
    flags: str


@dataclass(frozen=True)
class ChangePolicy:
    """Entries come and go; the pods' revisions rise."""

    add: tuple[Rule, ...]
    drop_all: bool
    flags: int = 0
    """Of pods 1 and 2: audit, parts of identities."""
    hosted: bool = False
    """Whether host policies select the node."""


def sends() -> st.SearchStrategy[Send]:
    return st.builds(
        Send,
        source=st.sampled_from([0, 1, 1, 1, 2, 2, 3]),
        target=st.sampled_from(["1", "1", "2", "2", "2", "3", OUTSIDE, HOST_ADDRESS, REMOTE, VIP, VIP]),
        protocol=st.sampled_from([6, 6, 6, 6, 17, 1]),
        sport=st.sampled_from([80, 4000, 4000]),
        dport=st.sampled_from([80, 80, 53, 4000, 4000]),
        flags=st.sampled_from(["S", "SA", "A", "PA", "FA", "R"]),
    )


FLAGS = st.sampled_from([0, 0, int(EndpointFlags.AUDIT), 6, 7])


def changes() -> st.SearchStrategy[ChangePolicy]:
    return st.builds(
        ChangePolicy,
        add=st.lists(rules(), max_size=4).map(tuple),
        drop_all=st.booleans(),
        flags=FLAGS,
        hosted=st.booleans(),
    )


class Twin:
    """The kernel and the reference side by side on equal maps."""

    def __init__(self, node: Node) -> None:
        node.reset()
        self.node = node
        self.pods = {number: node.pod(number, 1000 + number) for number in PODS}
        self.host = node.host()
        node.settings(overlay_ifindex=node.ifindexes[3])
        node.ipcache("0.0.0.0/0", 9)
        node.ipcache(HOST_ADDRESS, HOST)
        node.ipcache(REMOTE, 1009, "192.168.77.2")
        node.service(41, VIP, 80, [(self.pods[2].ipv4, 8080)])
        node.service(42, VIP, 53, [(self.pods[3].ipv4, 53)], 17)
        for identity, address in ((1001, self.pods[1].ipv4), (1002, self.pods[2].ipv4), (1001, self.pods[3].ipv4)):
            self.node.map("refined").update(refined_key(ipaddress.ip_address(address), identity), u32(PART))
        self.reference = ReferenceDatapath(self.maps())
        self.next_rule = 1

    def maps(self) -> dict[str, dict[bytes, bytes]]:
        names = ("endpoints", "endpoint_addrs", "endpoint_ifs", "policy", "ipcache", "refined", "services", "backends")
        return {name: dict(self.node.map(name).items()) for name in names}

    def write(self, added: tuple[Rule, ...]) -> None:
        for rule in added:
            self.node.rule(
                self.pods.get(rule.pod, self.host),
                rule.direction,
                rule.identity,
                rule.protocol,
                rule.port,
                port_bits=rule.port_bits if rule.port else 16 if rule.protocol else 0,
                rule_id=self.next_rule,
                deny=rule.deny,
                precedence=rule.precedence,
            )
            self.next_rule += 1

    def change(self, change: ChangePolicy) -> None:
        if change.drop_all:
            self.node.map("policy").delete_batch([key for key, _ in self.node.map("policy").items()])
        self.write(change.add)
        for pod in self.pods.values():
            pod.flags = change.flags if pod.id < 3 else 0
            self.node.change_policy(pod)
        self.host.revision += 1
        if change.hosted:
            self.node.host(self.host.revision, change.flags)
        else:
            self.node.map("endpoints").delete(u32(HOST_ENDPOINT))
        self.reference.maps = self.maps()

    def send(self, step: Send) -> tuple[Outcome, Outcome] | None:
        """(what the kernel did, what the reference says), or None for a packet that makes no sense."""
        target = self.pods[int(step.target)].ipv4 if step.target.isdigit() else step.target
        layer4: Any = {
            6: TCP(sport=step.sport, dport=step.dport, flags=step.flags),
            17: UDP(sport=step.sport, dport=step.dport),
            1: ICMP(type=8 if step.flags in "SAPA" else 0, id=step.sport),
        }[step.protocol]
        if step.source == 0:
            if not step.target.isdigit():
                return self._at_device(target, layer4)
            pod = self.pods[int(step.target)]
            source = OUTSIDE if step.dport != 53 else HOST_ADDRESS
            return self._run("to_endpoint", self.reference.to_endpoint, pod, to_pod(pod, source, layer4))
        pod = self.pods[step.source]
        if target == pod.ipv4 or (target == VIP and step.source == 2 and step.dport == 80):
            return None  # to itself: hairpin has its own tests
        if target == VIP and step.source == 3 and step.dport == 53:
            return None
        return self._run("from_endpoint", self.reference.from_endpoint, pod, from_pod(pod, target, layer4))

    def _at_device(self, target: str, layer4: Any) -> tuple[Outcome, Outcome]:
        """From the outside to the node, or from the node to elsewhere."""
        arrives = target == HOST_ADDRESS
        packet = Ether() / IP(src=OUTSIDE if arrives else HOST_ADDRESS, dst=target) / layer4
        hook, model = (
            ("from_netdev", self.reference.from_netdev) if arrives else ("to_netdev", self.reference.to_netdev)
        )
        expected = model(summary(bytes(packet)))
        done = self.node.run(hook, bytes(packet), self.node.ifindexes[3])
        return self._done(done, bytes(packet)), expected

    def _run(
        self, hook: str, model: Callable[[Packet, int], Outcome], pod: Pod, packet: bytes
    ) -> tuple[Outcome, Outcome]:
        expected = model(summary(packet), pod.ifindex)
        return self._done(self.node.run(hook, packet, pod.ifindex), packet), expected

    def _done(self, done: RunResult, packet: bytes) -> Outcome:
        records = self.node.events()
        events = tuple((EventType(e["type"]), int(e["endpoint_id"]), int(e["rule_id"])) for e in records)
        if done.verdict == TC_ACT_SHOT:
            return Outcome(summary(packet), reason=DropReason(int(records[-1]["drop_reason"])), events=events)
        macs = {p.mac: p.id for p in self.pods.values()}
        to: int | bytes | None = macs.get(parse(done.packet).dst)
        if to is None and done.verdict != TC_ACT_OK:
            to = ip("192.168.77.2")
        return Outcome(summary(done.packet), to=to, events=events)


def summary(raw: bytes) -> Packet:
    packet = parse(raw)
    layer = packet[IP] if IP in packet else packet[IPv6]
    source, destination = (ip(layer.src), ip(layer.dst))
    if TCP in packet:
        return Packet(source, destination, 6, layer[TCP].sport, layer[TCP].dport, int(layer[TCP].flags))
    if UDP in packet:
        return Packet(source, destination, 17, layer[UDP].sport, layer[UDP].dport)
    if ICMP in packet:
        return Packet(source, destination, 1, layer[ICMP].type, layer[ICMP].code, icmp_id=layer[ICMP].id)
    echo = layer[ICMPv6EchoRequest] if ICMPv6EchoRequest in packet else layer[ICMPv6EchoReply]
    return Packet(source, destination, 58, echo.type, echo.code, icmp_id=echo.id)


def conversations() -> st.SearchStrategy[list[Send | ChangePolicy]]:
    """Both ways of one connection, flag by flag, with changes of policy in between: random packets alone rarely get
    as far as closing one."""
    there = st.builds(
        Send,
        source=st.just(1),
        target=st.just("2"),
        protocol=st.just(6),
        sport=st.just(4000),
        dport=st.just(80),
        flags=st.sampled_from(["S", "A", "FA", "FA", "R"]),
    )
    back = st.builds(
        Send,
        source=st.just(2),
        target=st.just("1"),
        protocol=st.just(6),
        sport=st.just(80),
        dport=st.just(4000),
        flags=st.sampled_from(["SA", "A", "FA", "FA"]),
    )
    steps: st.SearchStrategy[list[Send | ChangePolicy]] = st.lists(
        st.one_of(there, there, back, back, changes()), min_size=6, max_size=16
    )
    return steps


def everything() -> st.SearchStrategy[list[Send | ChangePolicy]]:
    steps: st.SearchStrategy[list[Send | ChangePolicy]] = st.lists(
        st.one_of(sends(), sends(), sends(), sends(), changes()), min_size=4, max_size=20
    )
    return steps


OPEN = tuple(Rule(pod, side, 0, 0, 0, 0, False, 1) for pod in (*PODS, HOST_ENDPOINT) for side in Direction)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.one_of(st.just(OPEN), st.just(OPEN), st.lists(rules(), min_size=4, max_size=14).map(tuple)),
    steps=st.one_of(everything(), conversations()),
)
def test_kernel_agrees_with_the_reference(
    module_node: Node, start: tuple[Rule, ...], steps: list[Send | ChangePolicy]
) -> None:
    twin = Twin(module_node)
    twin.write(start)
    twin.reference.maps = twin.maps()
    for step in steps:
        if isinstance(step, ChangePolicy):
            twin.change(step)
            continue
        both = twin.send(step)
        if both is not None:
            kernel, reference = both
            assert kernel == reference, (from_bytes(kernel.packet.source), step)
