"""Leader election by a Lease object, so that two operators never both act.

Nobody's clock is compared with anybody else's: a candidate counts from when *it saw* the lease change, and takes over
when that is a whole lease duration ago. The leader stops `renew_seconds` after it *began* its last successful renewal,
which is earlier by more than a write may take: the last write of one is over before the first of the next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from services.common.errors import CiliateError, Conflict, NotFound, Unavailable
from services.common.kube.resources import LEASES
from services.common.log import get_logger

WRITE_SECONDS = 4.0
"""A write of the leader that takes longer has failed."""

log = get_logger("leader")


class Client(Protocol):
    """The API server, as far as it is needed here."""

    async def list(self, path: str, query: Mapping[str, str]) -> dict[str, Any]: ...

    async def create(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]: ...

    async def replace(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. A lease that was not renewed for `lease` may be taken; the leader gives up after `renew` without
    success and tries every `retry`."""

    lease: float = 15.0
    renew: float = 10.0
    retry: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.retry < self.renew < self.lease:
            raise ValueError("leader election: retry must be less than renew, and that less than lease")


class Observed:
    """What a candidate knows of the lease. Pure: time is an argument."""

    def __init__(self, me: str, timing: Timing) -> None:
        self._me, self._timing = me, timing
        self._seen: tuple[Any, ...] | None = None
        self._since = 0.0
        self.holder = ""
        self._duration = timing.lease

    def observe(self, lease: Mapping[str, Any] | None, now: float) -> None:
        """Look at the lease; whatever changed in it starts its time anew."""
        spec = (lease or {}).get("spec")
        spec = spec if isinstance(spec, Mapping) else {}
        seen = (spec.get("holderIdentity"), spec.get("renewTime"), spec.get("acquireTime"))
        if seen != self._seen:
            self._seen, self._since = seen, now
        self.holder = str(spec.get("holderIdentity") or "")
        seconds = spec.get("leaseDurationSeconds")
        valid = isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and seconds > 0
        self._duration = float(seconds) if valid and seconds is not None else self._timing.lease

    def may_take(self, now: float) -> bool:
        """Nobody has it, or its holder was silent for the whole duration."""
        return self.holder in ("", self._me) or now - self._since >= self._duration


class Leader:
    """Acquires the lease, runs what a leader does, and stops it when the lease cannot be kept."""

    def __init__(self, client: Client, namespace: str, name: str, identity: str, timing: Timing | None = None) -> None:
        self._client, self._identity, self._timing = client, identity, timing or Timing()
        self._collection = LEASES.collection_path(namespace)
        self._path = LEASES.object_path(name, namespace)
        self._name, self._namespace = name, namespace
        self._observed = Observed(identity, self._timing)
        self._clock: Callable[[], float] = time.monotonic
        self._until = 0.0
        self.problem = ""
        self.changes = 0
        """How often this process became leader."""

    @property
    def leading(self) -> bool:
        """May act now."""
        return self._clock() < self._until

    @property
    def holder(self) -> str:
        """Who had the lease when it was last looked at."""
        return self._observed.holder

    def require(self) -> None:
        """Raises `Unavailable` when this process may not write any more."""
        if not self.leading:
            raise Unavailable("this operator is not the leader any more")

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """For ever: wait for the lease, lead while it is kept. What `lead` raises ends it."""
        self._clock = asyncio.get_running_loop().time  # which probes may ask from other threads
        try:
            while True:
                await self._attempt()
                if self.leading:
                    self.changes += 1
                    log.info("leading", identity=self._identity)
                    await self._reign(lead)
                    log.warning("not the leader any more", holder=self.holder, problem=self.problem)
                await asyncio.sleep(self._timing.retry)
        finally:
            await self._resign()

    async def _reign(self, lead: Callable[[], Awaitable[None]]) -> None:
        work = asyncio.ensure_future(lead())
        try:
            while self.leading and not work.done():
                await asyncio.wait([work], timeout=self._timing.retry)
                if not work.done():
                    await self._attempt()
            if work.done():
                work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _attempt(self) -> None:
        """Take or renew the lease if that is possible."""
        began = self._clock()
        try:
            async with asyncio.timeout(self._until - began if self.leading else self._timing.renew):
                await self._take(began)
            self.problem = ""
        except (CiliateError, TimeoutError) as error:
            self.problem = str(error) or "no answer"
            log.debug("lease not taken", problem=self.problem)

    async def _take(self, began: float) -> None:
        try:
            lease = await self._client.list(self._path, {})
        except NotFound:
            lease = None
        self._observed.observe(lease, self._clock())
        if lease is None:
            metadata = {"name": self._name, "namespace": self._namespace}
            document = {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata}
            await self._client.create(self._collection, document | {"spec": self._spec({}, held=True)})
        elif not self._observed.may_take(self._clock()):
            self._until = 0.0  # somebody else has it
            return
        else:
            # Naming the version that was looked at: of two who try, one is refused.
            await self._client.replace(self._path, {**lease, "spec": self._spec(lease.get("spec") or {}, held=True)})
        self._until = began + self._timing.renew
        self._observed.holder = self._identity

    async def _resign(self) -> None:
        """Let the next one take over at once."""
        if not self.leading:
            return
        self._until = 0.0
        try:
            async with asyncio.timeout(1.0):
                lease = await self._client.list(self._path, {})
                spec = lease.get("spec") or {}
                if spec.get("holderIdentity") == self._identity:
                    await self._client.replace(self._path, {**lease, "spec": self._spec(spec, held=False)})
        except (CiliateError, Conflict, TimeoutError) as error:
            log.info("lease not given back; it will run out", problem=str(error))

    def _spec(self, before: Mapping[str, Any], *, held: bool) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        kept = before.get("holderIdentity") == self._identity
        transitions = before.get("leaseTransitions")
        count = transitions if isinstance(transitions, int) else 0
        return {
            "holderIdentity": self._identity if held else "",
            "leaseDurationSeconds": max(1, round(self._timing.lease)) if held else 1,
            "acquireTime": before.get("acquireTime") or now if kept else now,
            "renewTime": now,
            "leaseTransitions": count if kept or not before else count + 1,
        }
