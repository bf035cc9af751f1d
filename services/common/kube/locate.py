"""Where the replicas of one of our own services are, before names and Services work on this node.

An agent gives pods their network, so it can rely on neither a name server (a pod) nor a Service's address (which it is
itself about to serve): it asks the API server for the Service's endpoints.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from services.common.errors import CiliateError, Invalid, Unavailable
from services.common.kube.resources import SLICES

SCHEME = "k8s://"
_TARGET = re.compile(r"k8s://([a-z0-9][-a-z0-9]*)/([a-z0-9][-a-z0-9]*):([0-9]{1,5})")


class Client(Protocol):
    """The API server, as far as it is needed here."""

    async def list(self, path: str, query: Mapping[str, str]) -> dict[str, Any]: ...


class Replicas:
    """Finds a gRPC target with all ready replicas of "k8s://namespace/service:port", in a random order."""

    def __init__(self, client: Client, target: str, shuffle: Callable[[list[str]], None] = random.shuffle) -> None:
        """Raises `Invalid` for what is no such target."""
        found = _TARGET.fullmatch(target)
        if not found or not 0 < int(found[3]) < 1 << 16:
            raise Invalid(f"identity_target: {target!r} is not k8s://namespace/service:port")
        self._client, self._shuffle = client, shuffle
        self._namespace, self._service, self._port = found[1], found[2], int(found[3])
        self._last = ""

    async def __call__(self) -> str:
        """What gRPC connects to. While the API server is away, what was last found; raises `Unavailable` without."""
        selector = {"labelSelector": f"kubernetes.io/service-name={self._service}"}
        try:
            answer = await self._client.list(SLICES.collection_path(self._namespace), selector)
        except CiliateError as error:
            if self._last:
                return self._last
            raise Unavailable(f"{self._namespace}/{self._service}: {error}") from error
        addresses = ready_addresses(answer.get("items") or ())
        if not addresses:
            if self._last:
                return self._last
            raise Unavailable(f"{self._namespace}/{self._service}: has no ready endpoint")
        self._shuffle(addresses)
        self._last = grpc_target(addresses, self._port)
        return self._last


def ready_addresses(slices: Iterable[Mapping[str, Any]]) -> list[str]:
    """Addresses that serve, of one IP version: gRPC's targets cannot mix them. IPv4 first."""
    found: dict[str, list[str]] = {}
    for document in slices:
        for endpoint in document.get("endpoints") or ():
            # Absent means ready (EndpointConditions).
            if (endpoint.get("conditions") or {}).get("ready") is not False:
                found.setdefault(str(document.get("addressType")), []).extend(endpoint.get("addresses") or ())
    return sorted(set(found.get("IPv4") or found.get("IPv6") or ()))


def grpc_target(addresses: Sequence[str], port: int) -> str:
    """Several addresses as one target (gRPC's naming, schemes `ipv4` and `ipv6`)."""
    if ":" in addresses[0]:
        return "ipv6:" + ",".join(f"[{address}]:{port}" for address in addresses)
    return "ipv4:" + ",".join(f"{address}:{port}" for address in addresses)
