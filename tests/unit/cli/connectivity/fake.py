"""A cluster in memory for the suite: pods have addresses, and `network` says what comes of a command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from services.cli.connectivity.cluster import Document, Facts, Node, Place, World

NODES = (Node("one", ("172.30.0.1", "fd00:172:30::1")), Node("two", ("172.30.0.2", "fd00:172:30::2")))
Network = Callable[[Place, Sequence[str]], tuple[int, str, str]]


class FakeCluster:
    """Objects are kept; nothing is carried but by `network`."""

    def __init__(self, network: Network, facts: Facts | None = None) -> None:
        world = World(("203.0.113.10",), ("api.test", "other.test"), tells=True)
        self.facts = facts or Facts(NODES, world, 18080, frozenset({"pod", "node", "outside"}))
        self.network, self.objects = network, {}
        self.asked = asyncio.Event()
        self.applied: list[Document] = []
        self.objects: dict[tuple[str, str, str], Document]

    async def __aenter__(self) -> Facts:
        return self.facts

    async def __aexit__(self, *problem: object) -> None:
        pass

    async def apply(self, documents: Sequence[Document]) -> None:
        for document in documents:
            self.applied.append(document)
            key = (document["kind"], document["metadata"].get("namespace", ""), document["metadata"]["name"])
            self.objects[key] = self._with_status(document)

    def _with_status(self, document: Document) -> Document:
        number = len(self.objects) + 1
        if document["kind"] == "Pod":
            ips = [{"ip": f"10.0.0.{number}"}, {"ip": f"fd00::{number:x}"}]
            return {**document, "status": {"podIPs": ips}}
        if document["kind"] == "Service":
            ports = [{**port, "nodePort": 30000 + number + i} for i, port in enumerate(document["spec"]["ports"])]
            addresses: dict[str, Any] = {"ports": ports, "clusterIPs": [f"10.96.0.{number}"]}
            return {**document, "spec": {**document["spec"], **addresses}}
        return document

    async def delete(self, documents: Sequence[Document]) -> None:
        for document in documents:
            name = document["metadata"]["name"]
            gone = (document["kind"], document["metadata"].get("namespace", ""), name)
            self.objects = {
                key: each
                for key, each in self.objects.items()
                if key != gone and not (document["kind"] == "Namespace" and key[1] == name)
            }

    async def wait_ready(self, namespaces: Sequence[str], seconds: float) -> None:
        assert {key[1] for key in self.objects if key[0] == "Pod"} == set(namespaces)

    async def get(self, kind: str, namespace: str = "") -> Sequence[Document]:
        return [each for key, each in self.objects.items() if key[0] == kind and namespace in ("", key[1])]

    async def run(self, place: Place, command: Sequence[str], seconds: float) -> tuple[int, str, str]:
        self.asked.set()
        await asyncio.sleep(0)
        return self.network(place, command)
