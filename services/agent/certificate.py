"""The agent's own certificate, asked for at the Kubernetes API and renewed while the agent runs.

A key is made on the node and never leaves it; the operator signs for the node that the API server says asks
(`services.operator.certificates`). The files are replaced whole: servers and new channels take them up by themselves.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from services.common.authority import key_pem, new_key, write_private
from services.common.errors import CiliateError, Conflict, Denied, Invalid, Unavailable
from services.common.kube.resources import SIGNING_REQUESTS
from services.common.log import get_logger
from services.common.retry import Backoff
from services.common.tls import TlsFiles

SIGNER = "ciliate.io/agent"
RENEW_SHARE = 3
CHECK_SECONDS = 3600.0
ASK_SECONDS = 120.0
"""How long an answer is waited for before a new request is made."""

log = get_logger("certificate")


class Client(Protocol):
    """The API server, as far as it is needed here."""

    async def list(self, path: str, query: Mapping[str, str]) -> dict[str, Any]: ...

    async def create(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]: ...


class Certificate:
    """Keeps the files of one node's certificate good."""

    def __init__(self, client: Client, files: TlsFiles, node: str, backoff: Backoff | None = None) -> None:
        self._client, self._files, self._node = client, files, node
        self._backoff = backoff or Backoff(initial=0.2, maximum=10.0)
        self.problem = ""

    async def ensure(self) -> None:
        """Returns when there is a certificate that is valid, however long that takes."""
        while not usable(self._files, datetime.now(UTC)):
            if await self._try() or self._valid():
                return
            await self._backoff.wait()

    async def run(self) -> None:
        """Renew for ever, when a third of its life is left."""
        while True:
            await asyncio.sleep(CHECK_SECONDS if not self.problem else self._backoff.delay() * 10)
            if not usable(self._files, datetime.now(UTC)):
                await self._try()

    def _valid(self) -> bool:
        """Good enough to go on with: not over yet."""
        return usable(self._files, datetime.now(UTC), share=0)

    async def _try(self) -> bool:
        try:
            await self._renew()
        except CiliateError as error:
            if str(error) != self.problem:
                log.warning("no certificate", problem=str(error))
            self.problem = str(error)
            return False
        self.problem = ""
        self._backoff.reset()
        return True

    async def _renew(self) -> None:
        key = new_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"agent/{self._node}"[:64])])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        chain = await self._ask(request.public_bytes(serialization.Encoding.PEM))
        leaf, authority = _split(chain)
        for path in (self._files.ca, self._files.cert, self._files.key):
            Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(Path(self._files.ca), authority)
        write_private(Path(self._files.key), key_pem(key))
        write_private(Path(self._files.cert), leaf)
        log.info("certificate renewed", node=self._node)

    async def _ask(self, request: bytes) -> bytes:
        """The chain for a request; raises `Denied` with the signer's reason, `Unavailable` when nobody answers."""
        name = f"ciliate-agent-{self._node}-{secrets.token_hex(4)}"[:253]
        document = {
            "apiVersion": SIGNING_REQUESTS.api_version,
            "kind": SIGNING_REQUESTS.kind,
            "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "ciliate"}},
            "spec": {
                "request": base64.b64encode(request).decode(),
                "signerName": SIGNER,
                "usages": ["digital signature", "server auth", "client auth"],
            },
        }
        try:
            await self._client.create(SIGNING_REQUESTS.collection_path(), document)
        except Conflict as error:
            raise Unavailable("certificate: a request of that name exists") from error
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await self._answer(name)
        except TimeoutError as error:
            raise Unavailable(f"certificate: nobody signed {name}; does the operator run?") from error

    async def _answer(self, name: str) -> bytes:
        wait = Backoff(initial=0.1, maximum=2.0)
        while True:
            status = (await self._client.list(SIGNING_REQUESTS.object_path(name), {})).get("status") or {}
            for condition in status.get("conditions") or ():
                if condition.get("type") in ("Denied", "Failed"):
                    raise Denied(f"certificate: {condition.get('reason')}: {condition.get('message')}")
            if status.get("certificate"):
                return base64.b64decode(status["certificate"])
            await wait.wait()


def usable(files: TlsFiles, now: datetime, share: int = RENEW_SHARE) -> bool:
    """Whether the files are there, belong together, and more than one `share`-th of the certificate's life is left
    (0 = any)."""
    try:
        authority, chain, key = files.read()
        certificate = x509.load_pem_x509_certificate(chain)
        x509.load_pem_x509_certificate(authority)
        private = serialization.load_pem_private_key(key, password=None)
    except (Invalid, ValueError, TypeError):
        return False
    public = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    if certificate.public_key().public_bytes(*public) != private.public_key().public_bytes(*public):
        return False
    begin = certificate.not_valid_before.replace(tzinfo=UTC)
    end = certificate.not_valid_after.replace(tzinfo=UTC)
    return begin <= now and end - now > ((end - begin) / share if share else end - end)


def _split(chain: bytes) -> tuple[bytes, bytes]:
    """(leaf, authority) of what the operator sends: the certificate, then who signed it."""
    end = b"-----END CERTIFICATE-----\n"
    parts = [part + end for part in chain.replace(b"\r\n", b"\n").split(end) if part.strip()]
    if len(parts) < 2:
        raise Unavailable("certificate: the answer has no authority; was it signed by another signer?")
    return parts[0], parts[-1]
