"""Kernel maps as tables of text: read from the kernel, decoded by the layouts of `abi`, one function per map."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from services.agent.abi.conntrack import CtEntry, CtFlags, CtKey, CtScope
from services.agent.abi.egress import SOURCE_BITS, EgressEntry, EgressFlags, EgressKey
from services.agent.abi.ipcache import IpcacheKey, RemoteEndpointInfo, RemoteFlags
from services.agent.abi.lb import Backend, BackendKey, Revnat, Scope, ServiceFlags, ServiceInfo, ServiceKey
from services.agent.abi.nat import NatEntry, NatFlags, NatKey, NatWay
from services.agent.abi.policy import PolicyEntry, PolicyKey
from services.agent.abi.sock import SockEntry, SockKey
from services.agent.server.views import protocol_name, socket_text, verdict_name
from services.model.addresses import from_bytes, key_to_prefix
from services.model.verdict import Direction, Protocol

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a map is shown: column names, and an entry's cells."""

    map: str
    columns: Row
    cells: Callable[[bytes, bytes], Row]


def _policy(raw_key: bytes, raw_value: bytes) -> Row:
    key, entry = PolicyKey.unpack(raw_key), PolicyEntry.unpack(raw_value)
    port = str(_port(key.port)) if key.port_bits else "any"
    return (
        str(key.policy_id),
        Direction(key.direction).name.lower(),
        str(key.identity) if key.identity else "any",
        protocol_name(key.protocol),
        port if key.port_bits in (0, 16) else f"{port}/{key.port_bits}",
        verdict_name(entry),
        str(entry.precedence),
        str(entry.rule_id),
        str(entry.l7_ruleset),
    )


def _ipcache(raw_key: bytes, raw_value: bytes) -> Row:
    key, info = IpcacheKey.unpack(raw_key), RemoteEndpointInfo.unpack(raw_value)
    tunnel = bytes(16) if info.flags & RemoteFlags.ROUTED else bytes(info.tunnel_endpoint)
    prefix = key_to_prefix(key.prefixlen, bytes(key.address))
    return str(prefix), str(info.identity), str(from_bytes(tunnel)) if any(tunnel) else ""


def _service(raw_key: bytes, raw_value: bytes) -> Row:
    key, info = ServiceKey.unpack(raw_key), ServiceInfo.unpack(raw_value)
    frontend = socket_text(from_bytes(bytes(key.address)), _port(key.port))
    flags = "|".join(flag.name for flag in ServiceFlags if flag & info.flags and flag.name)
    return (
        f"{frontend}/{protocol_name(key.protocol)}" if key.protocol else f"{frontend}/other ports",
        Scope(key.scope).name.lower(),
        str(info.service_id),
        str(info.backend_count),
        flags,
    )


def _backend(raw_key: bytes, raw_value: bytes) -> Row:
    key, backend = BackendKey.unpack(raw_key), Backend.unpack(raw_value)
    address = socket_text(from_bytes(bytes(backend.address)), _port(backend.port))
    return str(key.service_id), str(key.slot), f"{address}/{protocol_name(backend.protocol)}"


def _revnat(raw_key: bytes, raw_value: bytes) -> Row:
    entry = Revnat.unpack(raw_value)
    return str(int.from_bytes(raw_key, "little")), socket_text(from_bytes(bytes(entry.address)), _port(entry.port))


def _socket(raw_key: bytes, raw_value: bytes) -> Row:
    key, entry = SockKey.unpack(raw_key), SockEntry.unpack(raw_value)
    return (
        str(key.cookie),
        protocol_name(key.protocol),
        socket_text(from_bytes(bytes(entry.address)), _port(entry.port)),
        socket_text(from_bytes(bytes(entry.backend)), _port(entry.backend_port)),
        str(entry.service_id),
        str(entry.netns),
    )


def _conntrack(raw_key: bytes, raw_value: bytes) -> Row:
    key, entry = CtKey.unpack(raw_key), CtEntry.unpack(raw_value)
    numbers = key.protocol in (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
    local, remote = from_bytes(bytes(key.local)), from_bytes(bytes(key.remote))
    ports = (_port(key.local_port), _port(key.remote_port))
    return (
        CtScope(key.scope).name.lower(),
        protocol_name(key.protocol),
        socket_text(local, ports[0]) if numbers else str(local),
        socket_text(remote, ports[1]) if numbers else str(remote),
        "out" if entry.direction == Direction.EGRESS else "in",
        str(entry.self_identity),
        str(entry.peer_identity),
        str(entry.rule_id),
        str(entry.policy_revision),
        f"{entry.packets[0]}/{entry.packets[1]}",
        f"{entry.bytes[0]}/{entry.bytes[1]}",
        "|".join(flag.name for flag in CtFlags if flag & entry.flags and flag.name),
    )


def _nat(raw_key: bytes, raw_value: bytes) -> Row:
    key, entry = NatKey.unpack(raw_key), NatEntry.unpack(raw_value)
    ends = [(key.saddr, key.sport), (key.daddr, key.dport), (entry.saddr, entry.sport), (entry.daddr, entry.dport)]
    source, destination, new_source, new_destination = (
        socket_text(from_bytes(bytes(address)), _port(port)) for address, port in ends
    )
    left = (entry.expires_ns - time.monotonic_ns()) // 1_000_000_000
    return (
        NatWay(key.way).name.lower(),
        protocol_name(key.protocol),
        source,
        destination,
        new_source,
        new_destination,
        str(entry.service_id) if entry.service_id else "",
        f"{max(left, 0)}s",
        "|".join(flag.name for flag in NatFlags if flag & entry.flags and flag.name),
    )


def _egress(raw_key: bytes, raw_value: bytes) -> Row:
    key, entry = EgressKey.unpack(raw_key), EgressEntry.unpack(raw_value)
    gateway, address = bytes(entry.gateway), bytes(entry.address)
    if entry.flags & EgressFlags.EXCLUDED:
        way = "excluded"
    elif entry.flags & EgressFlags.HERE:
        way = "here"
    else:
        way = str(from_bytes(gateway)) if any(gateway) else "none: dropped"
    missing = "none: dropped" if entry.flags & EgressFlags.HERE else ""
    return (
        str(from_bytes(bytes(key.source))),
        str(key_to_prefix(key.prefixlen - SOURCE_BITS, bytes(key.destination))),
        way,
        str(from_bytes(address)) if any(address) else missing,
    )


POLICY = Layout(
    "policy",
    ("policy_id", "direction", "identity", "protocol", "port", "verdict", "precedence", "rule_id", "l7_ruleset"),
    _policy,
)
IPCACHE = Layout("ipcache", ("prefix", "identity", "tunnel"), _ipcache)
EGRESS = Layout("egress_gateway", ("pod", "destination", "gateway", "address"), _egress)
SERVICES = Layout("services", ("frontend", "scope", "service_id", "backends", "flags"), _service)
BACKENDS = Layout("backends", ("service_id", "slot", "backend"), _backend)
REVNAT = Layout("revnat", ("service_id", "frontend"), _revnat)
SOCKETS = Layout("sockets", ("socket", "protocol", "service", "backend", "service_id", "netns"), _socket)
CONNTRACK = Layout(
    "ct",
    (
        "scope",
        "protocol",
        "local",
        "remote",
        "opened",
        "identity",
        "peer",
        "rule_id",
        "revision",
        "packets",
        "bytes",
        "flags",
    ),
    _conntrack,
)

NAT = Layout(
    "nat_table",
    ("way", "protocol", "source", "destination", "new_source", "new_destination", "service_id", "left", "flags"),
    _nat,
)


def entry_policy_id(raw_key: bytes) -> int:
    """The policy id that a policy map key belongs to."""
    return int(PolicyKey.unpack(raw_key).policy_id)


def _port(stored: int) -> int:
    return ((stored & 0xFF) << 8) | (stored >> 8)
