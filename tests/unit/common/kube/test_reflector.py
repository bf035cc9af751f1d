"""List and watch where time and size matter: hours pass in no time, and the server is a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from services.common.errors import CiliateError, Denied, NotFound, Unavailable
from services.common.kube.client import OPENED, Gone
from services.common.kube.reflector import GONE_SECONDS, Begun, Change, Complete, Page, Reflector
from services.common.kube.resources import CILIUM_POLICIES, PODS, Resource
from tests.kube.virtual import run_virtual


def thing(name: str, version: int = 1) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default", "resourceVersion": str(version)}}


class Server:
    """Objects by name; `problem` is what every request fails with."""

    def __init__(self, *names: str) -> None:
        self.objects = {name: thing(name) for name in names}
        self.version = 10
        self.problem: CiliateError | None = None
        self.watch_problem: CiliateError | None = None
        self.lists, self.watches = 0, list[str]()
        self.pages: list[Any] = []
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def put(self, name: str) -> None:
        self.version += 1
        self.objects[name] = thing(name, self.version)
        self._events.put_nowait({"type": "ADDED", "object": self.objects[name]})

    async def list(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        await asyncio.sleep(0.01)
        self.lists += 1
        if self.problem:
            raise self.problem
        if self.pages:
            page = self.pages.pop(0)
            if isinstance(page, Exception):
                raise page
            return dict(page)
        return {"metadata": {"resourceVersion": str(self.version)}, "items": list(self.objects.values())}

    async def watch(self, path: str, query: Mapping[str, str], seconds: int) -> AsyncIterator[dict[str, Any]]:
        await asyncio.sleep(0.01)
        self.watches.append(query["resourceVersion"])
        if problem := self.problem or self.watch_problem:
            raise problem
        yield {"type": OPENED}
        try:
            async with asyncio.timeout(seconds):
                while True:
                    event = await self._events.get()
                    if self.problem:
                        raise self.problem
                    yield event
        except TimeoutError:
            return


class Reader:
    """What a reflector's reader knows, by the protocol of its events."""

    def __init__(self, server: Server, resource: Resource = PODS) -> None:
        self.reflector = Reflector(server, resource)
        self.known: set[str] = set()
        self.completed = 0
        self._fresh: set[str] = set()
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self.reflector.events():
            match event:
                case Begun():
                    self._fresh = set()
                case Page(items=items):
                    self._fresh |= {item["metadata"]["name"] for item in items}
                case Complete():
                    self.known, self.completed = self._fresh, self.completed + 1
                case Change(type=kind, document=document):
                    name = document["metadata"]["name"]
                    (self.known.discard if kind == "DELETED" else self.known.add)(name)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.mark.parametrize(
    "problem", [Unavailable("no route"), Denied("forbidden (HTTP 403)")], ids=["gone", "forbidden"]
)
def test_an_hour_without_the_server(problem: CiliateError) -> None:
    async def story() -> None:
        server = Server("a", "b")
        reader = Reader(server)
        await asyncio.sleep(700)
        assert reader.known == {"a", "b"}
        before = server.lists + len(server.watches)
        server.problem = problem
        server.put("c")  # ends the watch
        await asyncio.sleep(3600)
        assert reader.known == {"a", "b"}, "the last known state stays"
        assert str(problem) in reader.reflector.problem
        tried = server.lists + len(server.watches) - before
        assert 100 < tried < 260, "about every half a minute: neither given up nor hammered"
        server.problem = None
        await asyncio.sleep(31)
        assert reader.known == {"a", "b", "c"}
        assert reader.reflector.problem == ""
        await reader.stop()

    run_virtual(story())


def test_watches_of_many_agents_do_not_end_in_step() -> None:
    async def story() -> None:
        servers = [Server("a") for _ in range(50)]
        readers = [Reader(server) for server in servers]
        await asyncio.sleep(450)
        counts = [len(server.watches) for server in servers]
        assert min(counts) >= 1
        assert len(set(counts)) > 1
        for reader in readers:
            await reader.stop()

    run_virtual(story())


def test_a_server_that_does_not_know_our_version_is_listed_anew() -> None:
    """Restored from a backup it answers 504, "too large resource version", for ever."""

    async def story() -> None:
        server = Server("a")
        server.watch_problem = Unavailable("Timeout: Too large resource version: 10, current: 3 (HTTP 504)")
        reader = Reader(server)
        await asyncio.sleep(0.1)
        assert reader.known == {"a"}
        server.objects = {"b": thing("b")}
        await asyncio.sleep(60)
        assert reader.known == {"b"}
        await reader.stop()

    run_virtual(story())


def test_a_kind_that_seems_to_vanish_is_believed_only_when_that_lasts() -> None:
    """A server that starts answers 404 for defined kinds, too; believing it would open what policies closed."""

    async def story() -> None:
        server = Server("policy")
        reader = Reader(server, CILIUM_POLICIES)
        await asyncio.sleep(1)
        server.problem = NotFound("the server could not find the requested resource (HTTP 404)")
        server._events.put_nowait({})
        await asyncio.sleep(GONE_SECONDS / 2)
        assert reader.known == {"policy"}
        assert "stays in force" in reader.reflector.problem
        server.problem = None
        await asyncio.sleep(40)
        assert (reader.known, reader.reflector.problem) == ({"policy"}, "")
        server.problem = NotFound("the server could not find the requested resource (HTTP 404)")
        server._events.put_nowait({})
        await asyncio.sleep(GONE_SECONDS + 60)
        assert reader.known == set(), "the definition was really deleted"
        server.problem, server.objects = None, {"again": thing("again")}
        await asyncio.sleep(60)
        assert reader.known == {"again"}
        await reader.stop()

    run_virtual(story())


def test_a_kind_that_was_never_there_is_empty_at_once_and_found_when_it_comes() -> None:
    async def story() -> None:
        server = Server("a")
        server.problem = NotFound("no such kind (HTTP 404)")
        reader = Reader(server, CILIUM_POLICIES)
        await asyncio.sleep(0.1)
        assert reader.completed == 1
        assert reader.reflector.problem == ""
        server.problem = None
        await asyncio.sleep(31)
        assert reader.known == {"a"}
        await reader.stop()

    run_virtual(story())


def test_a_list_that_breaks_off_between_pages_is_void() -> None:
    async def story() -> None:
        server = Server("c")
        server.pages = [
            {"metadata": {"continue": "x"}, "items": [thing("a")]},
            Gone("The provided continue parameter is too old (HTTP 410)"),
            {"metadata": {"continue": "y"}, "items": [thing("b")]},
            {"metadata": {"resourceVersion": "5"}, "items": [thing("c")]},
        ]
        reader = Reader(server)
        await asyncio.sleep(5)
        assert (reader.known, reader.completed) == ({"b", "c"}, 1)
        await reader.stop()

    run_virtual(story())


@pytest.mark.parametrize(
    "page",
    [
        {},
        {"metadata": None, "items": None},
        {"metadata": {"resourceVersion": None}, "items": "nonsense"},
        {"metadata": {"resourceVersion": "7"}, "items": [None, 3, "x", []]},
    ],
)
def test_lists_that_are_none(page: dict[str, Any]) -> None:
    async def story() -> None:
        server = Server()
        server.pages = [page]
        reader = Reader(server)
        await asyncio.sleep(1)
        assert reader.known == set()
        await reader.stop()
        assert not reader.task.done() or reader.task.cancelled()

    run_virtual(story())


def test_events_that_are_none() -> None:
    async def story() -> None:
        server = Server()
        reader = Reader(server)
        await asyncio.sleep(0.1)
        for event in (
            {},
            {"type": "ADDED"},
            {"type": "ADDED", "object": "x"},
            {"type": "RENAMED", "object": thing("r")},
            {"type": 7, "object": {}},
            {"type": "BOOKMARK", "object": {"metadata": None}},
        ):
            server._events.put_nowait(event)
        server.put("after")
        await asyncio.sleep(0.1)
        assert reader.known == {"after"}
        await reader.stop()

    run_virtual(story())
