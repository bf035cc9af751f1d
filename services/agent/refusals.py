"""Calls that sockets were refused because a Service has nobody behind it, as flows.

    ring `sock_events` (`bpf/sock.c`) ──▶ who has the network namespace? ──▶ records as packets' drops are ──▶ pipeline

The kernel tells the namespace's cookie; pods and the node are found by it here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from services.agent.abi.events import FLOW_EVENT
from services.agent.events.reader import RingReader
from services.common.errors import Invalid
from services.common.netns import inside, netns_cookie, opened
from services.flows.columns import Array
from services.model.addresses import V4_MAPPED_PREFIX, IPAddress, to_bytes
from services.model.identity import Reserved
from services.model.objects import LocalEndpoint

BATCH = 4096
PAUSE_SECONDS = 0.05
"""Between two looks: what hammers at a Service without backends costs a batch, not a wake-up each."""
SEARCH_SECONDS = 1.0
"""Between two searches for a namespace that is nobody's."""


class Owner(Protocol):
    """Whose namespace it is; `LocalEndpoint` has it."""

    @property
    def id(self) -> int: ...

    @property
    def identity(self) -> int: ...

    @property
    def addresses(self) -> tuple[IPAddress, ...]: ...


class NodeOwner:
    """The node's own processes."""

    id = 0
    identity = int(Reserved.HOST)

    def __init__(self, addresses: Iterable[IPAddress]) -> None:
        self.addresses = tuple(addresses)


class Owners:
    """Network namespaces by cookie. `endpoints`: this node's; looked through only when a cookie is not known."""

    def __init__(
        self, node: NodeOwner, endpoints: Callable[[], Iterable[LocalEndpoint]], clock: Callable[[], float]
    ) -> None:
        self._node, self._endpoints, self._clock = node, endpoints, clock
        self._home = netns_cookie()
        self._found: dict[int, LocalEndpoint] = {}
        self._searched = -SEARCH_SECONDS

    def of(self, cookie: int) -> Owner | None:
        """Who it is; None: nobody of ours, or gone."""
        if cookie == self._home:
            return self._node
        found = self._found.get(cookie)
        if found is None and self._clock() - self._searched >= SEARCH_SECONDS:
            self._search()
            found = self._found.get(cookie)
        return found

    def _search(self) -> None:
        self._searched = self._clock()
        self._found = {_cookie(endpoint.netns): endpoint for endpoint in self._endpoints() if endpoint.netns}
        self._found.pop(0, None)


def _cookie(path: str) -> int:
    try:
        with opened(path) as descriptor, inside(descriptor):
            return netns_cookie()
    except Invalid:
        return 0  # a pod that has just ended


def name_owners(records: Array, owners: Owners) -> Array:
    """The records with their sources: endpoint, identity and address instead of the cookie."""
    records = records.copy()
    for row in range(len(records)):
        owner = owners.of(int(records["bytes"][row, 0]))
        if owner is None:
            continue
        four = records["daddr"][row].tobytes().startswith(V4_MAPPED_PREFIX)
        own = next((a for a in owner.addresses if a.version == (4 if four else 6)), None)
        records["endpoint_id"][row], records["src_identity"][row] = owner.id, owner.identity
        if own is not None:
            records["saddr"][row] = memoryview(to_bytes(own))
    records["bytes"] = 0
    return records


class Refusals:
    """Reads the ring and hands records to the pipeline. `run` until cancelled."""

    def __init__(self, ring_fd: int, owners: Owners, add: Callable[[Array], None]) -> None:
        self._ring, self._owners, self._add = RingReader.open(ring_fd, FLOW_EVENT), owners, add

    async def run(self) -> None:
        """Follow the ring, for ever; asleep while nobody is refused."""
        loop, called = asyncio.get_running_loop(), asyncio.Event()
        while True:
            called.clear()
            loop.add_reader(self._ring.fd, called.set)
            try:
                await called.wait()
            finally:
                loop.remove_reader(self._ring.fd)
            self.take()
            await asyncio.sleep(PAUSE_SECONDS)

    def take(self) -> int:
        """What there is, up to a batch."""
        records = self._ring.read(BATCH)
        if len(records):
            self._add(name_owners(records, self._owners))
        return len(records)

    def close(self) -> None:
        """Let go of the ring; after `run` has ended."""
        self._ring.close()
