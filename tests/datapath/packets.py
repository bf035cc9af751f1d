"""Packets for datapath tests, made by scapy: one definition serves as input and as expectation."""

from __future__ import annotations

from typing import Any

from scapy.all import ICMP, IP, SCTP, TCP, UDP, Ether, ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, raw
from scapy.layers.sctp import SCTPChunkData, SCTPChunkInit

from tests.datapath.node import GATEWAY_MAC, Pod


def tcp(sport: int, dport: int, flags: str = "S", payload: bytes = b"", **fields: Any) -> Any:
    return TCP(sport=sport, dport=dport, flags=flags, **fields) / payload


def udp(sport: int, dport: int, payload: bytes = b"x") -> Any:
    return UDP(sport=sport, dport=dport) / payload


def sctp_init(sport: int, dport: int) -> Any:
    return SCTP(sport=sport, dport=dport, tag=0) / SCTPChunkInit(init_tag=7)


def sctp_data(sport: int, dport: int, size: int) -> Any:
    return SCTP(sport=sport, dport=dport, tag=7) / SCTPChunkData(data=bytes(i % 251 for i in range(size)))


def ping(v6: bool = False, id: int = 7, reply: bool = False) -> Any:
    if v6:
        return ICMPv6EchoReply(id=id) if reply else ICMPv6EchoRequest(id=id)
    return ICMP(type=0 if reply else 8, id=id)


def network(source: str, destination: str, ttl: int = 64, **fields: Any) -> Any:
    if ":" in destination:
        return IPv6(src=source, dst=destination, hlim=ttl)
    return IP(src=source, dst=destination, ttl=ttl, **fields)


def from_pod(pod: Pod, destination: str, l4: Any, **fields: Any) -> bytes:
    """As the pod sends it, towards its gateway."""
    source = pod.ipv6 if ":" in destination else pod.ipv4
    return bytes(raw(Ether(src=pod.mac, dst=GATEWAY_MAC) / network(source, destination, **fields) / l4))


def to_pod(pod: Pod, source: str, l4: Any, **fields: Any) -> bytes:
    """As the node's stack sends it to the pod."""
    destination = pod.ipv6 if ":" in source else pod.ipv4
    return bytes(raw(Ether(src=GATEWAY_MAC, dst=pod.mac) / network(source, destination, **fields) / l4))


def received(pod: Pod, source: str, l4: Any, ttl: int = 63) -> bytes:
    """As a pod of the same node gets it from another: one hop further, the gateway's MAC."""
    return to_pod(pod, source, l4, ttl=ttl)


def parse(packet: bytes) -> Any:
    return Ether(packet)


def checksums_hold(packet: bytes) -> bool:
    """Are all checksums what scapy makes them anew?"""
    fresh = Ether(packet)
    layer = fresh
    while layer and layer.name != "NoPayload":
        for name in ("chksum", "cksum"):
            if name in layer.fields:
                del layer.fields[name]
        layer = layer.payload
    # The packet inside an ICMP error is a quotation: what follows its header is left as it is.
    return bytes(raw(fresh)) == packet
