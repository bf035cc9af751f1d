"""Carries out what `tidying` finds, through the identity service's own two-phase collection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from services.common.errors import CiliateError, NotFound
from services.common.log import get_logger
from services.operator.identities import IdentityTable
from services.operator.tidying import Lasting, leaks, strangers, unused
from services.operator.writes import Gate

MAX_SUSPECTS = 200
"""Identities asked about in one round: each is a call."""
log = get_logger("tidier")


class Tidier:
    """One round per `interval`. `nodes` are the names that the API server has, None until they are known."""

    def __init__(
        self,
        table: IdentityTable,
        nodes: Callable[[], Collection[str] | None],
        gate: Gate,
        node_seconds: float,
        leak_seconds: float,
    ) -> None:
        self._table, self._nodes, self._gate = table, nodes, gate
        self._strange: Lasting[str] = Lasting(node_seconds)
        self._unused: Lasting[int] = Lasting(leak_seconds)
        self._interval = min(30.0, max(0.05, min(node_seconds, leak_seconds) / 4))
        self._told: set[tuple[int, str]] = set()
        self.leaked: list[tuple[int, str]] = []
        """(identity, node) of references that no pod explains."""
        self.forgotten = 0
        self.collected = 0
        self.problem = ""

    async def run(self) -> None:
        """For ever."""
        await self._table.synced.wait()
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.round(asyncio.get_running_loop().time())
                self.problem = ""
            except CiliateError as error:
                self.problem = str(error)
                log.warning("tidying put off", problem=self.problem)

    async def round(self, now: float) -> None:
        """Look once, and do what is due."""
        nodes = self._nodes()
        if nodes is None or self._table.problem:
            return  # half of the picture is no picture
        gone = self._strange.due(strangers(self._table.rows, nodes), now)
        suspects = sorted(self._unused.due(unused(self._table.numbers, self._table.rows), now))[:MAX_SUSPECTS]
        references = {number: await self._references(number) for number in suspects}
        leaked_by, self.leaked = leaks(references, nodes)
        for number, node in set(self.leaked) - self._told:
            log.warning("a reference that no pod explains", identity=number, node=node)
        self._told = set(self.leaked)
        for node in sorted(gone | leaked_by):
            self._gate.require()
            await self._table.service.forget_node(node)
            self.forgotten += 1
            log.info("node forgotten: it has no Node object", node=node)
        if suspects or gone:
            self._gate.require()
            self.collected += await self._table.service.collect()

    async def _references(self, number: int) -> Collection[str]:
        try:
            return (await self._table.service.get(number)).nodes
        except NotFound:
            return ()  # collected meanwhile
