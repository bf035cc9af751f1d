"""This node's references to identities: one per label set in use, however many endpoints use it.

A claim names the moment at which a reference was made. A release is of one claim, so it never undoes a later one,
however late it arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from services.client.identities import Claim
from services.common.errors import CiliateError, Exhausted, Unavailable
from services.common.log import get_logger
from services.common.retry import Backoff
from services.model.identity import Identity, NumericIdentity
from services.model.labels import Labels


class Allocator(Protocol):
    """The identity service, as far as references go."""

    async def allocate(self, labels: Labels) -> Claim: ...

    async def release(self, identity: NumericIdentity, claim: int) -> bool: ...

    async def references(self) -> Mapping[NumericIdentity, int]: ...


@dataclass(slots=True)
class _Reference:
    users: int = 0
    """Who has the identity, and who waits for it."""
    claim: Claim | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class IdentityReferences:
    """Counts users per label set; the first one allocates, the last one releases."""

    def __init__(self, allocator: Allocator) -> None:
        self._allocator = allocator
        self._references: dict[Labels, _Reference] = {}
        self._unreleased: dict[NumericIdentity, int] = {}
        """Identities that nobody here uses any more -> the claim to give back."""
        self.abandoned: set[NumericIdentity] = set()
        """Identities that were used and whose claim is not known here; `LeakCheck` gives them back."""
        self.reclaimed = 0
        """References that nothing here explained, given back."""
        self._stale = True  # adopted references are from before the restart
        self._wake = asyncio.Event()
        self._told = ""
        self._log = get_logger("endpoint.references")

    def adopt(self, identity: Identity) -> None:
        """Count a user of an identity that was allocated before a restart; `run` makes sure that it still is."""
        reference = self._references.setdefault(identity.labels, _Reference())
        reference.users += 1
        reference.claim = Claim(identity, 0)

    def abandon(self, identity: NumericIdentity) -> None:
        """An endpoint of an earlier run is gone: give its reference back, unless somebody here uses the identity."""
        self.abandoned.add(identity)

    async def acquire(self, labels: Labels) -> Identity:
        """The identity of a label set, with one user more; raises what the allocator raises."""
        reference = self._references.setdefault(labels, _Reference())
        reference.users += 1
        try:
            async with reference.lock:
                if reference.claim is None:
                    reference.claim = await self._allocator.allocate(labels)
                return reference.claim.identity
        except BaseException:
            self._leave(labels, reference)
            raise

    async def release(self, labels: Labels) -> None:
        """One user less. When the service is away the reference is given back later."""
        reference = self._references.get(labels)
        if reference is None:
            return
        async with reference.lock:
            self._leave(labels, reference)
            if reference.users == 0 and reference.claim is not None and reference.claim.number:
                await self._give_back(reference.claim.identity.id, reference.claim.number)

    async def in_use(self) -> set[NumericIdentity]:
        """Identities that are used here, once every claim that has begun by now is answered."""
        for reference in tuple(self._references.values()):
            async with reference.lock:
                pass
        return {reference.claim.identity.id for reference in self._references.values() if reference.claim}

    def lapse(self) -> None:
        """The service forgot this node's references: make them all again."""
        self._stale = True
        self._wake.set()

    async def run(self, changed: asyncio.Queue[Identity]) -> None:
        """Keep references in step with the service; an identity that got another number goes to `changed`."""
        backoff = Backoff(initial=0.2, maximum=5.0)
        while True:
            if not (self._stale or self._unreleased):
                await self._wake.wait()
            self._wake.clear()
            try:
                await self.settle(changed)
                backoff.reset()
                self._told = ""
            except CiliateError as error:
                if self._told != str(error):
                    self._log.warning("references are not made again yet", problem=str(error))
                self._told, self._stale = str(error), True
            if self._stale or self._unreleased:
                await backoff.wait()

    async def settle(self, changed: asyncio.Queue[Identity]) -> None:
        """Make again what the service may have forgotten, and give back what is owed: what `run` does, once."""
        if self._stale:
            self._stale = False
            await self._renew(changed)
        for number, claim in tuple(self._unreleased.items()):
            await self._give_back(number, claim)

    async def _renew(self, changed: asyncio.Queue[Identity]) -> None:
        for labels, reference in tuple(self._references.items()):
            async with reference.lock:
                known = reference.claim
                if known is None or not reference.users:
                    continue
                reference.claim = claim = await self._allocator.allocate(labels)
                if not reference.users:  # everybody left meanwhile
                    self._put_off(claim)
                elif claim.identity.id != known.identity.id:
                    old, new = known.identity.id, claim.identity.id
                    self._log.warning("identity got another number", old=old, new=new)
                    changed.put_nowait(claim.identity)

    def _leave(self, labels: Labels, reference: _Reference) -> None:
        reference.users -= 1
        if reference.users == 0:
            if self._references.get(labels) is reference:
                del self._references[labels]
            if reference.claim is not None:
                self._put_off(reference.claim)

    def _put_off(self, claim: Claim) -> None:
        if claim.number:
            self._unreleased[claim.identity.id] = claim.number
            self._wake.set()
        else:
            self.abandoned.add(claim.identity.id)

    async def _give_back(self, number: NumericIdentity, claim: int) -> None:
        """As long as it is not certain that the service has heard of it, it stays to be given back."""
        if any(each.claim and each.claim.identity.id == number for each in self._references.values()):
            self._done(number, claim)  # somebody wanted the same labels again
            return
        try:
            await self._allocator.release(number, claim)
        except (Unavailable, Exhausted):
            self._log.warning("reference is given back later", identity=number)
            return
        except CiliateError as error:
            self._log.info("reference was gone already", identity=number, problem=str(error))
        self._done(number, claim)

    def _done(self, number: NumericIdentity, claim: int) -> None:
        if self._unreleased.get(number) == claim:
            del self._unreleased[number]
