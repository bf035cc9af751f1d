"""Limits of pods' bandwidth, by queues at their interfaces.

In: pods' annotations, endpoints. Out: token buckets (tbf): at the pod's own side for what it sends, unless the node's
devices pace it by departure time, and at the node's side for what it receives. All of a pod's traffic counts, also to
pods of the same node. Limits of an earlier run are found again: what is in place is asked of the kernel at the start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from services.common.errors import CiliateError
from services.common.log import get_logger
from services.model.bandwidth import Limits, read_limits
from services.model.objects import (
    Deleted,
    EndpointDeleted,
    EndpointUpserted,
    LocalEndpoint,
    ObjectKey,
    Pod,
    Synced,
    Update,
    Upserted,
)

NONE = Limits()
RETRY_SECONDS = 5.0


class Shapers(Protocol):
    """Pods' interfaces. A rate of 0 takes a queue away."""

    async def shape(self, endpoint: LocalEndpoint, limits: Limits) -> None: ...


class BandwidthKeeper:
    """`run` until cancelled. `paced`: what pods send is limited by departure times, not here."""

    def __init__(self, shapers: Shapers, *, paced: bool) -> None:
        self._shapers, self._paced = shapers, paced
        self._limits: dict[tuple[str, str], Limits] = {}
        self._endpoints: dict[int, LocalEndpoint] = {}
        self._restored = False
        """Whether all endpoints of an earlier run are known: those that come now are new."""
        self._pending: set[int] = set()
        self._problems: dict[str, str] = {}
        self._failed: dict[int, str] = {}
        self._dirty = asyncio.Event()
        self._log = get_logger("endpoint.bandwidth")

    @property
    def errors(self) -> Mapping[str, str]:
        """Pod -> what is wrong with its limits."""
        failed = {f"endpoint {number}": problem for number, problem in self._failed.items()}
        return {**self._problems, **failed}

    def observe(self, update: Update) -> None:
        """Every update passes here; cheap."""
        match update:
            case Upserted(object=Pod() as pod):
                self._set_pod((pod.namespace, pod.name), *read_limits(pod.annotations))
            case Deleted(key=ObjectKey(kind="Pod") as key):
                self._set_pod((key.namespace, key.name), NONE, ())
            case EndpointUpserted(endpoint=endpoint):
                known = self._endpoints.get(endpoint.id)
                self._endpoints[endpoint.id] = endpoint
                limited = self._limits.get((endpoint.namespace, endpoint.pod), NONE) != NONE
                # An interface that was just made has no queue of ours.
                if (known is None or known.ifindex != endpoint.ifindex) and (limited or not self._restored):
                    self._mark(endpoint.id)
            case Synced(source="endpoints"):
                self._restored = True
            case EndpointDeleted(id=number):
                self._endpoints.pop(number, None)
                self._failed.pop(number, None)
            case _:
                pass

    def _set_pod(self, name: tuple[str, str], limits: Limits, problems: tuple[str, ...]) -> None:
        where = f"pod {name[0]}/{name[1]}"
        if problems:
            self._problems[where] = "; ".join(problems)
        else:
            self._problems.pop(where, None)
        if self._limits.get(name, NONE) == limits:
            return
        if limits == NONE:
            del self._limits[name]
        else:
            self._limits[name] = limits
        for endpoint in self._endpoints.values():
            if (endpoint.namespace, endpoint.pod) == name:
                self._mark(endpoint.id)

    def _mark(self, number: int) -> None:
        self._pending.add(number)
        self._dirty.set()

    async def run(self) -> None:
        """Make the interfaces what the limits say, for ever; what fails is tried again."""
        while True:
            try:
                async with asyncio.timeout(RETRY_SECONDS if self._failed else None):
                    await self._dirty.wait()
            except TimeoutError:
                self._pending |= self._failed.keys()
            self._dirty.clear()
            while self._pending:
                await self._apply(self._pending.pop())

    async def _apply(self, number: int) -> None:
        endpoint = self._endpoints.get(number)
        if endpoint is None:
            return
        limits = self._limits.get((endpoint.namespace, endpoint.pod), NONE)
        if self._paced:
            limits = Limits(0, limits.ingress)
        try:
            await self._shapers.shape(endpoint, limits)
        except CiliateError as error:
            self._failed[number] = str(error)
            self._log.warning("bandwidth not limited", endpoint_id=number, problem=str(error))
            return
        self._failed.pop(number, None)
