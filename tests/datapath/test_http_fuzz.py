"""A bounded run of `tests/fuzz/http.py`: no request that a real server understands as forbidden reaches it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import Tally
from tests.datapath.http_model import Rule
from tests.fuzz.http import BATCH, Result, bench, permitted, run
from tests.fuzz.http_servers import Understood
from tests.fuzz.http_streams import Generator

pytestmark = pytest.mark.root

BATCHES = 12
SEED = 7


def test_no_forbidden_request_is_understood_by_any_server(tmp_path: Path, object_cache: Path, tally: Tally) -> None:
    result, generator = Result(), Generator(SEED)
    with bench(tmp_path, object_cache) as (node, wire, servers):
        for number in range(BATCHES):
            run(node, wire, servers, generator, range(number * BATCH, (number + 1) * BATCH), result)
    assert result.bypasses == []
    names = {server.name for server in servers}
    assert {"http.server", "aiohttp"} <= names
    assert ("nginx" in names) == bool(shutil.which("nginx"))
    for name in names:
        assert result.counts[f"requests understood by {name}"] > result.counts["streams"] // 4
    tally("HTTP request streams compared with real servers", result.counts["streams"])


def test_the_fuzz_would_notice(tmp_path: Path, object_cache: Path) -> None:
    """Where the kernel allows more than the rules of the oracle, every server tells."""
    result = Result()
    with bench(tmp_path, object_cache, [Rule("GET|POST", "/.*")]) as (node, wire, servers):
        run(node, wire, servers, Generator(SEED), range(400), result)
    assert {bypass.server for bypass in result.bypasses} == {server.name for server in servers}


def test_the_oracle() -> None:
    def asked(target: str, method: str = "GET", path: str | None = None, host: str = "a.example") -> bool:
        return permitted(Understood(method, target, path, (("host", host),)))

    assert asked("/ok")
    assert asked("/%6fk")
    assert asked("http://a.example/ok")
    assert asked("/q?x=1")
    assert asked("/hosted")
    assert not asked("/no")
    assert not asked("/ok", path="/no")
    assert not asked("/hosted", host="b.example")
    assert not asked("/ok", method="DELETE")
    assert not asked("/q%3Fx=1")
