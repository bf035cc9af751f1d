"""The service account of a pod: its token is replaced while the process runs, and nothing ends when that goes wrong."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from services.common.errors import Invalid, Unavailable
from services.common.kube import client as kube


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a kubelet mounts; nobody listens at the server's address."""
    kube._load_library()
    from kubernetes_asyncio.config import incluster_config

    for name in ("token", "ca.crt"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "TOKEN_REFRESH_PERIOD", timedelta(0))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    return tmp_path


async def test_without_an_account_it_says_so(account: Path) -> None:
    (account / "token").unlink()
    with pytest.raises(Invalid, match="service account"):
        await kube.KubeClient().__aenter__()


async def test_a_token_that_cannot_be_read_for_a_while_is_a_server_that_is_away(
    account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl.SSLContext.load_verify_locations", lambda *a, **k: None)  # "ca.crt" is none
    async with kube.KubeClient() as client:
        for broken in ("", None):
            token = account / "token"
            token.write_text("") if broken == "" else token.unlink()
            with pytest.raises(Unavailable, match="credentials"):
                await client.list("/api/v1/nodes", {})
            with pytest.raises(Unavailable, match="credentials"):
                await anext(client.watch("/api/v1/nodes", {}, 1))
        (account / "token").write_text("new")
        assert await client._credentials() == {"authorization": "Bearer new"}
        with pytest.raises(Unavailable, match="connect"):
            await client.list("/api/v1/nodes", {})
