"""What comes before everything else: this node's certificate, and where the identity service is."""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.agent.config import Config
from services.agent.sources.identities import IdentityClient
from services.common.kube import locate
from services.common.tls import TlsFiles

if TYPE_CHECKING:
    from services.agent.certificate import Certificate
    from services.common.kube.client import KubeClient


@dataclass(slots=True)
class Trust:
    """The identity service's client, and the certificate where nobody else keeps it."""

    identities: IdentityClient
    certificate: Certificate | None

    def jobs(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What keeps the certificate good."""
        return {"certificate": self.certificate.run()} if self.certificate else {}


async def establish(config: Config, stack: AsyncExitStack, files: TlsFiles | None) -> Trust:
    """Returns when the node has a certificate: without one nobody can be asked anything."""
    certificate = None
    if files is not None and config.tls_from == "kubernetes":
        from services.agent.certificate import Certificate

        certificate = Certificate(await _api(config, stack), files, config.node_name)
        await certificate.ensure()
    find = None
    if config.identity_target.startswith(locate.SCHEME):
        find = locate.Replicas(await _api(config, stack), config.identity_target)
    client = IdentityClient(config.identity_target, files, config.node_name, find=find)
    return Trust(await stack.enter_async_context(client), certificate)


async def _api(config: Config, stack: AsyncExitStack) -> KubeClient:
    # An HTTP client is 21 MB that a node without an API server need not carry.
    from services.common.kube.client import KubeClient

    return await stack.enter_async_context(KubeClient(config.kubeconfig))
