"""This node's references to identities: one per label set in use, however many endpoints use it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from services.common.errors import CiliateError, Unavailable
from services.common.log import get_logger
from services.common.retry import Backoff
from services.model.identity import Identity, NumericIdentity
from services.model.labels import Labels


class Allocator(Protocol):
    """The identity service, as far as references go."""

    async def allocate(self, labels: Labels) -> Identity: ...

    async def release(self, identity: NumericIdentity) -> None: ...


@dataclass(slots=True)
class _Reference:
    users: int = 0
    identity: Identity | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class IdentityReferences:
    """Counts users per label set; the first one allocates, the last one releases."""

    def __init__(self, allocator: Allocator) -> None:
        self._allocator = allocator
        self._references: dict[Labels, _Reference] = {}
        self._unreleased: set[NumericIdentity] = set()
        self._lapsed = asyncio.Event()
        self._log = get_logger("endpoint.references")

    def adopt(self, identity: Identity) -> None:
        """Count a user of an identity that was allocated before a restart; `run` makes sure that it still is."""
        reference = self._references.setdefault(identity.labels, _Reference())
        reference.users += 1
        reference.identity = identity

    def abandon(self, identity: NumericIdentity) -> None:
        """An endpoint of an earlier run is gone: give its reference back, unless somebody here uses the identity."""
        self._unreleased.add(identity)

    async def acquire(self, labels: Labels) -> Identity:
        """The identity of a label set, with one user more; raises what the allocator raises."""
        reference = self._references.setdefault(labels, _Reference())
        async with reference.lock:
            if reference.identity is None:
                reference.identity = await self._allocator.allocate(labels)
                self._unreleased.discard(reference.identity.id)
            reference.users += 1
            return reference.identity

    async def release(self, labels: Labels) -> None:
        """One user less. When the service is away the reference is given back later."""
        reference = self._references.get(labels)
        if reference is None:
            return
        async with reference.lock:
            reference.users -= 1
            if reference.users > 0 or reference.identity is None:
                return
            identity, reference.identity = reference.identity, None
            # Somebody may wait for the lock: then it finds no identity here and allocates it again.
            self._unreleased.add(identity.id)
            await self._give_back(identity.id)

    def lapse(self) -> None:
        """The service forgot this node's references: make them all again."""
        self._lapsed.set()

    async def run(self, changed: asyncio.Queue[Identity]) -> None:
        """Keep references in step with the service; an identity that got another number goes to `changed`."""
        self._lapsed.set()  # adopted references are from before the restart
        backoff = Backoff(initial=0.2, maximum=5.0)
        while True:
            if not self._unreleased:
                await self._lapsed.wait()
            try:
                if self._lapsed.is_set():
                    self._lapsed.clear()
                    await self._renew(changed)
                for number in tuple(self._unreleased):
                    await self._give_back(number)
                backoff.reset()
            except Unavailable:
                self._lapsed.set()
            if self._unreleased or self._lapsed.is_set():
                await backoff.wait()

    async def _renew(self, changed: asyncio.Queue[Identity]) -> None:
        for labels, reference in tuple(self._references.items()):
            async with reference.lock:
                known = reference.identity
                if known is None:
                    continue
                reference.identity = await self._allocator.allocate(labels)
                if reference.identity.id != known.id:
                    self._log.warning("identity got another number", old=known.id, new=reference.identity.id)
                    changed.put_nowait(reference.identity)

    async def _give_back(self, number: NumericIdentity) -> None:
        if any(reference.identity and reference.identity.id == number for reference in self._references.values()):
            self._unreleased.discard(number)
            return
        try:
            await self._allocator.release(number)
            self._unreleased.discard(number)
        except Unavailable:
            self._log.warning("reference is given back later", identity=number)
            self._lapsed.set()
        except CiliateError as error:
            # The service knows of no such reference: that is what we wanted.
            self._unreleased.discard(number)
            self._log.info("reference was gone already", identity=number, problem=str(error))
