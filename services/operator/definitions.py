"""The kinds that we define: installed where they are missing, brought up to date where they are ours and older.

A definition that somebody else installed (Cilium's own) is left alone: its schema knows at least as much. One of a
newer revision is left alone, too: an operator that is rolled back must not take fields away from objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, Protocol

import yaml

from services.common.errors import CiliateError, NotFound, Unavailable
from services.common.kube.resources import DEFINITIONS
from services.common.log import get_logger
from services.operator.writes import Write

REVISION = "ciliate.io/definition-revision"

Document = Mapping[str, Any]
log = get_logger("definitions")


def shipped() -> list[dict[str, Any]]:
    """All definitions of this version."""
    folder = resources.files("services.operator") / "definitions"
    files = sorted((each for each in folder.iterdir() if each.name.endswith(".yaml")), key=lambda each: each.name)
    return [yaml.safe_load(each.read_text(encoding="utf-8")) for each in files]


def plan(wanted: Document, present: Document | None) -> Write | None:
    """What to write for one definition; None where it is well. Pure."""
    name = wanted["metadata"]["name"]
    if present is None:
        return Write("create", DEFINITIONS, name, document=wanted)
    metadata = present["metadata"]
    revision = _revision(present)
    if revision is None or revision >= (_revision(wanted) or 0):
        return None
    kept = [v for v in (present.get("spec") or {}).get("versions") or () if _stored_only(v, wanted, present)]
    merged = {
        **wanted,
        "metadata": {
            **metadata,
            "labels": {**(metadata.get("labels") or {}), **wanted["metadata"]["labels"]},
            "annotations": {**(metadata.get("annotations") or {}), **wanted["metadata"]["annotations"]},
        },
        "spec": {**wanted["spec"], "versions": [*wanted["spec"]["versions"], *kept]},
    }
    return Write("replace", DEFINITIONS, name, document=merged)


def _stored_only(version: Document, wanted: Document, present: Document) -> bool:
    """Whether objects may be kept in a version that we do not define any more: it must stay listed."""
    names = {each["name"] for each in wanted["spec"]["versions"]}
    stored = (present.get("status") or {}).get("storedVersions") or ()
    return version.get("name") in stored and version.get("name") not in names


def _revision(definition: Document) -> int | None:
    """None: not ours."""
    text = (definition["metadata"].get("annotations") or {}).get(REVISION)
    return int(text) if isinstance(text, str) and text.isdecimal() else None


def established(definition: Document) -> bool:
    """Whether the server serves the kind."""
    conditions = (definition.get("status") or {}).get("conditions") or ()
    return any(each.get("type") == "Established" and each.get("status") == "True" for each in conditions)


class Reader(Protocol):
    """The API server, as far as it is needed here."""

    async def list(self, path: str, query: Mapping[str, str]) -> dict[str, Any]: ...


class Applier(Protocol):
    """Does writes."""

    async def apply(self, writes: list[Write]) -> dict[str, str]: ...


class Installer:
    """Installs what is missing. What cannot be done is in `problems`, by definition."""

    def __init__(self, client: Reader, writer: Applier, wanted: Callable[[], list[dict[str, Any]]] = shipped) -> None:
        self._client, self._writer, self._wanted = client, writer, wanted
        self.problems: dict[str, str] = {}

    async def install(self) -> None:
        """All of them, once; raises `Unavailable` until all that could be written are served."""
        problems: dict[str, str] = {}
        waiting = []
        for definition in self._wanted():
            name = definition["metadata"]["name"]
            try:
                present = await self._get(name)
                write = plan(definition, present)
                if write is not None:
                    problems |= await self._writer.apply([write])
                    log.info("definition written", name=name, write=write.verb)
                    present = await self._get(name)
            except CiliateError as error:
                problems[name] = str(error)
                continue
            if present is not None and not established(present):
                waiting.append(name)
        self.problems = problems
        if waiting:
            raise Unavailable(f"definitions are not served yet: {', '.join(waiting)}")
        if problems:
            raise Unavailable("; ".join(f"{name}: {problem}" for name, problem in sorted(problems.items())))

    async def _get(self, name: str) -> dict[str, Any] | None:
        try:
            return await self._client.list(DEFINITIONS.object_path(name), {})
        except NotFound:
            return None
