"""The condition `Valid` of policy objects, written back so that whoever applied a policy sees what became of it.

Every node comes to the same answer, so there is no leader: a node waits a random while and then writes only what the
watch has not shown to be there already. A write names the version that it saw; when the object moved on, the write is
refused and the newer version is looked at first.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from services.common.errors import CiliateError, Conflict, NotFound
from services.common.log import get_logger
from services.common.retry import Backoff
from services.model.objects import ObjectKey

VALID = "Valid"
MAX_MESSAGE = 4096
ATTEMPTS = 5
"""Of one write while others write the same object; afterwards it waits for the next change or round."""
SETTLE_SECONDS = 3.0
"""A change is written up to this much later: by then another node has usually done it."""

Condition = Mapping[str, Any]


class Verdict(Protocol):
    """What became of a policy document."""

    @property
    def key(self) -> ObjectKey: ...

    @property
    def in_force(self) -> bool: ...

    @property
    def problems(self) -> Sequence[object]: ...

    @property
    def warnings(self) -> Sequence[object]: ...

    @property
    def conflicts(self) -> Sequence[object]: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """What an object's status said when it was last seen."""

    version: str
    conditions: tuple[Condition, ...] = ()

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Seen:
        """Out of an object; a status that is no status counts as none."""
        status, metadata = document.get("status"), document.get("metadata")
        found = status.get("conditions") if isinstance(status, Mapping) else None
        version = metadata.get("resourceVersion") if isinstance(metadata, Mapping) else None
        conditions = tuple(each for each in found if isinstance(each, Mapping)) if isinstance(found, list) else ()
        return cls(str(version or ""), conditions)

    @property
    def valid(self) -> Condition | None:
        """The condition that is ours."""
        return next((each for each in self.conditions if each.get("type") == VALID), None)


class Patcher(Protocol):
    """The API server, as far as it is needed here."""

    async def list(self, path: str, query: Mapping[str, str]) -> dict[str, Any]: ...

    async def patch(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]: ...


class Watched(Protocol):
    """A source of policies that keeps what their statuses said."""

    @property
    def seen(self) -> Mapping[ObjectKey, Seen]: ...

    def path_of(self, key: ObjectKey) -> str: ...


def wanted(verdict: Verdict) -> dict[str, str]:
    """The condition that a policy should have, without its time.

    `Valid` is about the document: one that conflicts with another is valid, and its reason says that where both select
    an endpoint neither can be computed.
    """
    if not verdict.problems and verdict.conflicts:
        conflicts = "; ".join(str(each) for each in verdict.conflicts)
        return _condition(
            "True", "Conflict", f"accepted, but endpoints that both select keep what they had: {conflicts}"
        )
    if not verdict.problems:
        warnings = "; ".join(str(each) for each in verdict.warnings)
        message = f"accepted, with warnings: {warnings}" if warnings else "Policy validation succeeded"
        return _condition("True", "Warnings" if warnings else "Accepted", message)
    problems = "; ".join(str(each) for each in verdict.problems)
    rest = " (the last accepted version stays in force)" if verdict.in_force else " (nothing of it is in force)"
    return _condition("False", "Rejected", problems[: MAX_MESSAGE - len(rest)] + rest)


def _condition(status: str, reason: str, message: str) -> dict[str, str]:
    return {"type": VALID, "status": status, "reason": reason, "message": message[:MAX_MESSAGE]}


def differs(seen: Seen, condition: Mapping[str, str]) -> bool:
    """Whether the object does not say this yet."""
    return seen.valid is None or any(seen.valid.get(name) != text for name, text in condition.items())


def patch_of(seen: Seen, condition: Mapping[str, str], now: datetime) -> dict[str, Any]:
    """A merge patch for the status; other writers' conditions stay, and the time changes only with the status."""
    before = seen.valid
    same = before is not None and before.get("status") == condition["status"]
    since = before.get("lastTransitionTime") if before is not None and same else None
    ours = {**condition, "lastTransitionTime": since or now.strftime("%Y-%m-%dT%H:%M:%SZ")}
    others = [dict(each) for each in seen.conditions if each.get("type") != VALID]
    return {"metadata": {"resourceVersion": seen.version}, "status": {"conditions": [*others, ours]}}


class StatusWriter:
    """`verdicts` is asked after each `changed()`. Failures are kept in `errors` and tried again later."""

    def __init__(
        self,
        client: Patcher,
        sources: Sequence[Watched],
        verdicts: Callable[[], Iterable[Verdict]],
        settle: float = SETTLE_SECONDS,
        backoff: Backoff | None = None,
    ) -> None:
        self._client, self._sources, self._verdicts, self._settle = client, sources, verdicts, settle
        self._backoff = backoff or Backoff(initial=1.0, maximum=60.0)
        self._moved = asyncio.Event()
        self._log = get_logger("policy.status")
        self.errors: dict[str, str] = {}
        self.written = 0

    def metrics(self) -> Iterator[Metric]:
        """For Prometheus."""
        yield CounterMetricFamily(
            "ciliate_policy_status_written", "Conditions of policy objects written by this node", value=self.written
        )
        yield GaugeMetricFamily(
            "ciliate_policy_status_failing",
            "Policy objects whose condition could not be written",
            value=len(self.errors),
        )

    def changed(self) -> None:
        """Policies may have changed."""
        self._moved.set()

    async def run(self) -> None:
        """Write what is missing, for ever."""
        while True:
            await self._moved.wait()
            await asyncio.sleep(self._settle * random.random())
            self._moved.clear()
            await self.write()
            if self.errors:
                self._moved.set()
                await self._backoff.wait()
            else:
                self._backoff.reset()

    async def write(self) -> None:
        """One round over all policies."""
        self.errors = {}
        for verdict in list(self._verdicts()):
            for source in self._sources:
                seen = source.seen.get(verdict.key)
                if seen is not None and differs(seen, wanted(verdict)):
                    await self._write(source.path_of(verdict.key), seen, verdict)

    async def _write(self, path: str, seen: Seen, verdict: Verdict) -> None:
        condition = wanted(verdict)
        try:
            for _ in range(ATTEMPTS):
                try:
                    await self._client.patch(f"{path}/status", patch_of(seen, condition, datetime.now(UTC)))
                except Conflict:
                    seen = Seen.of(await self._client.list(path, {}))
                    if not differs(seen, condition):
                        return
                else:
                    self.written += 1
                    return
            self.errors[str(verdict.key)] = "others keep changing the object; trying again"
        except NotFound:
            return  # deleted meanwhile
        except CiliateError as error:
            self.errors[str(verdict.key)] = str(error)
            self._log.warning("policy status not written", policy=str(verdict.key), problem=str(error))
