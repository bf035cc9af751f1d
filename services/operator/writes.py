"""What a chore wants done, as values; and the one place where that is done, while this process is the leader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from services.common.errors import CiliateError, Conflict, NotFound
from services.common.kube.resources import Resource
from services.common.log import get_logger

log = get_logger("writes")

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Write:
    """One change of one object. `replace` and `patch` should name the version that they were computed from."""

    verb: Literal["create", "replace", "patch", "delete"]
    resource: Resource
    name: str
    namespace: str = ""
    document: Document | None = None
    subresource: Literal["", "status", "approval"] = ""
    """A part of the object that is written on its own."""

    def __str__(self) -> str:
        name = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.verb} {self.resource.kind} {name}{f' {self.subresource}' if self.subresource else ''}"


class Client(Protocol):
    """The API server, as far as it is needed here."""

    async def create(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]: ...

    async def replace(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]: ...

    async def patch(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]: ...

    async def delete(self, path: str) -> None: ...


class Gate(Protocol):
    """Whether this process may write."""

    def require(self) -> None: ...


class Learner(Protocol):
    """Hears what a write made of an object, before the watch tells it."""

    @property
    def resource(self) -> Resource: ...

    def learn(self, document: dict[str, Any]) -> None: ...


class Writer:
    """Does writes one after the other. `failures` is what the last round could not do, by object."""

    def __init__(self, client: Client, gate: Gate) -> None:
        self._client, self._gate = client, gate
        self.done: dict[str, int] = {}

    async def apply(self, writes: Iterable[Write], learners: Iterable[Learner] = ()) -> dict[str, str]:
        """All of them; what failed, by write. A conflict is no failure: the newer version is on its way here, and with
        it another plan. Raises `Unavailable` when this process stopped being the leader."""
        by_resource = {learner.resource: learner for learner in learners}
        failures: dict[str, str] = {}
        for write in writes:
            self._gate.require()
            try:
                answer = await self._one(write)
            except (Conflict, NotFound) as error:
                log.debug("overtaken", write=str(write), reason=str(error))
                continue
            except CiliateError as error:
                failures[str(write)] = str(error)
                log.warning("not written", write=str(write), problem=str(error))
                continue
            kind = f"{write.verb} {write.resource.kind}"
            self.done[kind] = self.done.get(kind, 0) + 1
            learner = by_resource.get(write.resource)
            if learner is not None and answer is not None:
                learner.learn(answer)
        return failures

    async def _one(self, write: Write) -> dict[str, Any] | None:
        path = write.resource.object_path(write.name, write.namespace) + (
            f"/{write.subresource}" if write.subresource else ""
        )
        match write.verb:
            case "create":
                return await self._client.create(write.resource.collection_path(write.namespace), write.document or {})
            case "replace":
                return await self._client.replace(path, write.document or {})
            case "patch":
                return await self._client.patch(path, write.document or {})
            case "delete":
                await self._client.delete(path)
        return None
