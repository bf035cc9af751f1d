"""A small real cluster: etcd, identity service, two node namespaces, an agent in each, pods by the real CNI plugin.

    pod ── veth ── [ node1 ] up0 ════ up0 [ node2 ] ── veth ── pod

With `narrow`, a router is between the nodes, and its link to the second one has that MTU. With `outside`, they are on
one link with a router that is the outside world as well (`WORLD`).

Everything carries a prefix of its own and is gone afterwards, also after a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc.aio
import yaml

from services.cni import plugin
from services.common.etcd_server import EtcdServer
from services.common.pb.agent.v1 import agent_pb2, agent_pb2_grpc
from services.common.tls import channel
from tests import loads

READY_SECONDS = 90.0
PLUGIN = str(Path(plugin.__file__))
"""Run as a file of its own, as runtimes do."""
NETNS = Path("/run/netns")
LOADED = ("observe_only",)
"""Options that, like sizes, change what is loaded."""
WORLD = ("203.0.113.10", "2001:db8::10")
"""Addresses of nobody in the cluster."""


def sh(command: str, netns: str = "") -> str:
    """Run a shell line, in a network namespace if one is named; raises with what it said."""
    words = ["sh", "-ec", command]
    if netns:
        words = ["nsenter", f"--net={NETNS / netns}", *words]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{command}: {done.stderr.strip()}")
    return done.stdout


@dataclass(slots=True)
class Node:
    """A node of the cluster."""

    number: int
    netns: str
    run_dir: Path
    subnet: int = 0
    """Third byte of its addresses: nodes with a router between them have links of their own."""
    process: asyncio.subprocess.Process | None = None

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def addresses(self) -> tuple[str, str]:
        """Of both families."""
        six = ipaddress.ip_address(f"fd00:172:30:{self.subnet}::{self.number}")
        return f"172.30.{self.subnet}.{self.number}", str(six)

    @property
    def pod_ranges(self) -> tuple[str, str]:
        """Of both families."""
        return f"10.244.{self.number}.0/24", f"fd00:10:244:{self.number}::/64"

    @property
    def target(self) -> str:
        return f"unix://{self.run_dir / 'agent.sock'}"


@dataclass(slots=True)
class Pod:
    """A pod: its namespace and addresses."""

    name: str
    node: Node
    netns: str
    labels: Mapping[str, str]
    addresses: list[str] = field(default_factory=list)
    namespace: str = "default"

    @property
    def ip(self) -> str:
        return self.addresses[0]


class Cluster:
    """Use as an async context manager. `options` go into every agent's configuration."""

    def __init__(
        self, nodes: int = 2, narrow: int = 0, outside: bool = False, six_first: bool = False, **options: Any
    ) -> None:
        """`six_first`: nodes call their IPv6 addresses their own first, so that the overlay goes over IPv6."""
        self._six_first = six_first
        self.prefix = f"clt{os.getpid() % 100000}-"
        self.root = Path(tempfile.mkdtemp(prefix="ciliate-test-"))
        self.objects = self.root / "objects"
        self.pins = Path("/sys/fs/bpf/ciliate") / self.prefix.strip("-")
        self.options = options
        self._kind = f"cluster {sorted((k, v) for k, v in options.items() if k in LOADED or k.endswith('_max'))}"
        self.nodes = [
            Node(n, f"{self.prefix}n{n}", self.root / f"node{n}", n if narrow else 0) for n in range(1, nodes + 1)
        ]
        self._narrow, self._outside, self.router = narrow, outside, f"{self.prefix}router"
        self.pods: dict[str, Pod] = {}
        self._etcd = EtcdServer(self.root / "etcd")
        self._children: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> Self:
        try:
            self.objects.mkdir()
            self._network()
            self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
            for node in self.nodes:
                self.node_object(node)
            await self._etcd.start()
            await self.start_identity()
            for node in self.nodes:
                loads.take(self._kind, self.pins / node.name)
                await self.start_agent(node)
            await asyncio.gather(*(self.ready(node) for node in self.nodes))
            for node in self.nodes:
                loads.note(self.pins / node.name)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in reversed(self._children):
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
        await self._etcd.stop(kill=True)
        for node in self.nodes:  # nothing may run the programs any more, and a namespace goes in its own time
            with contextlib.suppress(AssertionError):
                sh("ip link set lo group 1; ip link del group 0 || :", node.netns)
        names = [*(pod.netns for pod in self.pods.values()), *(node.netns for node in self.nodes)]
        for name in [*names, self.router] if self._narrow or self._outside else names:
            with contextlib.suppress(AssertionError):
                sh(f"ip netns del {name}")
        for node in self.nodes:
            loads.give(self._kind, self.pins / node.name)
        if self.pins.is_dir():
            self.pins.rmdir()
        shutil.rmtree(self.root, ignore_errors=True)

    def _network(self) -> None:
        for node in self.nodes:
            sh(f"ip netns add {node.netns}")
            sh("ip link set lo up; echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad", node.netns)
        if self._narrow:
            self._network_with_router()
        elif self._outside:
            self._network_with_the_world()
        elif len(self.nodes) == 2:
            one, two = (node.netns for node in self.nodes)
            sh(f"ip link add up0 netns {one} type veth peer name up0 netns {two}")
        else:
            sh("ip link add up0 type veth peer name nowhere", self.nodes[0].netns)
        for node in self.nodes:
            four, six = node.addresses
            sh(
                f"ip addr add {four}/24 dev up0; ip addr add {six}/64 dev up0 nodad; ip link set up0 up"
                + (
                    f"; ip route add default via 172.30.{node.subnet}.254 dev up0"
                    f"; ip route add default via fd00:172:30:{node.subnet}::fe dev up0"
                    if self._narrow or self._outside
                    else ""
                ),
                node.netns,
            )

    def _network_with_the_world(self) -> None:
        """A bridge. The world knows the way to pods, so that one which shows its own address is found out."""
        sh(f"ip netns add {self.router}")
        sh(
            "ip link set lo up; echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad;"
            "ip link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0; ip link set br0 up;"
            "ip addr add 172.30.0.254/24 dev br0; ip addr add fd00:172:30:0::fe/64 dev br0 nodad;"
            f"ip addr add {WORLD[0]}/32 dev lo; ip addr add {WORLD[1]}/128 dev lo nodad",
            self.router,
        )
        for node in self.nodes:
            sh(f"ip link add up0 netns {node.netns} type veth peer name to{node.number} netns {self.router}")
            sh(
                f"ip link set to{node.number} master br0 up;"
                f"ip route add {node.pod_ranges[0]} via {node.addresses[0]};"
                f"ip route add {node.pod_ranges[1]} via {node.addresses[1]} dev br0",
                self.router,
            )

    def _network_with_router(self) -> None:
        """The router knows where pods are; its answers to packets that are too large are what is tested."""
        sh(f"ip netns add {self.router}")
        sh(
            "ip link set lo up; echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad;"
            "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
            self.router,
        )
        for node in self.nodes:
            link, mtu = f"to{node.number}", self._narrow if node is self.nodes[-1] else 1500
            sh(f"ip link add up0 netns {node.netns} type veth peer name {link} netns {self.router}")
            sh(
                f"ip link set {link} mtu {mtu} up; ip addr add 172.30.{node.subnet}.254/24 dev {link};"
                f"ip addr add fd00:172:30:{node.subnet}::fe/64 dev {link} nodad;"
                f"ip route add {node.pod_ranges[0]} via {node.addresses[0]};"
                f"ip route add {node.pod_ranges[1]} via {node.addresses[1]} dev {link}",
                self.router,
            )

    # -- processes -------------------------------------------------------------------------------------------------

    async def spawn(self, *words: str, netns: str = "", log: str = "") -> asyncio.subprocess.Process:
        """Start a program; it is killed at the end."""
        prefix = ["nsenter", f"--net={NETNS / netns}"] if netns else []
        with (self.root / log if log else Path(os.devnull)).open("ab") as output:
            child = await asyncio.create_subprocess_exec(
                *prefix, *words, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._children.append(child)
        return child

    @property
    def etcd_pid(self) -> int:
        """Of the running etcd."""
        return self._etcd.pid

    async def start_identity(self) -> asyncio.subprocess.Process:
        """The identity service, on a unix socket, in plaintext."""
        config = {
            "insecure": True,
            "listen": [f"unix://{self.root / 'identity.sock'}"],
            "etcd_endpoints": [self._etcd.endpoint],
        }
        path = self.root / "identity.yaml"
        path.write_text(yaml.safe_dump(config))
        self.identity = await self.spawn(
            sys.executable, "-m", "services.identity", "--config", str(path), log="identity.log"
        )
        return self.identity

    async def start_agent(self, node: Node) -> None:
        """The agent of a node, inside the node's network namespace."""
        config = {
            "insecure": True,
            "node_name": node.name,
            "node_address": list(node.addresses[::-1] if self._six_first else node.addresses),
            "device": "up0",
            "pod_cidr4": node.pod_ranges[0],
            "pod_cidr6": node.pod_ranges[1],
            "source": "folder",
            "socket_lb": "off",  # all nodes share this machine's cgroups
            "objects_dir": str(self.objects),
            "identity_target": f"unix://{self.root / 'identity.sock'}",
            "run_dir": str(node.run_dir),
            "bpffs_root": str(self.pins / node.name),
            "policy_max": 16384,
            "ct_max": 16384,
            "ipcache_max": 16384,
            "reference_check_seconds": 0.5,
            **self.options,
        }
        path = self.root / f"{node.name}.yaml"
        path.write_text(yaml.safe_dump(config))
        node.process = await self.spawn(
            sys.executable, "-m", "services.agent", "--config", str(path), netns=node.netns, log=f"{node.name}.log"
        )

    async def kill_agent(self, node: Node, number: int = signal.SIGKILL) -> None:
        """End an agent the hard way, or as told."""
        assert node.process is not None
        node.process.send_signal(number)
        await node.process.wait()

    async def status(self, node: Node) -> agent_pb2.StatusResponse:
        """What the agent says of itself; raises grpc.aio.AioRpcError when it does not answer."""
        async with channel(node.target, None, "agent") as there:
            stub = agent_pb2_grpc.AgentServiceStub(there)  # type: ignore[no-untyped-call]
            return await stub.Status(agent_pb2.StatusRequest(), timeout=2)

    async def ready(self, node: Node) -> agent_pb2.StatusResponse:
        """Wait until the agent enforces; raises with its log when it dies or takes too long."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                while True:
                    assert node.process is not None
                    if node.process.returncode is not None:
                        raise AssertionError(f"{node.name} ended with {node.process.returncode}:\n{self.log(node)}")
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        status = await self.status(node)
                        if status.ready and (self.options.get("observe_only") or (node.run_dir / "cni.sock").exists()):
                            return status
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise AssertionError(f"{node.name} is not ready:\n{self.log(node)}") from error

    def log(self, node: Node) -> str:
        """The end of an agent's log."""
        path = self.root / f"{node.name}.log"
        return path.read_text(errors="replace")[-6000:] if path.exists() else ""

    # -- objects ---------------------------------------------------------------------------------------------------

    def _path(self, document: Mapping[str, Any]) -> Path:
        metadata = document["metadata"]
        return (
            self.objects / f"{document['kind']}.{metadata.get('namespace', 'default')}.{metadata['name']}.yaml".lower()
        )

    def apply(self, document: Mapping[str, Any]) -> None:
        """Put an object into the folder, atomically."""
        fresh = self.root / "fresh"
        fresh.write_text(yaml.safe_dump(dict(document)))
        fresh.replace(self._path(document))

    def remove(self, kind: str, name: str) -> None:
        """Take an object out of the folder."""
        self._path({"kind": kind, "metadata": {"name": name}}).unlink()

    def node_object(self, node: Node, **labels: str) -> None:
        """What the API server says of a node."""
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": node.name, "labels": labels},
                "spec": {"podCIDRs": list(node.pod_ranges)},
                "status": {"addresses": [{"type": "InternalIP", "address": a} for a in node.addresses]},
            }
        )

    # -- pods ------------------------------------------------------------------------------------------------------

    def pod_object(self, name: str, node: Node, labels: Mapping[str, str]) -> None:
        """Write the Pod object alone."""
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "labels": dict(labels)},
                "spec": {"nodeName": node.name},
            }
        )

    async def add_pod(self, name: str, node: Node, **labels: str) -> Pod:
        """A pod with an interface, by way of the CNI plugin."""
        pod = Pod(name, node, f"{self.prefix}{name}", labels)
        self.pod_object(name, node, labels)
        await self.attach(pod, name)
        return pod

    async def attach(self, pod: Pod, key: str) -> None:
        """Give a pod its namespace and interface; `key` names it in `pods`."""
        sh(f"ip netns add {pod.netns}")
        self.pods[key] = pod
        status, answer = await self.cni("ADD", pod)
        assert status == 0, f"{answer}\n{self.log(pod.node)}"
        pod.addresses = [entry["address"].partition("/")[0] for entry in answer["ips"]]

    @staticmethod
    def cni_call(command: str, pod: Pod, **more: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """The network configuration and environment with which a runtime calls the plugin."""
        config = {
            "cniVersion": "1.1.0",
            "name": "ciliate",
            "type": "ciliate-cni",
            "socket": str(pod.node.run_dir / "cni.sock"),
            **more,
        }
        return config, {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": f"container-{pod.netns}",
            "CNI_NETNS": str(NETNS / pod.netns),
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name}",
        }

    async def cni(self, command: str, pod: Pod, **more: Any) -> tuple[int, dict[str, Any]]:
        """Call the plugin as a runtime does; (exit code, its output). `more` goes into the configuration."""
        config, variables = self.cni_call(command, pod, **more)
        environment = os.environ | variables
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-IS",
            PLUGIN,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
        output, _ = await child.communicate(json.dumps(config).encode())
        return int(child.returncode or 0), json.loads(output) if output else {}


def network_policy(name: str, app: str, allow: str, port: int) -> dict[str, Any]:
    """Pods `app` may be reached by pods `role: allow` on one TCP port, and by nobody else."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {
            "podSelector": {"matchLabels": {"app": app}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [{"podSelector": {"matchLabels": {"role": allow}}}],
                    "ports": [{"protocol": "TCP", "port": port}],
                }
            ],
        },
    }


def in_pod(pod: Pod, *words: str, seconds: float = 5.0) -> subprocess.CompletedProcess[str]:
    """Run a program in a pod's network and wait for it."""
    command: Sequence[str] = ["nsenter", f"--net={NETNS / pod.netns}", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
