"""References that this node holds and nothing here explains, given back: what a crash or a lost answer left behind.

Two phases. A reference is given back when at two looks in a row it was the same claim and neither an endpoint nor an
address row used its identity; and the service drops it only if it still is that claim. A pod that starts meanwhile
claims anew, so it keeps the identity whatever comes first.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Mapping

from services.agent.endpoints.references import Allocator, IdentityReferences
from services.agent.endpoints.registrar import Registrar
from services.common.errors import CiliateError
from services.common.log import get_logger
from services.model.identity import NumericIdentity

_SPREAD = 0.2
"""Of the time between looks, so that a cluster's agents do not all look at once."""
_FIRST_LOOK_SECONDS = 5.0


class Unexplained:
    """What was unexplained at the last look. Pure."""

    def __init__(self) -> None:
        self._seen: dict[NumericIdentity, int] = {}

    def due(
        self,
        held: Mapping[NumericIdentity, int],
        used: Collection[NumericIdentity],
        known_unused: Collection[NumericIdentity] = (),
    ) -> dict[NumericIdentity, int]:
        """Identity -> claim to give back: unexplained twice in a row, or once where it is known that nobody uses it."""
        now = {number: claim for number, claim in held.items() if number not in used}
        due = {n: claim for n, claim in now.items() if n in known_unused or self._seen.get(n) == claim}
        self._seen = now
        return due


class LeakCheck:
    """Looks every `seconds`."""

    def __init__(
        self, references: IdentityReferences, allocator: Allocator, registrar: Registrar, seconds: float
    ) -> None:
        self._references, self._allocator, self._registrar = references, allocator, registrar
        self._seconds = seconds
        self._unexplained = Unexplained()
        self._log = get_logger("endpoint.leaks")

    async def run(self, complete: asyncio.Event | None = None) -> None:
        """For ever, once `complete` says that every pod which is there is known here."""
        if complete is not None:
            await complete.wait()
        pause = min(_FIRST_LOOK_SECONDS, self._seconds)
        while True:
            await asyncio.sleep(pause * random.uniform(1 - _SPREAD, 1 + _SPREAD))
            pause = self._seconds
            try:
                await self.look()
            except CiliateError as error:
                self._log.debug("leaks are looked for later", problem=str(error))

    async def look(self) -> None:
        """Compare once, and give back what is due."""
        abandoned = self._references.abandoned
        held = await self._allocator.references()
        # What was claimed before the service answered is in use by now, or known not to be; what is claimed later is
        # another claim than the one in the answer.
        in_use = await self._references.in_use()
        abandoned &= held.keys() - in_use
        for number, claim in self._unexplained.due(held, in_use | self._registrar.named, abandoned).items():
            if await self._allocator.release(number, claim):
                self._references.reclaimed += 1
                self._log.warning("a reference that nothing here uses was given back", identity=number)
