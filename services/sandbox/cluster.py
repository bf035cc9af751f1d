"""Ciliate's own processes in a sandbox: etcd, identity service, relay, an agent per node, each with its certificate.

They run as in a real cluster, from configuration files that stay readable beside their logs. The unix sockets lie in
the file system, so agents reach services from inside their node's network namespace; TLS is mutual there as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.authority import issue, make_authority
from services.common.errors import CiliateError, Unavailable
from services.common.etcd_server import EtcdServer
from services.common.log import get_logger
from services.common.pb.agent.v1 import agent_pb2, agent_pb2_grpc
from services.common.retry import Backoff
from services.common.tls import TlsFiles, channel
from services.sandbox import netns, scrape, state
from services.sandbox.cgroups import Cgroups
from services.sandbox.processes import Child, Processes

READY_SECONDS = 60.0


@dataclass(slots=True)
class _Part:
    """A process that is started again when it ends. `ready` returns once it does its work."""

    name: str
    module: str
    config: Path
    node: str
    """On which node's network and cgroup it runs; empty = beside them."""
    ready: Callable[[], Awaitable[bool]]
    child: Child | None = None
    restarts: int = 0


class Cluster:
    """Starts, watches and ends the processes. `state` tells where they are reached."""

    def __init__(
        self,
        paths: state.Paths,
        topology: netns.Topology,
        processes: Processes,
        cgroups: Cgroups,
        routing_mode: str = "tunnel",
    ) -> None:
        self._routing_mode = routing_mode
        self._paths, self._topology, self._processes, self._cgroups = paths, topology, processes, cgroups
        self._netns = {node.name: node.netns for node in topology.nodes}
        self._etcd = EtcdServer(paths.root / "etcd")
        self._log = get_logger("cluster")
        self._client: TlsFiles | None = None
        self._parts: list[_Part] = []
        self._metrics: dict[str, str] = {}
        """Process -> host:port of its figures."""
        self._forwarders: list[scrape.Forwarder] = []
        self.relay_tcp, self.web = "", ""

    @property
    def identity_target(self) -> str:
        """gRPC target of the identity service."""
        return f"unix://{self._paths.root / 'identity.sock'}"

    @property
    def relay_target(self) -> str:
        """gRPC target of the relay."""
        return f"unix://{self._paths.root / 'relay.sock'}"

    def agent_target(self, node: str) -> str:
        """gRPC target of a node's agent."""
        return f"unix://{self._paths.node(node) / 'agent.sock'}"

    def cni_socket(self, node: str) -> str:
        """Path of a node's CNI socket."""
        return str(self._paths.node(node) / "cni.sock")

    @property
    def client(self) -> TlsFiles:
        """A person's certificate."""
        assert self._client is not None
        return self._client

    def state(self, claimed: state.SandboxState) -> state.SandboxState:
        """What other processes need to know."""
        return replace(
            claimed,
            identity=self.identity_target,
            relay=self.relay_target,
            history=str(self._paths.flows),
            prometheus=str(self._paths.prometheus),
            tls_ca=self.client.ca,
            tls_cert=self.client.cert,
            tls_key=self.client.key,
            nodes=tuple(
                state.NodeState(
                    name=node.name,
                    netns=node.netns,
                    agent_socket=str(self._paths.node(node.name) / "agent.sock"),
                    hubble_socket=str(self._paths.node(node.name) / "hubble.sock"),
                    bpffs=str(self._paths.bpffs / node.name),
                )
                for node in self._topology.nodes
            ),
        )

    async def start(self, relay_tcp: str, web: str, progress: Callable[[str], None]) -> None:
        """Start everything, the relay on `relay_tcp` and its page on `web`; returns when every agent enforces.

        Raises `Unavailable` with the last lines of the log of what did not come up.
        """
        await asyncio.to_thread(self._make_certificates)
        self.relay_tcp, self.web = relay_tcp, web
        await self._open_metrics()
        progress("etcd, identity service, relay")
        await self._etcd.start()
        self._processes.record(self._etcd.pid, "etcd")
        progress(f"agents: {', '.join(node.name for node in self._topology.nodes)}")
        self._parts = [self._identity(), self._relay(), *(self._agent(node) for node in self._topology.nodes)]
        for part in self._parts:
            await self._launch(part)
        await asyncio.gather(*(self._wait_ready(part) for part in self._parts))

    async def _open_metrics(self) -> None:
        self._metrics = {name: scrape.free_address() for name in ("identity", "relay")}
        agents = []
        for node in self._topology.nodes:
            forwarder = scrape.Forwarder(node.netns, scrape.AGENT_PORT)
            self._forwarders.append(forwarder)
            agents.append((await forwarder.start(), {"node": node.name}))
        jobs: dict[str, list[tuple[str, dict[str, str]]]] = {
            f"ciliate-{name}": [(address, {})] for name, address in self._metrics.items()
        }
        scrape.write_config(self._paths.prometheus, jobs | {"ciliate-agent": agents})

    def _make_certificates(self) -> None:
        pki = self._paths.pki
        make_authority(pki)
        for role in ("identity", "relay"):
            issue(pki, role, hosts=("localhost", "127.0.0.1"))
        for node in self._topology.nodes:
            issue(pki, "agent", node.name, hosts=(node.address4, node.address6))
        self._client = issue(pki, "client")

    def _tls(self, role: str, node: str = "") -> dict[str, str]:
        stem = f"{role}-{node}" if node else role
        pki = self._paths.pki
        return {
            "tls_ca": str(pki / "ca.crt"),
            "tls_cert": str(pki / f"{stem}.crt"),
            "tls_key": str(pki / f"{stem}.key"),
        }

    def _part(
        self, name: str, module: str, config: dict[str, Any], ready: Callable[[], Awaitable[bool]], where: str = ""
    ) -> _Part:
        path = self._paths.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        return _Part(name, module, path, where, ready)

    def _identity(self) -> _Part:
        config = {
            **self._tls("identity"),
            "listen": [self.identity_target],
            "metrics_address": self._metrics["identity"],
            "etcd_endpoints": [self._etcd.endpoint],
        }
        return self._part(
            "identity", "services.identity", config, lambda: self._healthy(self.identity_target, "identity")
        )

    def _relay(self) -> _Part:
        config = {
            **self._tls("relay"),
            "node_name": "relay",
            "listen": [self.relay_target, self.relay_tcp],
            "web_address": self.web,
            "metrics_address": self._metrics["relay"],
            "history_dir": str(self._paths.flows),
            "history_max_mb": 256,
            "history_flush": 2,
        }
        return self._part("relay", "services.relay", config, lambda: self._healthy(self.relay_target, "relay"))

    def _agent(self, node: netns.NodeNet) -> _Part:
        run_dir = self._paths.node(node.name)
        run_dir.mkdir(parents=True, exist_ok=True)
        config = {
            **self._tls("agent", node.name),
            "node_name": node.name,
            "cluster_name": "default",
            "node_address": [node.address4, node.address6],
            "pod_cidr4": node.pod_cidr4,
            "pod_cidr6": node.pod_cidr6,
            "source": "folder",
            "objects_dir": str(self._paths.objects),
            "identity_target": self.identity_target,
            "relay_target": self.relay_target,
            "run_dir": str(run_dir),
            "metrics_address": f"127.0.0.1:{scrape.AGENT_PORT}",
            "bpffs_root": str(self._paths.bpffs / node.name),
            "device": "eth0",
            "routing_mode": self._routing_mode,
            "auto_direct_node_routes": self._routing_mode == "native",
        }
        cgroup = self._cgroups.node(node.name)
        config |= {"cgroup_root": str(cgroup)} if cgroup else {"socket_lb": "off"}
        return self._part(
            f"agent-{node.name}", "services.agent", config, lambda: self.agent_ready(node.name), node.name
        )

    async def _launch(self, part: _Part) -> None:
        arguments = [sys.executable, "-m", part.module, "--config", str(part.config)]
        if part.node:
            arguments = self._cgroups.join(arguments, part.node)
        part.child = await self._processes.start(part.name, arguments, netns=self._netns.get(part.node, ""))

    async def _wait_ready(self, part: _Part) -> None:
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not await part.ready():
                    assert part.child is not None
                    if not part.child.running:
                        raise part.child.died()
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            assert part.child is not None
            message = f"{part.name} was not ready within {READY_SECONDS:g} s; its last words:\n{part.child.tail()}"
            raise Unavailable(message) from error

    async def _healthy(self, target: str, role: str) -> bool:
        async with channel(target, self.client, role) as there:
            with contextlib.suppress(grpc.aio.AioRpcError):
                request = health_pb2.HealthCheckRequest()
                answer = await health_pb2_grpc.HealthStub(there).Check(request, timeout=1.0)
                return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        return False

    async def agent_ready(self, node: str) -> bool:
        """Whether a node's agent enforces."""
        if not (self._paths.node(node) / "cni.sock").exists():
            return False
        async with channel(self.agent_target(node), self.client, "agent") as there:
            with contextlib.suppress(grpc.aio.AioRpcError):
                stub = agent_pb2_grpc.AgentServiceStub(there)  # type: ignore[no-untyped-call]
                answer = await stub.Status(agent_pb2.StatusRequest(), timeout=1.0)
                return bool(answer.ready)
        return False

    def pid(self, name: str) -> int:
        """The process of a part ("relay", "agent-node1") as it runs now."""
        child = next(part.child for part in self._parts if part.name == name)
        assert child is not None
        return child.pid

    async def watch(self) -> None:
        """Start again whatever ends, as a supervisor on a node would; returns only by an error or cancellation."""
        async with asyncio.TaskGroup() as group:
            for part in self._parts:
                group.create_task(self._keep(part), name=part.name)

    async def _keep(self, part: _Part) -> None:
        backoff = Backoff(0.2, 5.0)
        while True:
            assert part.child is not None
            await part.child.process.wait()
            self._log.warning("process ended", process=part.name, status=part.child.process.returncode)
            await backoff.wait()
            part.restarts += 1
            await self._launch(part)
            with contextlib.suppress(CiliateError):
                await self._wait_ready(part)
                backoff.reset()

    def describe(self) -> list[dict[str, Any]]:
        """The processes, for people: name, number, restarts, log."""
        found = [{"name": "etcd", "pid": self._etcd.pid, "restarts": 0, "log": str(self._etcd.log_path)}]
        for part in self._parts:
            assert part.child is not None
            pid = part.child.pid if part.child.running else 0
            found.append({"name": part.name, "pid": pid, "restarts": part.restarts, "log": str(part.child.log)})
        return found

    async def stop(self) -> None:
        """End everything: agents first, so that what they still have to say is heard."""
        for forwarder in self._forwarders:
            forwarder.stop()
        children = {part.name: part.child for part in self._parts if part.child is not None}
        agents = [child for name, child in children.items() if name.startswith("agent-")]
        await self._processes.stop(*agents)
        await self._processes.stop(*(child for child in children.values() if child not in agents))
        await self._etcd.stop(kill=True)  # its data go with it
