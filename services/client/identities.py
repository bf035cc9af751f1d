"""Client of the identity service (`ciliate.identity.v1.IdentityService`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc.aio

from services.client.connection import Connection
from services.client.identity_watch import IdentityWatch
from services.common.errors import CiliateError, Unavailable
from services.common.log import get_logger
from services.common.pb.identity.v1 import identity_pb2 as pb
from services.common.pb.identity.v1 import identity_pb2_grpc
from services.model.addresses import IPNetwork
from services.model.identity import Identity, NumericIdentity
from services.model.labels import Labels
from services.model.objects import IpEntry

RETRY_KEEPALIVE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Referenced:
    """An identity and the nodes that hold references to it."""

    identity: Identity
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """A node's hold on an identity. `number` grows with every `allocate`: what a release is of; 0 for reserved ones."""

    identity: Identity
    number: int


class Identities(Connection):
    """Reads with a certificate of any role; `allocate` to `keep_alive` need the certificate of the node named."""

    role = "identity"

    def stub(self, there: grpc.aio.Channel) -> Any:
        """See `Connection`."""
        return identity_pb2_grpc.IdentityServiceStub(there)  # type: ignore[no-untyped-call]

    # -- reading ---------------------------------------------------------------------------------------------------

    async def get(self, number: int) -> Referenced:
        """The identity with a number; `NotFound` where there is none."""
        request = pb.GetRequest(id=number)
        answer = await self.call(lambda stub, seconds: stub.Get(request, timeout=seconds))
        return Referenced(_identity(answer.identity), tuple(answer.referenced_by))

    async def get_by_labels(self, labels: Labels) -> Identity:
        """The identity of exactly this label set; `NotFound` where nobody has allocated one."""
        request = pb.GetByLabelsRequest(labels=labels.texts())
        answer = await self.call(lambda stub, seconds: stub.GetByLabels(request, timeout=seconds))
        return _identity(answer.identity)

    async def list(self, having: Labels | None = None) -> AsyncIterator[Identity]:
        """Identities that carry all the labels of `having`; every one without it."""
        request = pb.ListRequest(labels=having.texts() if having else [])
        async for row in self.stream(lambda stub: stub.List(request)):
            yield _identity(row)

    def watch(self, node: str = "", on_problem: Callable[[CiliateError | None], None] | None = None) -> IdentityWatch:
        """Everything that is known and every change, over reconnects; see `IdentityWatch`."""
        return IdentityWatch(self, node, self._backoff, on_problem or (lambda problem: None))

    # -- as the operator -------------------------------------------------------------------------------------------

    async def forget_node(self, node: str) -> None:
        """A node is no part of the cluster any more: what it has goes now. Needs an operator's certificate."""
        request = pb.ForgetNodeRequest(node=node)
        await self.call(lambda stub, seconds: stub.ForgetNode(request, timeout=seconds))

    async def collect(self) -> int:
        """Have identities collected that are due; how many went. Needs an operator's certificate."""
        answer = await self.call(lambda stub, seconds: stub.Collect(pb.CollectRequest(), timeout=seconds))
        return int(answer.collected)

    # -- as a node -------------------------------------------------------------------------------------------------

    async def allocate(self, labels: Labels, node: str) -> Claim:
        """The identity of a label set; `node` holds a reference until `release`."""
        request = pb.AllocateRequest(labels=labels.texts(), node=node)
        answer = await self.call(lambda stub, seconds: stub.Allocate(request, timeout=seconds))
        return Claim(_identity(answer.identity), answer.claim)

    async def release(self, identity: NumericIdentity, node: str, claim: int = 0) -> bool:
        """Give `node`'s reference back, unless it was claimed again after `claim`; whether it was given back."""
        request = pb.ReleaseRequest(id=identity, node=node, claim=claim)
        answer = await self.call(lambda stub, seconds: stub.Release(request, timeout=seconds))
        return bool(answer.released)

    async def references(self, node: str) -> Mapping[NumericIdentity, int]:
        """Identities that `node` holds -> its newest claim."""
        request = pb.ListReferencesRequest(node=node)
        answer = await self.call(lambda stub, seconds: stub.ListReferences(request, timeout=seconds))
        return {NumericIdentity(row.id): row.claim for row in answer.references}

    async def register(self, entry: IpEntry) -> None:
        """Tell the cluster who has an address."""
        endpoint = pb.Endpoint(
            prefix=str(entry.prefix),
            identity=entry.identity,
            node=entry.node,
            tunnel_endpoint=str(entry.tunnel or ""),
            namespace=entry.namespace,
            pod=entry.pod,
            ports=[pb.NamedPort(name=each.name, port=each.port, protocol=each.protocol) for each in entry.ports],
            workload_kind=entry.workload[0],
            workload=entry.workload[1],
        )
        request = pb.RegisterEndpointRequest(endpoint=endpoint)
        await self.call(lambda stub, seconds: stub.RegisterEndpoint(request, timeout=seconds))

    async def deregister(self, prefix: IPNetwork, node: str) -> None:
        """Tell the cluster that nobody has an address any more."""
        request = pb.DeregisterEndpointRequest(prefix=str(prefix), node=node)
        await self.call(lambda stub, seconds: stub.DeregisterEndpoint(request, timeout=seconds))

    async def keep_alive(self, node: str, on_lapse: Callable[[], None], ask_now: asyncio.Event | None = None) -> None:
        """Keep `node`'s references for ever; `on_lapse` when they are gone and must all be made again.

        That is asked four times in a lease's life, and at once when `ask_now` is set: it is cleared.
        """
        wake = ask_now or asyncio.Event()
        request, known = pb.KeepAliveRequest(node=node), 0
        while True:
            pause = RETRY_KEEPALIVE_SECONDS
            wake.clear()
            with contextlib.suppress(Unavailable):
                answer = await self.call(lambda stub, seconds: stub.KeepAlive(request, timeout=seconds))
                if known and answer.lease != known:
                    get_logger("client.identities").warning("the node's references are gone", node=node)
                    on_lapse()
                known, pause = answer.lease, max(answer.ttl_seconds / 4, 0.25)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), pause)


def _identity(row: pb.Identity) -> Identity:
    return Identity(NumericIdentity(row.id), Labels.parse(row.labels))
