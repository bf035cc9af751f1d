"""This node's pod ranges out of the API: `spec.podCIDRs` of its Node, or `spec.ipam.pools` of its CiliateNode.

What was told last is kept on disk: an agent that restarts while the API server is away goes on with it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from services.agent.sources.fields import FieldError, Node
from services.common.kube.reflector import Change, Client, Page, Reflector
from services.common.kube.resources import CILIATE_NODES, NODES
from services.common.log import get_logger
from services.common.retry import Backoff
from services.model.addresses import IPNetwork

Ranges = Mapping[str, tuple[IPNetwork, ...]]
"""Pool -> ranges; '' is the pool of pods that name none."""
log = get_logger("source.node-ranges")
TELL_SECONDS = 10.0


def of_node(document: Mapping[str, Any]) -> Ranges:
    """Out of a Node; raises `FieldError`."""
    spec = Node(document).get("spec")
    found = list(spec.get("podCIDRs").items())
    if not found and spec.get("podCIDR").value:
        found = [spec.get("podCIDR")]
    return {"": tuple(each.network() for each in found)}


def of_ciliate_node(document: Mapping[str, Any], default: str) -> Ranges:
    """Out of a CiliateNode; raises `FieldError`."""
    found: dict[str, tuple[IPNetwork, ...]] = {"": ()}
    for entry in Node(document).at("spec", "ipam", "pools").items():
        name = entry.get("pool").text()
        networks = tuple(each.network() for each in entry.get("cidrs").items())
        found["" if name == default else name] = networks
    return found


class NodeRanges:
    """Follows one object. `current` is what it says, or said before a restart."""

    def __init__(
        self,
        client: Client,
        node: str,
        mode: Literal["kubernetes", "cluster-pool"],
        default_pool: str,
        kept: Path,
        backoff: Backoff | None = None,
    ) -> None:
        self._mode, self._default, self._kept = mode, default_pool, kept
        resource = replace(NODES if mode == "kubernetes" else CILIATE_NODES, field_selector=f"metadata.name={node}")
        self._resource, self._reflector = resource, Reflector(client, resource, backoff)
        self.current: Ranges = self._recall()
        self.problem = ""

    async def changes(self) -> AsyncIterator[Ranges]:
        """What the object says, each time that it says something else. An object that is gone, or says nothing, takes
        nothing away: pods hold addresses, and another node is given them only after this one is gone."""
        async for event in self._reflector.events():
            documents = event.items if isinstance(event, Page) else ()
            if isinstance(event, Change) and event.type != "DELETED":
                documents = (event.document,)
            for document in documents:
                if self._take(document):
                    yield self.current

    async def first(self) -> Ranges:
        """Ranges to begin with; waits for them, and says that it does."""
        if self.current.get(""):
            return self.current
        reading = asyncio.ensure_future(self._wait())
        while not (await asyncio.wait([reading], timeout=TELL_SECONDS))[0]:
            problem = self.problem or self._reflector.problem or "it names none yet"
            log.warning("waiting for this node's pod ranges", kind=self._resource.kind, problem=problem)
        return reading.result()

    async def _wait(self) -> Ranges:
        async for ranges in self.changes():
            if ranges.get(""):
                return ranges
        raise AssertionError("endless")

    def _take(self, document: Mapping[str, Any]) -> bool:
        try:
            told = of_node(document) if self._mode == "kubernetes" else of_ciliate_node(document, self._default)
        except FieldError as error:
            self.problem = str(error)
            log.warning("pod ranges refused", problem=self.problem)
            return False
        self.problem = ""
        if not any(told.values()) or told == self.current:
            return False
        self.current = told
        self._keep()
        return True

    def _keep(self) -> None:
        document = {name: [str(network) for network in found] for name, found in self.current.items()}
        try:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._kept.with_suffix(".tmp")
            temporary.write_text(json.dumps(document), encoding="utf-8")
            temporary.replace(self._kept)
        except OSError as error:
            log.warning("pod ranges not kept", path=str(self._kept), problem=error.strerror)

    def _recall(self) -> Ranges:
        try:
            document = json.loads(self._kept.read_text(encoding="utf-8"))
            return {name: tuple(each.network() for each in Node(found).items()) for name, found in document.items()}
        except (OSError, ValueError, FieldError, AttributeError):
            return {"": ()}
