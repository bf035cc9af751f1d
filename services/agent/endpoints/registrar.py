"""This node's rows in the cluster's address table: desired against actual, until they agree.

Desired = the addresses of the endpoints. Actual = the rows of this node as the identity service's stream tells them.
The same loop serves a new pod, a restart (rows of pods that went away meanwhile) and a lease that was lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Protocol

from services.common.errors import CiliateError
from services.common.log import get_logger
from services.common.retry import Backoff
from services.model.addresses import IPNetwork
from services.model.identity import NumericIdentity
from services.model.objects import IpDeleted, IpEntry, IpUpserted, Synced, Update

PARALLEL = 32


class AddressTable(Protocol):
    """The identity service, as far as addresses go."""

    async def register(self, entry: IpEntry) -> None: ...

    async def deregister(self, prefix: IPNetwork) -> None: ...


class Registrar:
    """Registers and deregisters in the background; `settled` waits for it."""

    def __init__(self, table: AddressTable, node: str) -> None:
        self._table, self._node = table, node
        self._desired: dict[IPNetwork, IpEntry] = {}
        self._actual: dict[IPNetwork, IpEntry] = {}
        self._removed: set[IPNetwork] = set()
        self._touched: set[IPNetwork] = set()
        """Prefixes that may be wrong: only these are looked at."""
        self._swept = False
        self._dirty = asyncio.Event()
        self._settled = asyncio.Condition()
        self._errors: dict[str, str] = {}
        self._log = get_logger("endpoint.registrar")

    @property
    def errors(self) -> Mapping[str, str]:
        """Prefix -> why it is not registered."""
        return self._errors

    @property
    def named(self) -> set[NumericIdentity]:
        """Identities that rows of this node name, or should."""
        return {entry.identity for table in (self._actual, self._desired) for entry in table.values()}

    def put(self, entries: Iterable[IpEntry]) -> None:
        """These rows should be there."""
        for entry in entries:
            self._desired[entry.prefix] = entry
            self._touched.add(entry.prefix)
        self._dirty.set()

    def remove(self, prefixes: Iterable[IPNetwork]) -> None:
        """These rows should not be there."""
        for prefix in prefixes:
            self._desired.pop(prefix, None)
            self._removed.add(prefix)
            self._touched.add(prefix)
        self._dirty.set()

    def lapse(self) -> None:
        """The service forgot this node's rows."""
        self._actual.clear()
        self._touched |= self._desired.keys()
        self._dirty.set()

    def observe(self, update: Update) -> None:
        """Learn what the service has from its stream."""
        match update:
            case IpUpserted(entry=entry) if entry.node == self._node:
                self._actual[entry.prefix] = entry
                prefix = entry.prefix
            case IpUpserted(entry=entry):
                prefix = entry.prefix
                self._actual.pop(prefix, None)
            case IpDeleted(prefix=prefix):
                self._actual.pop(prefix, None)
            case Synced(source="identities"):
                self._swept = True
                self._touched |= self._desired.keys() | self._actual.keys()
                self._dirty.set()
                return
            case _:
                return
        if self._is_wrong(prefix):
            self._touched.add(prefix)
            self._dirty.set()

    async def settled(self, prefixes: Iterable[IPNetwork], seconds: float) -> bool:
        """Wait until the service has taken these rows; False when it did not in time."""
        wanted = list(prefixes)
        try:
            async with asyncio.timeout(seconds), self._settled:
                await self._settled.wait_for(lambda: all(self._actual.get(p) == self._desired.get(p) for p in wanted))
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Make actual what is desired, for ever."""
        backoff = Backoff(initial=0.2, maximum=5.0)
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            pending = self._pending()
            gate = asyncio.Semaphore(PARALLEL)
            done = await asyncio.gather(*(self._settle(prefix, gate) for prefix in pending))
            async with self._settled:
                self._settled.notify_all()
            if all(done):
                backoff.reset()
            else:
                self._dirty.set()
                await backoff.wait()

    def _pending(self) -> list[IPNetwork]:
        self._touched = {prefix for prefix in self._touched if self._is_wrong(prefix)}
        return list(self._touched)

    def _is_wrong(self, prefix: IPNetwork) -> bool:
        wanted, there = self._desired.get(prefix), self._actual.get(prefix)
        if wanted is not None:
            return there != wanted
        # Before the first complete list "not wanted" might mean "not known yet"; what was removed here is known.
        return there is not None and (self._swept or prefix in self._removed)

    async def _settle(self, prefix: IPNetwork, gate: asyncio.Semaphore) -> bool:
        async with gate:
            entry = self._desired.get(prefix)
            try:
                if entry is not None:
                    await self._table.register(entry)
                    self._actual[prefix] = entry
                else:
                    await self._table.deregister(prefix)
                    self._actual.pop(prefix, None)
                    self._removed.discard(prefix)
            except CiliateError as error:
                if str(prefix) not in self._errors:
                    self._log.warning("address not registered yet", prefix=str(prefix), problem=str(error))
                self._errors[str(prefix)] = str(error)
                return False
            self._errors.pop(str(prefix), None)
            return True
