"""What the identity service knows, kept up to date by its client, as chores look at things."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from services.client.identities import Identities
from services.client.identity_watch import InSync
from services.common.errors import CiliateError
from services.common.log import get_logger
from services.common.retry import Backoff
from services.model.identity import NumericIdentity
from services.model.objects import IpEntry

WATCHER = "ciliate-operator"
log = get_logger("identities")


class IdentityTable:
    """Identities and the address table. `changed` is called after every change, `synced` set when all was told."""

    def __init__(self, service: Identities) -> None:
        self.service = service
        self._watch = service.watch(WATCHER, self._told)
        self.synced = asyncio.Event()
        self.changed: Callable[[], None] = lambda: None
        self.problem = ""

    @property
    def numbers(self) -> Collection[NumericIdentity]:
        """All cluster identities."""
        return self._watch.identities.keys()

    @property
    def rows(self) -> Collection[IpEntry]:
        """The whole address table."""
        return self._watch.entries.values()

    def labels(self, number: int) -> tuple[str, ...]:
        """An identity's labels as texts; none where it is not known."""
        identity = self._watch.identities.get(NumericIdentity(number))
        return identity.labels.texts() if identity else ()

    async def run(self) -> None:
        """Follow for ever. Our certificate may not be there yet: the operator makes its own."""
        backoff = Backoff(initial=0.5, maximum=15.0)
        while True:
            try:
                async with self.service:
                    async for change in self._watch.changes():
                        if isinstance(change, InSync):
                            self.synced.set()
                        self.changed()
            except CiliateError as error:
                self._told(error)
            await backoff.wait()

    def _told(self, problem: CiliateError | None) -> None:
        text = str(problem or "")
        if text and text != self.problem:
            log.warning("identity service unavailable", problem=text)
        self.problem = text
