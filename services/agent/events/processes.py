"""Ports of this node's endpoints -> the processes that bound or connected them, as numbers for whole columns.

Fed with records of the kernel (`abi.process.PROCESS`); whom a network namespace belongs to, and what else is known of a
process, is asked through arguments. What is not known is number 0: a flow without a process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from services.agent.events.index import FastIndex
from services.flows.columns import Array
from services.flows.dictionary import Dictionaries
from services.flows.entries import ProcessRef

KEPT = 8192
"""Processes whose number stays known."""
INSPECTED_PER_BATCH = 100
"""Executables looked up: what starts faster than that has ended before anybody could look."""
WAITING = 1024
"""Ports whose namespace is not known to be anybody's yet: a pod's, perhaps, that is just being made."""
EndpointOf = Callable[[int], int | None]
"""Cookie of a network namespace -> endpoint; None: nobody's here."""
Inspect = Callable[[int, str, int], ProcessRef]
"""Pid, name and cgroup, as the kernel told -> what is to be known of the process."""


class ProcessTable:
    """`take` records, `find` numbers."""

    def __init__(self, dictionaries: Dictionaries, endpoint_of: EndpointOf, inspect: Inspect) -> None:
        self._dictionary, self._endpoint_of, self._inspect = dictionaries.processes, endpoint_of, inspect
        self._clients = FastIndex(2, self._dictionary, bits=16)
        self._servers = FastIndex(2, self._dictionary, bits=16)
        self._known: OrderedDict[tuple[int, int, bytes], int] = OrderedDict()
        """(pid, cgroup, name) -> number, which is retained."""
        self._waiting: list[Array] = []

    def take(self, records: Array) -> None:
        """Processes bound or connected ports; the last one counts."""
        if self._waiting:
            records = np.concatenate([*self._waiting, records])
            self._waiting = []
        if not len(records):
            return
        endpoints = np.full(len(records), -1, np.int64)
        for cookie in np.unique(records["netns"]).tolist():
            endpoint = self._endpoint_of(cookie)
            if endpoint is not None:
                endpoints[records["netns"] == cookie] = endpoint
        unknown = records[(endpoints < 0) & (records["listens"] != 0)][-WAITING:]
        self._waiting = [unknown] if len(unknown) else []
        there = endpoints >= 0
        self._put(records[there], endpoints[there])

    def _put(self, records: Array, endpoints: Array) -> None:
        numbers = self._numbers(records)
        # Of two records about one port the later one counts, and `put` keeps the first of equal keys.
        key = [column[::-1] for column in _key(endpoints, records["port"], records["protocol"])]
        for index, wanted in ((self._servers, records["listens"] != 0), (self._clients, records["listens"] == 0)):
            chosen = wanted[::-1]
            if chosen.any():
                index.put([word[chosen] for word in key], numbers[::-1][chosen])

    def _numbers(self, records: Array) -> Array:
        looked = 0
        numbers = np.zeros(len(records), np.uint32)
        identities = zip(*(records[name].tolist() for name in ("pid", "cgroup", "name")), strict=True)
        for row, identity in enumerate(identities):
            number = self._known.get(identity)
            if number is None:
                number = self._learn(identity, look=looked < INSPECTED_PER_BATCH)
                looked += 1
            else:
                self._known.move_to_end(identity)
            numbers[row] = number
        return numbers

    def _learn(self, identity: tuple[int, int, bytes], *, look: bool) -> int:
        pid, cgroup, raw = identity
        name = raw.decode("utf-8", "replace")
        number = self._dictionary.intern(self._inspect(pid, name, cgroup) if look else ProcessRef(pid, name))
        self._dictionary.retain(np.array([number]))
        self._known[identity] = number
        while len(self._known) > KEPT:
            _, oldest = self._known.popitem(last=False)
            self._dictionary.release(np.array([oldest]))
        return number

    def find(self, endpoints: Array, ports: Array, protocols: Array) -> Array:
        """Numbers of the processes that have these ports (host order) of these endpoints."""
        key = _key(endpoints, ports, protocols)
        numbers, missing = self._clients.find(key)
        if len(missing):
            numbers = numbers.copy()
            numbers[missing] = self._servers.find([word[missing] for word in key])[0]
        return numbers


def _key(endpoints: Array, ports: Array, protocols: Array) -> list[Array]:
    return [endpoints.astype(np.uint64), ports.astype(np.uint64) << np.uint64(8) | protocols.astype(np.uint64)]
