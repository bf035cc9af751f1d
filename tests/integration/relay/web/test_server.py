"""The page's server over real sockets: JSON and its errors, events, headers, who may ask, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.common.authority import issue, make_authority
from services.common.errors import Unavailable
from services.common.tls import TlsFiles
from services.flows.entries import NodeRef
from services.flows.follow import NoArchive
from services.flows.observer import NodeStatus
from services.relay.web import api as api_module
from services.relay.web.api import Api
from services.relay.web.server import STATIC, WebServer
from tests.unit.relay.web.cluster import CART, FRONTEND, REDIS, SCRIPT, START, VISITOR, Shop


class Nodes:
    def statuses(self) -> list[NodeStatus]:
        return [NodeStatus(NodeRef("node1"), connected=True), NodeStatus(NodeRef("node2"), connected=False)]


def api_of(shop: Shop) -> Api:
    return Api(shop.store, NoArchive(), Nodes(), "1.0", lambda: None, lambda: shop.now)


@contextlib.asynccontextmanager
async def page(
    shop: Shop, tls: TlsFiles | None = None, address: str = ":0"
) -> AsyncIterator[tuple[WebServer, aiohttp.ClientSession]]:
    async with WebServer(address, tls, api_of(shop)) as server, aiohttp.ClientSession(server.url) as session:
        yield server, session


async def get(session: aiohttp.ClientSession, path: str, **parameters: str) -> Any:
    async with session.get(path, params=parameters) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    name = ""
    async for raw in response.content:
        line = raw.decode().strip()
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


async def test_status_map_flows_and_filters() -> None:
    shop = Shop()
    shop.day()
    async with page(shop) as (_, session):
        status = await get(session, "/api/v1/status")
        assert status["flows"] == shop.store.flows
        assert status["nodes"] == [{"name": "node1", "connected": True}, {"name": "node2", "connected": False}]
        assert status["oldest"] == pytest.approx(START / 1e9, abs=1)
        graph = await get(session, "/api/v1/graph")
        assert len(graph["edges"]) == 5
        flows = await get(session, "/api/v1/flows", verdict="DROPPED")
        assert [flow["verdict"] for flow in flows["flows"]] == ["DROPPED"] * 3
        known = await get(session, "/api/v1/filters")
        assert {
            "name": "pod",
            "help": "flows from or to pods whose [namespace/]name starts so",
            "side": "both",
        } in known["filters"]


@pytest.mark.parametrize(
    ("path", "status", "code", "field"),
    [
        ("/api/v1/graph?prt=80", 400, "invalid", "prt"),
        ("/api/v1/flows?http-path=(", 400, "invalid", "http-path"),
        ("/api/v1/flows/stream?port=x", 400, "invalid", "port"),
        ("/api/v1/nothing", 404, "not_found", None),
        ("/js/../../server.py", 404, "not_found", None),
        ("/js/%2e%2e/%2e%2e/server.py", 404, "not_found", None),
    ],
)
async def test_errors_have_a_code_and_name_the_parameter(path: str, status: int, code: str, field: str | None) -> None:
    async with page(Shop()) as (server, session):
        import yarl

        async with session.get(yarl.URL(server.url.rstrip("/") + path, encoded=True)) as response:
            body = await response.json()
        assert (response.status, body["error"]["code"], body["error"].get("field")) == (status, code, field)
        assert body["error"]["message"]


async def test_every_file_is_served_with_headers_that_let_a_page_do_nothing_but_show() -> None:
    async with page(Shop()) as (_, session):
        for path in (each for each in STATIC.rglob("*") if each.is_file()):
            async with session.get(f"/{path.relative_to(STATIC)}") as response:
                assert await response.read() == path.read_bytes()
                policy = response.headers["Content-Security-Policy"]
                tag = response.headers["ETag"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            async with session.get(f"/{path.relative_to(STATIC)}", headers={"If-None-Match": tag}) as response:
                assert response.status == 304
        index = (STATIC / "index.html").read_text(encoding="utf-8")
        assert "http" not in index, "nothing comes from elsewhere"
        assert index.count("<script") == index.count("<script src=") + index.count("</script>") - 3 == 3


async def test_names_of_other_hosts_are_refused_on_loopback() -> None:
    async with page(Shop()) as (server, session):
        for host, status in (
            ("evil.example", 403),
            ("localhost", 200),
            (f"127.0.0.1:{server.port}", 200),
            ("[::1]:80", 200),
        ):
            async with session.get("/api/v1/status", headers={"Host": host}) as response:
                assert response.status == status, host


async def test_a_stream_tells_new_flows_and_counts_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "TICK_S", 0.01)
    shop = Shop()
    shop.day()
    async with (
        page(shop) as (_, session),
        session.get("/api/v1/flows/stream", params={"verdict": "DROPPED"}) as response,
    ):
        assert response.content_type == "text/event-stream"
        told = events(response)
        shop.connect(FRONTEND, CART)
        shop.refuse(VISITOR, REDIS)
        async with asyncio.timeout(5):
            name, content = await anext(told)
        assert (name, len(content["flows"]), content["skipped"]) == ("flows", 1, 0)
        assert content["flows"][0]["source"]["pod"] == "visitor-1"
        for _ in range(api_module.MAX_NEW + 50):
            shop.refuse(VISITOR, REDIS)
        seen = skipped = 0
        async with asyncio.timeout(5):
            while seen + skipped < api_module.MAX_NEW + 50:
                _, content = await anext(told)
                seen, skipped = seen + len(content["flows"]), skipped + content["skipped"]
        assert seen + skipped == api_module.MAX_NEW + 50


async def test_nothing_is_left_out_between_asking_and_following(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "TICK_S", 0.01)
    shop = Shop()
    shop.day()
    async with page(shop) as (_, session):
        position = (await get(session, "/api/v1/flows"))["position"]
        shop.refuse(VISITOR, REDIS)
        for headers, parameters in (({}, {"position": str(position)}), ({"Last-Event-ID": str(position)}, {})):
            async with session.get("/api/v1/flows/stream", params=parameters, headers=headers) as response:
                async with asyncio.timeout(5):
                    _, content = await anext(events(response))
            assert [flow["verdict"] for flow in content["flows"]] == ["DROPPED"]
            assert content["position"] == position + 1
        beyond = {"position": str(position + 1_000_000)}  # of an earlier relay
        async with session.get("/api/v1/flows/stream", params=beyond) as response:
            told = events(response)
            shop.refuse(VISITOR, REDIS)
            async with asyncio.timeout(5):
                assert len((await anext(told))[1]["flows"]) == 1


async def test_a_map_stream_follows_and_streams_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "MAP_S", 0.01)
    monkeypatch.setattr(api_module, "MAX_STREAMS", 1)
    shop = Shop()
    async with page(shop) as (_, session):
        async with session.get("/api/v1/graph/stream") as response:
            told = events(response)
            async with asyncio.timeout(5):
                assert (await anext(told))[1]["edges"] == []
                shop.refuse(VISITOR, REDIS)
                async for name, content in told:
                    if name == "graph" and content["edges"]:
                        break
            assert content["edges"][0]["verdict"] == "refused"
            async with session.get("/api/v1/graph/stream") as second:
                assert second.status == 429
                assert (await second.json())["error"]["code"] == "exhausted"
        async with asyncio.timeout(5):  # a page that is gone gives its place back
            while True:
                shop.refuse(VISITOR, REDIS)
                async with session.get("/api/v1/graph/stream") as again:
                    if again.status == 200:
                        break
                await asyncio.sleep(0.02)


def client_context(files: TlsFiles | None, ca: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    context.check_hostname = False
    if files is not None:
        context.load_cert_chain(files.cert, files.key)
    return context


async def test_elsewhere_than_on_loopback_a_readers_certificate_is_needed(tmp_path: Path) -> None:
    make_authority(tmp_path)
    server_files = issue(tmp_path, "relay", hosts=("localhost",))
    reader, agent = issue(tmp_path, "client"), issue(tmp_path, "agent", "node1")
    shop = Shop()
    shop.day()
    async with page(shop, server_files, "0.0.0.0:0") as (server, session):
        assert server.url.startswith("https://")
        url = f"https://127.0.0.1:{server.port}/api/v1/graph"
        async with session.get(url, ssl=client_context(reader, tmp_path / "ca.crt")) as response:
            assert len((await response.json())["edges"]) == 5
        async with session.get(url, ssl=client_context(agent, tmp_path / "ca.crt")) as response:
            assert response.status == 403
            assert "may not read flows" in (await response.json())["error"]["message"]
        with pytest.raises(aiohttp.ClientError):
            async with session.get(url, ssl=client_context(None, tmp_path / "ca.crt")):
                pass


async def test_certificates_are_read_again(tmp_path: Path) -> None:
    make_authority(tmp_path)
    files = issue(tmp_path, "relay", hosts=("localhost",))
    reader = issue(tmp_path, "client")

    async def serial(port: int) -> str:
        context = client_context(reader, tmp_path / "ca.crt")
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        found = writer.get_extra_info("peercert")["serialNumber"]
        writer.close()
        return str(found)

    async with WebServer("0.0.0.0:0", files, api_of(Shop())) as server:
        before = await serial(server.port)
        issue(tmp_path, "relay", hosts=("localhost",))
        assert await serial(server.port) != before


async def test_an_address_in_use_is_told() -> None:
    async with page(Shop()) as (server, _):
        with pytest.raises(Unavailable, match="web_address"):
            async with WebServer(f"127.0.0.1:{server.port}", None, api_of(Shop())):
                pass


async def test_hostile_paths_leave_as_json_only() -> None:
    shop = Shop()
    shop.day()
    async with page(shop) as (_, session), session.get("/api/v1/flows", params={"http-path": "script"}) as response:
        assert response.content_type == "application/json"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert SCRIPT in (await response.json())["flows"][0]["http"]["url"]
