"""Endpoints of another network: pods of this node as the API tells them, known by their addresses. Nothing is made.

pods of this node with addresses -> identity -> address row, maps (as any endpoint's) -> flows with names
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from services.agent.endpoints.manager import SOURCE, EndpointManager
from services.agent.endpoints.records import EndpointRecord, RecordStore
from services.agent.endpoints.rows import endpoint_rows
from services.common.errors import CiliateError
from services.common.log import get_logger
from services.common.retry import Backoff
from services.model.addresses import IPAddress
from services.model.objects import (
    Deleted,
    EndpointDeleted,
    EndpointUpserted,
    IdentityUpserted,
    LocalEndpoint,
    ObjectKey,
    Pod,
    Synced,
    Update,
    Upserted,
)

_NO_INTERFACE = 1 << 30
"""Added to an endpoint's number: an index that no interface has, and no other endpoint."""
_OVER = ("Succeeded", "Failed")


class NoRecords(RecordStore):
    """Nothing is remembered: the API tells all of it again."""

    def load(self) -> Iterator[EndpointRecord]:
        return iter(())

    def save(self, record: EndpointRecord) -> None:
        pass

    def delete(self, endpoint_id: int) -> None:
        pass


class WatchedEndpoints(EndpointManager):
    """This node's pods that somebody else gave interfaces and addresses."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._here: dict[tuple[str, str], Pod] = {}
        self._moved = asyncio.Event()
        self._complete = False
        self.caught_up = asyncio.Event()
        """Every pod that was there when all sources had told of theirs is an endpoint."""
        self._log = get_logger("endpoints.watched")

    async def restore(self) -> list[Update]:
        """Nothing is left of an earlier run."""
        return [Synced(SOURCE)]

    async def attach_all(self) -> None:
        """Interfaces are not endpoints here."""

    def observe(self, update: Update) -> None:
        super().observe(update)
        match update:
            case Upserted(object=Pod() as pod):
                mine = pod.node == self._node.name and pod.addresses and not pod.host_network
                if mine and pod.phase not in _OVER:
                    self._here[pod.namespace, pod.name] = pod
                else:
                    self._here.pop((pod.namespace, pod.name), None)
                self._moved.set()
            case Deleted(key=ObjectKey(kind="Pod") as key):
                self._here.pop((key.namespace, key.name), None)
                self._moved.set()
            case _:
                pass

    def complete(self) -> None:
        """All sources have told what there is."""
        self._complete = True
        self._moved.set()

    async def run(self) -> None:
        """Bring endpoints up to date with the pods, for ever."""
        backoff = Backoff(initial=0.2, maximum=5.0)
        while True:
            await self._moved.wait()
            self._moved.clear()
            complete = self._complete
            try:
                await self._follow()
                backoff.reset()
                if complete:
                    self.caught_up.set()
            except CiliateError as error:
                self._log.warning("pods wait for an identity", problem=str(error))
                self._moved.set()
                await backoff.wait()

    async def _follow(self) -> None:
        known = {(r.endpoint.namespace, r.endpoint.pod): r for r in self._endpoints.values()}
        for key, record in known.items():
            pod = self._here.get(key)
            if pod is None or pod.addresses != record.endpoint.addresses:
                await self._forget(record)
        known = {(r.endpoint.namespace, r.endpoint.pod): r for r in self._endpoints.values()}
        for key, pod in list(self._here.items()):
            if key not in known:
                await self._learn(pod)

    async def _learn(self, pod: Pod) -> None:
        labels = self._pods.labels(pod)
        identity = await self._references.acquire(labels)
        number = self._numbers.take()
        record = EndpointRecord(_described(number, pod, pod.addresses, int(identity.id)), identity.labels)
        self._endpoints[number] = record
        self._registrar.put(endpoint_rows(self._node, record.endpoint))
        await self._publish([IdentityUpserted(identity), EndpointUpserted(record.endpoint)])
        self._log.info("pod watched", endpoint_id=number, pod=f"{pod.namespace}/{pod.name}")
        self.labels_changed.set()

    async def _forget(self, record: EndpointRecord) -> None:
        number = record.endpoint.id
        self._registrar.remove([row.prefix for row in endpoint_rows(self._node, record.endpoint)])
        self._endpoints.pop(number, None)
        await self._publish([EndpointDeleted(number)])
        await self._references.release(record.labels)
        self._numbers.free(number)


def _described(number: int, pod: Pod, addresses: tuple[IPAddress, ...], identity: int) -> LocalEndpoint:
    return LocalEndpoint(
        id=number,
        namespace=pod.namespace,
        pod=pod.name,
        container_id=f"{pod.namespace}/{pod.name}",
        ifindex=_NO_INTERFACE + number,
        ifname="",
        mac=bytes(6),
        node_mac=bytes(6),
        addresses=addresses,
        identity=identity,  # type: ignore[arg-type]
        ports=pod.ports,
    )
