"""Certificates of our own processes: made by the operator, asked for by agents, used for real calls."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from services.agent.certificate import Certificate, usable
from services.common.errors import Denied
from services.common.kube.client import KubeClient
from services.common.retry import Backoff
from services.common.runner import GrpcServer
from services.common.tls import PeerIdentity, TlsFiles, channel, peer_identity, server_credentials
from tests.integration.operator.conftest import Cluster, Start, eventually

REQUESTS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
AGENT = "system:serviceaccount:kube-system:ciliate-agent"
NODE_NAME = "authentication.kubernetes.io/node-name"


def secret(cluster: Cluster, name: str) -> Any:
    return cluster.get(f"/api/v1/namespaces/kube-system/secrets/{name}")


def on_disk(document: Any, folder: Path) -> TlsFiles:
    """A Secret as a kubelet mounts it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in document["data"].items():
        (folder / name).write_bytes(base64.b64decode(text))
    return TlsFiles(str(folder / "ca.crt"), str(folder / "tls.crt"), str(folder / "tls.key"))


def files_in(folder: Path) -> TlsFiles:
    return TlsFiles(str(folder / "ca.crt"), str(folder / "tls.crt"), str(folder / "tls.key"))


def ask_as(cluster: Cluster, username: str, node: str) -> None:
    cluster.store.requester = {"username": username, "extra": {NODE_NAME: [node]} if node else {}}


async def who_calls(server: TlsFiles, client: TlsFiles, tmp_path: Path) -> PeerIdentity | None:
    """Who a server with one certificate sees calling that has the other."""
    seen: list[PeerIdentity | None] = []

    async def handle(request: bytes, context: Any) -> bytes:
        seen.append(peer_identity(context))
        return b""

    def register(made: grpc.aio.Server) -> None:
        handlers = {"Call": grpc.unary_unary_rpc_method_handler(handle)}
        made.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))

    target = f"unix://{tmp_path}/test.sock"
    async with GrpcServer([target], server_credentials(server), register), channel(target, client, "identity") as there:
        await there.unary_unary("/test.Test/Call")(b"", timeout=10)
    return seen[0]


async def test_an_agent_gets_a_certificate_for_its_own_node(cluster: Cluster, start: Start, tmp_path: Path) -> None:
    ask_as(cluster, AGENT, "node1")
    await start(certificates="authority")
    files = files_in(tmp_path / "agent")
    async with KubeClient(cluster.server.kubeconfig) as client, asyncio.timeout(20):
        # It says it is node2: what counts is what the API server says.
        await Certificate(client, files, "node2", Backoff(0.05, 0.2)).ensure()
    identity = on_disk(await eventually(lambda: secret(cluster, "ciliate-identity-tls")), tmp_path / "identity")
    assert await who_calls(identity, files, tmp_path) == PeerIdentity("agent", "node1")


@pytest.mark.parametrize(
    ("username", "node", "words"),
    [
        ("system:serviceaccount:default:default", "node1", "only system:serviceaccount:kube-system:ciliate-agent"),
        (AGENT, "", "names no node"),
    ],
)
async def test_others_are_refused_with_the_reason(
    cluster: Cluster, start: Start, tmp_path: Path, username: str, node: str, words: str
) -> None:
    ask_as(cluster, username, node)
    await start(certificates="authority")
    async with KubeClient(cluster.server.kubeconfig) as client, asyncio.timeout(20):
        certificate = Certificate(client, files_in(tmp_path), "node1", Backoff(0.05, 0.2))
        with pytest.raises(Denied, match=words):
            await certificate._renew()
    assert not (tmp_path / "tls.key").exists()


async def test_roles_have_theirs_and_keep_them_over_another_leader(cluster: Cluster, start: Start) -> None:
    first = await start("one", certificates="authority", etcd_addresses=["10.0.0.1"])
    etcd = await eventually(lambda: secret(cluster, "ciliate-etcd-tls"))
    names = {each["metadata"]["name"] for each in cluster.all("/api/v1/secrets")}
    assert names == {"ciliate-ca"} | {
        f"ciliate-{role}-tls" for role in ("identity", "relay", "operator", "client", "etcd")
    }
    version = cluster.store.version
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await start("two", certificates="authority", etcd_addresses=["10.0.0.1", "10.0.0.2"])
    changed = await eventually(
        lambda: (now := secret(cluster, "ciliate-etcd-tls"))["data"] != etcd["data"] and now
    )  # one address more
    assert changed["data"]["ca.crt"] == etcd["data"]["ca.crt"]
    others = [each for each in cluster.all("/api/v1/secrets") if each["metadata"]["name"] != "ciliate-etcd-tls"]
    assert all(int(each["metadata"]["resourceVersion"]) <= version for each in others)


async def test_an_authority_that_is_broken_stops_nothing_else(cluster: Cluster, start: Start) -> None:
    labels = {"app.kubernetes.io/part-of": "ciliate"}
    cluster.put("/api/v1/secrets", "ciliate-ca", "kube-system", metadata={"labels": labels}, data={"tls.crt": "bm8="})
    cluster.node("node1")
    await start(certificates="authority")
    await eventually(lambda: cluster.get("/apis/ciliate.io/v1/ciliatenodes/node1")["spec"])
    assert len(cluster.all("/api/v1/secrets")) == 1


async def test_a_certificate_that_is_good_is_not_asked_for_again(
    cluster: Cluster, start: Start, tmp_path: Path
) -> None:
    ask_as(cluster, AGENT, "node1")
    operator = await start(certificates="authority")
    async with KubeClient(cluster.server.kubeconfig) as client, asyncio.timeout(20):
        certificate = Certificate(client, files_in(tmp_path), "node1", Backoff(0.05, 0.2))
        await certificate.ensure()
        operator.cancel()
        await asyncio.gather(operator, return_exceptions=True)
        await certificate.ensure()  # nobody would answer
    assert len(cluster.all(REQUESTS)) == 1


def test_half_written_files_are_not_usable(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    from services.common.authority import Authority

    authority, pair = Authority.new()
    one, other = authority.issue("agent", "n1"), authority.issue("agent", "n1")
    files = files_in(tmp_path)
    contents = {"ca.crt": pair.certificate, "tls.crt": one.certificate, "tls.key": one.key}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert usable(files, datetime.now(UTC))
    (tmp_path / "tls.key").write_bytes(other.key)
    assert not usable(files, datetime.now(UTC))
    (tmp_path / "tls.key").unlink()
    assert not usable(files, datetime.now(UTC))
