"""Mutual TLS over a unix socket: identities from certificates, strangers refused, rotation without restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.authority import issue, make_authority
from services.common.errors import Denied, Invalid
from services.common.runner import GrpcServer
from services.common.tls import PeerIdentity, TlsFiles, channel, peer_identity, server_credentials


class Recorder(grpc.aio.ServerInterceptor):
    """Notes who called."""

    def __init__(self) -> None:
        self.seen: list[PeerIdentity | None] = []


def echo_identity(seen: list[PeerIdentity | None]) -> Any:
    async def who(request: bytes, context: Any) -> bytes:
        seen.append(peer_identity(context))
        if request == b"bad":
            raise Invalid("field x: is bad; write a good one")
        return request

    handlers = {"Who": grpc.unary_unary_rpc_method_handler(who)}
    return lambda server: server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))


async def call(target: str, files: TlsFiles | None, request: bytes = b"x") -> bytes:
    async with channel(target, files, "identity") as connection:
        return await connection.unary_unary("/t.T/Who")(request, timeout=5)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    directory = tmp_path / "pki"
    make_authority(directory)
    return directory


async def test_the_certificate_says_who_calls(authority: Path, tmp_path: Path) -> None:
    seen: list[PeerIdentity | None] = []
    address = f"unix://{tmp_path}/s.sock"
    credentials = server_credentials(issue(authority, "identity"))
    async with GrpcServer([address, "127.0.0.1:0"], credentials, echo_identity(seen)) as server:
        agent = issue(authority, "agent", "node1")
        assert await call(address, agent) == b"x"
        assert await call(f"127.0.0.1:{server.ports[1]}", agent) == b"x"
        assert seen == [PeerIdentity("agent", "node1")] * 2
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(address, agent, b"bad")
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "field x: is bad; write a good one"


async def test_strangers_and_plaintext_are_refused(authority: Path, tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/s.sock"
    other = tmp_path / "other"
    make_authority(other)
    async with GrpcServer([address], server_credentials(issue(authority, "identity")), echo_identity([])):
        for files in (None, issue(other, "agent", "node1")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(address, files)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_server_of_another_role_is_refused(authority: Path, tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/s.sock"
    async with GrpcServer([address], server_credentials(issue(authority, "relay")), echo_identity([])):
        with pytest.raises(grpc.aio.AioRpcError):
            await call(address, issue(authority, "agent", "node1"))


async def test_certificates_rotate_without_a_restart(authority: Path, tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/s.sock"
    served = issue(authority, "identity")
    async with GrpcServer([address], server_credentials(served), echo_identity([])):
        assert await call(address, issue(authority, "agent", "n")) == b"x"
        fresh = tmp_path / "fresh"
        make_authority(fresh)
        replacement = issue(fresh, "identity")
        for old, new in ((served.ca, replacement.ca), (served.cert, replacement.cert), (served.key, replacement.key)):
            Path(old).write_bytes(Path(new).read_bytes())
        assert await call(address, issue(fresh, "agent", "n")) == b"x"


async def test_plaintext_has_no_identity_and_health_answers(tmp_path: Path) -> None:
    seen: list[PeerIdentity | None] = []
    address = f"unix://{tmp_path}/s.sock"
    async with GrpcServer([address], None, echo_identity(seen), ["t.T"], ["extra"]) as server:
        assert (Path(tmp_path) / "s.sock").stat().st_mode & 0o777 == 0o600
        assert await call(address, None) == b"x"
        assert seen == [None]
        async with grpc.aio.insecure_channel(address) as connection:
            stub = health_pb2_grpc.HealthStub(connection)
            await server.set_health("extra", False)
            for name, status in (("", 1), ("t.T", 1), ("extra", 2)):
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
                assert answer.status == status
    assert not (Path(tmp_path) / "s.sock").exists()


class FakeContext:
    """A call whose certificate names no role."""

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"transport_security_type": [b"ssl"], "x509_subject_alternative_name": [b"ciliate://king/x"]}


def test_a_certificate_without_a_role_is_denied() -> None:
    with pytest.raises(Denied, match="URI SAN"):
        peer_identity(FakeContext())
