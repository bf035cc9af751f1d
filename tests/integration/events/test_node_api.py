"""A node's listener as a stock relay uses it: TLS 1.3 and nothing less, names, peers, events, who may read."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from services.agent.server.peers import SERVICE_NAME, Peers
from services.common.authority import issue, make_authority
from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2, observer_pb2_grpc
from services.common.pb.peer import peer_pb2 as pb
from services.common.pb.peer import peer_pb2_grpc
from services.common.runner import GrpcServer
from services.common.tls import TlsFiles, server_credentials
from services.flows.agent_events import AgentEvents
from services.flows.columns import STORED, Kind
from services.flows.entries import NodeRef, Party
from services.flows.observer import HEALTH_NAME, Observer
from services.flows.observer import SERVICE_NAME as OBSERVER_NAME
from services.flows.store import FlowStore
from services.model.identity import NumericIdentity, Reserved
from services.model.objects import IpDeleted, IpEntry, IpUpserted


def row(address: str, node: str, identity: int = Reserved.REMOTE_NODE) -> IpEntry:
    return IpEntry(ipaddress.ip_network(address), NumericIdentity(identity), node)


class Node:
    """What an agent puts on port 4244."""

    def __init__(self, directory: Path, cluster: str = "default") -> None:
        self.directory = directory
        make_authority(directory)
        self.files = issue(directory, "agent", "n1")
        self.store = FlowStore(1024)
        self.events = AgentEvents("n1")
        node = NodeRef("n1", cluster)
        self.observer = Observer(self.store, node, "ciliate v1.2.3", "1.2.3", events=self.events)
        self.peers = Peers(cluster, 4244, tls=True)
        self.port = 0

    def register(self, server: grpc.aio.Server) -> None:
        observer_pb2_grpc.add_ObserverServicer_to_server(self.observer, server)  # type: ignore[no-untyped-call]
        peer_pb2_grpc.add_PeerServicer_to_server(self.peers, server)  # type: ignore[no-untyped-call]

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        names = [OBSERVER_NAME, SERVICE_NAME]
        async with GrpcServer(
            ["127.0.0.1:0"], server_credentials(self.files), self.register, names, [HEALTH_NAME]
        ) as server:
            self.port = server.ports[0]
            yield

    def channel(self, files: TlsFiles, name: str = "n1.default.hubble-grpc.cilium.io") -> grpc.aio.Channel:
        """As Hubble's relay does: the certificate is checked for the name that `Notify` gave."""
        ca, cert, key = files.read()
        credentials = grpc.ssl_channel_credentials(ca, key, cert)
        options = [("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options=options)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@contextlib.asynccontextmanager
async def stubs(node: Node, files: TlsFiles) -> AsyncIterator[tuple[Any, Any]]:
    async with node.channel(files) as there:
        yield observer_pb2_grpc.ObserverStub(there), peer_pb2_grpc.PeerStub(there)  # type: ignore[no-untyped-call]


def stock_relay(node: Node) -> TlsFiles:
    """The certificate of Hubble's own relay: a name of its domain, and no role of ours."""
    return issue(node.directory, "stock", hosts=["*.hubble-relay.cilium.io"])


async def test_peers_are_replayed_then_told_as_they_change(node: Node) -> None:
    node.peers.observe(IpUpserted(row("172.16.0.1/32", "n1", Reserved.HOST)))
    node.peers.observe(IpUpserted(row("fd00::2/128", "n2")))
    node.peers.observe(IpUpserted(row("10.1.0.9/32", "n9", 300)))  # a pod, no node
    async with node.serving(), stubs(node, stock_relay(node)) as (_, peers):
        call = peers.Notify(pb.NotifyRequest())

        async def told() -> tuple[str, str, str, str]:
            async with asyncio.timeout(5):
                each = await call.read()
            return pb.ChangeNotificationType.Name(each.type), each.name, each.address, each.tls.server_name

        domain = "default.hubble-grpc.cilium.io"
        assert await told() == ("PEER_ADDED", "n1", "172.16.0.1:4244", f"n1.{domain}")
        assert await told() == ("PEER_ADDED", "n2", "[fd00::2]:4244", f"n2.{domain}")
        node.peers.observe(IpUpserted(row("172.16.0.2/32", "n2")))  # IPv4 goes first
        assert await told() == ("PEER_UPDATED", "n2", "172.16.0.2:4244", f"n2.{domain}")
        node.peers.observe(IpDeleted(ipaddress.ip_network("fd00::2/128")))  # same name and address: nothing
        node.peers.observe(IpUpserted(row("172.16.0.2/32", "n3")))  # another node has the address now
        assert await told() == ("PEER_DELETED", "n2", "172.16.0.2:4244", f"n2.{domain}")
        assert await told() == ("PEER_ADDED", "n3", "172.16.0.2:4244", f"n3.{domain}")
        call.cancel()


@pytest.mark.parametrize(
    ("name", "cluster", "expected"),
    [
        ("n1", "east", "n1.east.hubble-grpc.cilium.io"),
        ("ip-10.eu", "a.b", "ip-10-eu.a-b.hubble-grpc.cilium.io"),
        ("n1", "", "n1.default.hubble-grpc.cilium.io"),
        ("", "east", ""),
    ],
)
def test_names_that_certificates_are_checked_for(name: str, cluster: str, expected: str) -> None:
    assert NodeRef(name, cluster).tls_name == expected


async def _to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_reader_that_does_not_keep_up_is_told_so(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.agent.server.peers.MAX_WAITING", 3)
    node.peers.observe(IpUpserted(row("172.16.0.1/32", "n1")))
    async with node.serving(), stubs(node, stock_relay(node)) as (_, peers):
        call = peers.Notify(pb.NotifyRequest())
        await call.read()
        for number in range(2, 200):
            node.peers.observe(IpUpserted(row(f"172.16.0.{number}/32", f"n{number}")))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(_to_the_end(call), 5)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_agents_certificate_reads_nothing(node: Node) -> None:
    async with node.serving(), stubs(node, issue(node.directory, "agent", "n2")) as (observer, peers):
        for call in (
            peers.Notify(pb.NotifyRequest()),
            observer.GetAgentEvents(observer_pb2.GetAgentEventsRequest()),
            observer.GetDebugEvents(observer_pb2.GetDebugEventsRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_events_over_the_wire(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.events.tell(lambda: flow_pb2.AgentEvent(type=flow_pb2.POLICY_UPDATED, policy_update={"revision": 5}))
    parties = node.store.dictionaries.parties
    ends = {
        "source": parties.intern(Party(bytes(10) + b"\xff\xff\x0a\0\0\x01", 1001)),
        "destination": parties.intern(Party(bytes(10) + b"\xff\xff\x0a\0\0\x02", 1002, endpoint_id=7, pod="web")),
    }
    base = {"protocol": 6, "source_port": 4000, "destination_port": 80, "direction": 1, "policy_revision": 3}
    rows = [
        {"kind": Kind.NEW, "verdict": 1},
        {"kind": Kind.UPDATE, "verdict": 1},
        {"kind": Kind.DROP, "verdict": 2, "drop_reason": 133},
        {"kind": Kind.DROP, "verdict": 2, "drop_reason": 134},
    ]
    for number, values in enumerate(rows):
        columns = {"time_ns": 1_000 + number} | ends | base | values
        node.store.append(
            {name: np.array([value], STORED[name]) for name, value in columns.items()},
            node.store.node(NodeRef("n1")),
        )
    async with node.serving(), stubs(node, issue(node.directory, "client")) as (observer, _):
        call = observer.GetAgentEvents(observer_pb2.GetAgentEventsRequest(number=20))
        assert dict(await call.initial_metadata())["hubble-server-version"] == "1.2.3"
        (event,) = [each async for each in call]
        assert (event.node_name, event.agent_event.policy_update.revision) == ("n1", 5)
        assert event.HasField("time")
        found = [each async for each in observer.GetDebugEvents(observer_pb2.GetDebugEventsRequest(number=20))]
    assert [flow_pb2.DebugEventType.Name(each.debug_event.type) for each in found] == [
        "DBG_CT_CREATED4",
        "DBG_POLICY_DENIED",
        "DBG_ERROR_RET",
    ]
    created = found[0].debug_event
    assert (created.arg1.value, created.arg2.value, created.arg3.value) == (1001, 1002, 3)
    assert (created.source.ID, created.source.pod_name, found[0].node_name) == (7, "web", "n1")
    assert created.message == "CT created 10.0.0.1:4000 -> 10.0.0.2:80 TCP srcID=1001 dstID=1002 revision=3"


SERVER = """
import asyncio, sys
import services.agent.__main__  # sets what gRPC reads when it is loaded
from services.common.runner import GrpcServer
from services.common.tls import TlsFiles, server_credentials

async def main():
    files = TlsFiles(*sys.argv[1:4])
    async with GrpcServer(["127.0.0.1:0"], server_credentials(files), lambda server: None) as server:
        print(server.ports[0], flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def _handshake(port: int, client: TlsFiles, version: ssl.TLSVersion) -> tuple[str | None, str | None]:
    """(TLS version, protocol) that a server agrees to."""
    context = ssl.create_default_context(cafile=client.ca)
    context.load_cert_chain(client.cert, client.key)
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    name = "n1.default.hubble-grpc.cilium.io"
    with socket.create_connection(("127.0.0.1", port), 10) as raw, context.wrap_socket(raw, server_hostname=name) as s:
        return s.version(), s.selected_alpn_protocol()


def test_an_agent_speaks_tls_1_3_or_not_at_all(node: Node) -> None:
    files, client = node.files, issue(node.directory, "client")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, files.ca, files.cert, files.key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())

        assert _handshake(port, client, ssl.TLSVersion.TLSv1_3) == ("TLSv1.3", "h2")
        with pytest.raises(ssl.SSLError):
            _handshake(port, client, ssl.TLSVersion.TLSv1_2)
    finally:
        process.communicate("", timeout=20)
