"""A node for datapath tests: a network namespace with interfaces, loaded programs, and maps written by hand.

Programs are run with BPF_PROG_TEST_RUN inside the namespace, so that interface indexes mean something. Nothing
survives `close`, whatever happened before.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import itertools
import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from services.agent.abi.config import DatapathConfig
from services.agent.abi.conntrack import CtEntry, CtKey
from services.agent.abi.endpoints import HOST_ENDPOINT, EndpointInfo
from services.agent.abi.events import FLOW_EVENT
from services.agent.abi.ipcache import IpcacheKey, RemoteEndpointInfo, RemoteFlags
from services.agent.abi.layout import be16
from services.agent.abi.lb import Backend, BackendKey, Revnat, ServiceInfo, ServiceKey
from services.agent.abi.policy import PolicyEntry, PolicyFlags, PolicyKey
from services.agent.calc.maps import MAP_NAMES
from services.agent.datapath import syscall
from services.agent.datapath.loader_client import Loaded, LoaderConfig, load
from services.agent.datapath.maps import PinnedMap
from services.agent.datapath.settings import Settings, configure
from services.agent.events.lanes import EventReader, open_events
from services.model.addresses import prefix_to_key, to_bytes
from services.model.identity import Reserved
from services.model.verdict import Direction
from tests import loads

_libc = ctypes.CDLL(None, use_errno=True)
_serial = itertools.count()

TC_ACT_OK, TC_ACT_SHOT, TC_ACT_REDIRECT = 0, 2, 7
GATEWAY_MAC = "02:00:00:00:ff:01"


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def ip(address: str) -> bytes:
    return to_bytes(ipaddress.ip_address(address))


@contextlib.contextmanager
def inside(netns: str) -> Iterator[None]:
    """This thread in a network namespace, for the while."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{netns}", os.O_RDONLY)
    try:
        if _libc.setns(there, 0x40000000):
            raise OSError(ctypes.get_errno(), "setns")
        yield
    finally:
        _libc.setns(home, 0x40000000)
        os.close(there)
        os.close(home)


def sh(*command: str, netns: str = "") -> str:
    """Run a command, in a namespace if given; its output. Raises with what it said."""
    full = (f"nsenter --net=/run/netns/{netns}".split() if netns else []) + list(command)
    done = subprocess.run(full, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise AssertionError(f"{' '.join(full)}: {done.stderr or done.stdout}")
    return done.stdout


@dataclass
class Pod:
    """A local endpoint as the maps know it."""

    id: int
    ifindex: int
    ipv4: str
    ipv6: str
    mac: str
    identity: int
    policy_id: int
    revision: int = 1
    flags: int = 0


class Node:
    """See the module."""

    def __init__(self, cache_dir: Path, links: int = 4, **sizes: int) -> None:
        self.name = f"clt{os.getpid()}d{next(_serial)}"
        self.root = Path("/sys/fs/bpf/ciliate") / self.name
        self._kind = f"node {sorted(sizes.items())}"
        self._maps: dict[str, PinnedMap] = {}
        self._progs: dict[str, int] = {}
        self._reader: EventReader | None = None
        self.ifindexes: list[int] = []
        sh("ip", "netns", "add", self.name)
        try:
            for i in range(links):
                sh("ip", "link", "add", f"host{i}", "type", "veth", "peer", "name", f"pod{i}", netns=self.name)
            self.ifindexes = [self._ifindex(f"host{i}") for i in range(links)]
            loads.take(self._kind, self.root)
            self.loaded = self._load(cache_dir, sizes)
            loads.note(self.root)
        except BaseException:
            self.close()
            raise
        self.pods: dict[int, Pod] = {}

    def _ifindex(self, name: str) -> int:
        return int(sh("ip", "-o", "link", "show", name, netns=self.name).split(":")[0])

    def _load(self, cache_dir: Path, sizes: dict[str, int]) -> Loaded:
        small = {
            "ct": 4096,
            "events": 1 << 20,
            "http_events": 1 << 18,
            "policy": 4096,
            "ipcache": 4096,
            "nat_table": 8192,
        }
        sizes = small | sizes
        return asyncio.run(load(LoaderConfig(root=str(self.root), cache_dir=str(cache_dir), max_entries=sizes)))

    def close(self) -> None:
        """Leave nothing behind."""
        if self._reader is not None:
            self._reader.close()
        for opened in self._maps.values():
            opened.close()
        for fd in self._progs.values():
            os.close(fd)
        # Links go at once; with its last name alone, a namespace and what runs in it would live on for a moment.
        sh("sh", "-c", "ip link set lo group 1; ip link del group 0 || :", netns=self.name)
        sh("ip", "netns", "del", self.name)
        loads.give(self._kind, self.root)

    # What the maps say.

    def map(self, name: str) -> PinnedMap:
        if name not in self._maps:
            self._maps[name] = PinnedMap(self.root / "maps" / name)
        return self._maps[name]

    def reset(self) -> None:
        """Empty maps, as after a fresh load."""
        for name in ("ct", "affinity", *MAP_NAMES):
            if name == "endpoints":
                continue  # an array: see below
            self.map(name).delete_batch([key for key, _ in self.map(name).items()])
        for number in (*self.pods, HOST_ENDPOINT):
            self.map("endpoints").delete(u32(number))
        self.pods.clear()
        self.settings()
        self.events()

    def settings(self, **fields: Any) -> None:
        configure(self.map("config"), Settings(**fields))

    def config(self) -> DatapathConfig:
        return DatapathConfig.unpack(self.map("config").lookup(bytes(4)) or b"")

    def pod(self, id: int, identity: int, policy_id: int | None = None, ifindex: int | None = None) -> Pod:
        """An endpoint with derived addresses; its own policy id unless given."""
        pod = Pod(
            id=id,
            ifindex=ifindex or self.ifindexes[id - 1],
            ipv4=f"10.244.1.{id}",
            ipv6=f"fd00:10:244:1::{id:x}",
            mac=f"02:00:00:00:00:{id:02x}",
            identity=identity,
            policy_id=policy_id or id,
        )
        self.put_pod(pod)
        return pod

    def put_pod(self, pod: Pod) -> None:
        self.pods[pod.id] = pod
        info = EndpointInfo(
            ifindex=pod.ifindex,
            identity=pod.identity,
            policy_id=pod.policy_id,
            policy_revision=pod.revision,
            id=pod.id,
            flags=pod.flags,
            mac=bytes.fromhex(pod.mac.replace(":", "")),
            node_mac=bytes.fromhex(GATEWAY_MAC.replace(":", "")),
            ipv4=ip(pod.ipv4),
            ipv6=ip(pod.ipv6),
        )
        self.map("endpoints").update(u32(pod.id), info.pack())
        for address in (pod.ipv4, pod.ipv6):
            self.map("endpoint_addrs").update(ip(address), u32(pod.id))
            self.ipcache(address, pod.identity)
        self.map("endpoint_ifs").update(u32(pod.ifindex), u32(pod.id))

    def host(self, revision: int = 1, flags: int = 0) -> Pod:
        """The node itself, selected by a host policy."""
        host = Pod(HOST_ENDPOINT, 0, "::", "::", "", HOST, HOST_ENDPOINT, revision, flags)
        info = EndpointInfo(identity=HOST, policy_id=host.policy_id, policy_revision=revision, id=host.id, flags=flags)
        self.map("endpoints").update(u32(host.id), info.pack())
        return host

    def ipcache(self, prefix: str, identity: int, node: str = "", *, routed: bool = False) -> None:
        length, raw = prefix_to_key(ipaddress.ip_network(prefix))
        value = RemoteEndpointInfo(
            identity=identity,
            tunnel_endpoint=ip(node) if node else bytes(16),
            flags=RemoteFlags.ROUTED if routed else 0,
        )
        self.map("ipcache").update(IpcacheKey(prefixlen=length, address=raw).pack(), value.pack())

    def rule(
        self,
        pod: Pod,
        direction: Direction,
        identity: int = 0,
        protocol: int = 0,
        port: int = 0,
        *,
        rule_id: int = 1,
        deny: bool = False,
        precedence: int | None = None,
        l7: int = 0,
        port_bits: int = 16,
    ) -> bytes:
        """An entry of the pod's policy; returns its key."""
        key = PolicyKey.of(pod.policy_id, direction, identity, protocol, port, port_bits)
        rank = precedence if precedence is not None else (255 if deny else 2 if l7 else 1)
        entry = PolicyEntry(
            precedence=rank,
            rule_id=rule_id,
            l7_ruleset=l7,
            flags=PolicyFlags.DENY if deny else 0,
            prefix_bits=int(key.prefixlen) - 72,
        )
        self.map("policy").update(key.pack(), entry.pack())
        return key.pack()

    def open(self, pod: Pod, *directions: Direction) -> None:
        """No enforcement, as calc writes it: an allow without a rule."""
        for direction in directions or (Direction.INGRESS, Direction.EGRESS):
            self.rule(pod, direction, rule_id=0)

    def service(
        self,
        service_id: int,
        vip: str,
        port: int,
        backends: list[tuple[str, int]],
        protocol: int = 6,
        *,
        scope: int = 0,
        **info: int,
    ) -> None:
        """A frontend and its backends; `info`: further fields of `ServiceInfo`."""
        for slot, (address, target) in enumerate(backends):
            value = Backend(address=ip(address), port=be16(target), protocol=protocol)
            self.map("backends").update(BackendKey(service_id=service_id, slot=slot).pack(), value.pack())
        self.map("revnat").update(u32(service_id), Revnat(address=ip(vip), port=be16(port)).pack())
        self.map("services").update(
            ServiceKey(address=ip(vip), port=be16(port), protocol=protocol, scope=scope).pack(),
            ServiceInfo(service_id=service_id, backend_count=len(backends), **info).pack(),
        )

    def change_policy(self, pod: Pod) -> None:
        """What calc does after entries changed."""
        pod.revision += 1
        self.put_pod(pod)

    # What happens.

    def prog(self, name: str) -> int:
        if name not in self._progs:
            self._progs[name] = syscall.obj_get(self.root / "progs" / name)
        return self._progs[name]

    def run(self, hook: str, packet: bytes, ifindex: int, mark: int = 0, gso: int = 0) -> syscall.RunResult:
        """Run a program over a packet that arrives at an interface. `gso`: the length of its segments' payload, where
        it is several in one."""
        # struct __sk_buff: len, pkt_type, mark, queue_mapping, protocol, vlan x3, priority, ingress_ifindex, ifindex …
        context = bytearray(struct.pack("<11I", 0, 0, mark, 0, 0, 0, 0, 0, 0, 0, ifindex) + bytes(192 - 44))
        struct.pack_into("<I", context, 176, gso)
        with inside(self.name):
            return syscall.prog_test_run(self.prog(hook), packet, bytes(context))

    def events(self) -> np.ndarray[Any, np.dtype[Any]]:
        """Flow events since the last call."""
        if self._reader is None:
            self._reader = open_events(self.map("events").fd, FLOW_EVENT)
        return self._reader.read(1 << 16)

    def conntrack(self) -> dict[CtKey, CtEntry]:
        return {CtKey.unpack(key): CtEntry.unpack(value) for key, value in self.map("ct").items()}


HOST = int(Reserved.HOST)
WORLD4 = int(Reserved.WORLD_IPV4)
