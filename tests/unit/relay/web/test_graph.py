"""The map: who is a node, what an edge counts, what is told of a refusal."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pytest

from services.flows.columns import Kind
from services.flows.entries import Decision, PolicyRef
from services.flows.follow import NoArchive
from services.relay.web.explain import explain
from services.relay.web.graph import COLUMNS, Graph
from services.relay.web.groups import By, group_of, namer
from services.relay.web.params import Query, parse
from services.relay.web.rows import FlowWriter
from services.relay.web.scan import Scanner
from services.relay.web.server import STATIC
from tests.unit.relay.web.cluster import (
    CART,
    DNS,
    FRONTEND,
    REDIS,
    SCRIPT,
    SECOND,
    START,
    STRIPE,
    VISITOR,
    WORLD,
    Shop,
)

POLICY = PolicyRef("NetworkPolicy", "a", "b")


async def graph_of(shop: Shop, **parameters: str) -> dict[str, Any]:
    query = parse(parameters.items())
    scanner = Scanner(shop.store, NoArchive())
    since, until = START, shop.now + SECOND
    graph = Graph(since, until, shop.store.dictionaries)
    with scanner.pinned() as held:
        async for run in scanner.runs(held, query, since, until, COLUMNS):
            graph.add(run, *scanner.names.of(query.by, shop.store.dictionaries))
    return graph.answer()


def edges_of(answer: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    names = {node["id"]: node["name"] for node in answer["nodes"]}
    return {(names[edge["source"]], names[edge["destination"]]): edge for edge in answer["edges"]}


async def test_edges_count_connections_once_and_requests_with_their_answers() -> None:
    shop = Shop()
    shop.day()
    edges = edges_of(await graph_of(shop))
    assert set(edges) == {
        ("frontend", "cart"),
        ("cart", "redis"),
        ("cart", "api.stripe.com"),
        ("visitor", "redis"),
        ("world", "frontend"),
    }
    edge = edges["frontend", "cart"]
    assert (edge["verdict"], edge["connections"], edge["refused"], edge["bytes"]) == ("passed", 4, 0, 8000)
    assert edge["rtt_ms"] == {"p50": 0.4, "p99": 0.4}
    assert edge["http"]["requests"] == 5
    assert edge["http"]["errors"] == 1
    assert edge["http"]["latency_ms"]["p50"] == pytest.approx(2.0)
    assert edge["ports"] == [{"protocol": "TCP", "port": 80, "passed": 8, "refused": 0}]


async def test_a_refused_edge_tells_which_policy_and_the_nearest_rule() -> None:
    shop = Shop()
    shop.day()
    edge = edges_of(await graph_of(shop))["visitor", "redis"]
    assert (edge["verdict"], edge["refused"], edge["connections"]) == ("refused", 3, 0)
    (reason,) = edge["reasons"]
    assert (reason["title"], reason["reason"], reason["count"]) == ("Default deny", "POLICY_DENIED", 3)
    assert "CiliumNetworkPolicy shop/redis isolates the endpoint for incoming traffic" in reason["text"]
    assert reason["nearest"]["rule"] == "spec.ingress[0]"
    assert reason["nearest"]["text"] == "it allows another peer"


async def test_an_edge_with_both_is_mixed_and_an_audited_one_says_what_would_happen() -> None:
    shop = Shop()
    shop.connect(VISITOR, REDIS)
    shop.refuse(VISITOR, REDIS)
    shop.refuse(VISITOR, CART, kind=Kind.NEW, verdict=4)
    edges = edges_of(await graph_of(shop))
    assert edges["visitor", "redis"]["verdict"] == "mixed"
    audited = edges["visitor", "cart"]
    assert (audited["verdict"], audited["audited"], audited["refused"]) == ("audited", 1, 0)
    assert audited["reasons"][0]["title"] == "Audit only: default deny"


async def test_what_left_and_was_refused_on_arrival_did_not_pass() -> None:
    shop = Shop()
    for _ in range(3):
        shop.add(VISITOR, REDIS, direction=2)
        shop.refuse(VISITOR, REDIS)
        shop.refuse(VISITOR, REDIS)  # tried again
    edge = edges_of(await graph_of(shop))["visitor", "redis"]
    assert (edge["verdict"], edge["connections"], edge["refused"]) == ("refused", 0, 6)


async def test_filters_groups_and_time_narrow_the_map() -> None:
    shop = Shop()
    shop.day()
    assert set(edges_of(await graph_of(shop, verdict="DROPPED"))) == {("visitor", "redis")}
    assert ("cart", "redis") not in edges_of(await graph_of(shop, **{"not.port": "6379"}))
    workload = namer(By.WORKLOAD)
    only = edges_of(await graph_of(shop, source=workload(FRONTEND), destination=workload(CART)))
    assert set(only) == {("frontend", "cart")}
    assert only["frontend", "cart"]["http"]["latency_ms"] is not None, "answers belong to the connection as well"
    assert set(edges_of(await graph_of(shop, group=workload(STRIPE)))) == {("cart", "api.stripe.com")}
    assert (await graph_of(shop, group="workload:shop/Deployment/nobody"))["edges"] == []
    spaces = edges_of(await graph_of(shop, by="namespace"))
    assert ("shop", "shop") in spaces


async def test_the_timeline_holds_every_connection_and_refusal() -> None:
    shop = Shop()
    shop.day()
    timeline = (await graph_of(shop))["timeline"]
    assert sum(timeline["refused"]) == 3
    assert sum(timeline["passed"]) == 2 * 10 + 5  # both ends tell, and five requests
    assert len(timeline["passed"]) == 60


def test_groups_are_named_by_the_best_name_there_is() -> None:
    workload = namer(By.WORKLOAD)
    assert workload(CART) == "workload:shop/Deployment/cart"
    assert workload(STRIPE) == "name:api.stripe.com"
    assert workload(WORLD) == "reserved:world"
    assert namer(By.NAMESPACE)(DNS) == "namespace:kube-system"
    for party in (CART, STRIPE, WORLD, DNS):
        for by in By:
            group = group_of(namer(by)(party))
            assert group.name
            assert group.kind != "unknown"


async def test_the_newest_flows_come_in_order_and_hostile_text_stays_text() -> None:
    shop = Shop()
    shop.day()
    scanner = Scanner(shop.store, NoArchive())
    writer = FlowWriter(shop.store.dictionaries, "1.0", By.WORKLOAD)
    query: Query = parse([("limit", "6")])
    with scanner.pinned() as held:
        selection = await scanner.newest(held, query, shop.now)
        rows = [row for columns, facets in selection.chunks(4) for row in writer.write(columns, facets)]
    assert len(rows) == 6
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
    assert [row["verdict"] for row in rows][:3] == ["DROPPED"] * 3
    assert rows[0]["explanation"]["policies"][0]["name"] == "redis"
    with scanner.pinned() as held:
        selection = await scanner.newest(held, parse([("http-path", "script")]), shop.now)
        (request, *_) = [row for columns, facets in selection.chunks(4) for row in writer.write(columns, facets)]
    assert request["http"]["url"].endswith(SCRIPT)
    assert request["trace"] is None


async def test_a_request_tells_its_trace_and_is_found_by_it() -> None:
    shop = Shop()
    shop.day()
    shop.ask(FRONTEND, CART, "/traced", 200, 2000, trace_high=0xABC, trace_low=0xDEF, parent_span=7, trace_flags=1)
    trace = "0000000000000abc0000000000000def"
    scanner = Scanner(shop.store, NoArchive())
    writer = FlowWriter(shop.store.dictionaries, "1.0", By.WORKLOAD)
    with scanner.pinned() as held:
        selection = await scanner.newest(held, parse([("trace-id", trace)]), shop.now)
        rows = [row for columns, facets in selection.chunks(4) for row in writer.write(columns, facets)]
    assert [(row["trace"], row["http"]["url"].rpartition("/")[2]) for row in rows] == [(trace, "traced")] * 2


@pytest.mark.parametrize(
    ("row", "title", "text"),
    [
        ((2, 2, 133, 1, Decision(True, (POLICY,))), "Denied by a rule", "denies this incoming"),
        ((2, 2, 133, 2, None), "Default deny", "no rule allows this outgoing traffic"),
        ((6, 2, 220, 1, Decision(False, (POLICY,))), "HTTP request not allowed", "a/b"),
        ((2, 2, 169, 1, None), "Dropped by the datapath", "fib"),
        ((1, 1, 0, 1, Decision(True, (POLICY,))), "Allowed by a rule", "a/b allows"),
    ],
)  # fmt: skip
def test_explanations(row: tuple[int, int, int, int, Decision | None], title: str, text: str) -> None:
    found = explain(*row)
    assert found is not None
    assert found["title"] == title
    assert text in found["text"]


def test_what_nobody_decided_is_not_explained() -> None:
    assert explain(Kind.NEW, 1, 0, 1, None) is None
    assert explain(Kind.NEW, 1, 0, 1, Decision(False, (POLICY,))) is None


def test_libraries_are_the_ones_that_were_written_down() -> None:
    table = (STATIC / "vendor/VENDORED.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ") and ".js" in line]
    known = {row[0].strip(): row[-1].strip() for row in rows}
    present = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (STATIC / "vendor").glob("*.js")}
    assert present == known
    assert {path.name for path in (STATIC / "vendor").glob("LICENSE.*")} == {
        "LICENSE.htm", "LICENSE.preact", "LICENSE.dagre", "LICENSE.d3",
    }  # fmt: skip
