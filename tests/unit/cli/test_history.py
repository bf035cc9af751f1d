"""`ciliate flows`: SQL over recorded flows, and over nothing else of the machine."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from services.cli.app import app
from services.cli.history import Format, run, text
from services.common.errors import Invalid, NotFound
from services.flows.columns import STORED, Kind
from services.flows.entries import NodeRef, Party
from services.flows.history.history import History
from services.flows.store import FlowStore
from services.model.addresses import to_bytes


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """Two clients, three connections, one of them dropped."""
    store = FlowStore(4096)
    node = store.node(NodeRef("node1"))
    parties = [
        store.dictionaries.parties.intern(
            Party(to_bytes(ipaddress.ip_address(f"10.0.0.{number}")), 1000 + number, (), "default", pod)
        )
        for number, pod in enumerate(("web", "curl", "x\x1b[31m"))
    ]
    for place, (client, verdict, kind) in enumerate(((1, 1, Kind.NEW), (1, 1, Kind.NEW), (2, 2, Kind.DROP))):
        values = {"time_ns": 1_700_000_000_000_000_000 + place, "source": parties[client], "destination": parties[0]}
        values |= {"verdict": verdict, "kind": kind, "bytes": 100}
        store.append({name: np.array([value], STORED[name]) for name, value in values.items()}, node)
    history = History(tmp_path / "flows", store, max_bytes=1 << 30, max_age_s=1e9)
    await history.flush()
    history.close()
    return tmp_path / "flows"


def test_sql_answers_in_names(folder: Path) -> None:
    names, rows = run(folder, "SELECT source_pod, verdict, count(*) n, sum(bytes) b FROM flows GROUP BY ALL ORDER BY n")
    assert names == ["source_pod", "verdict", "n", "b"]
    assert [tuple(row) for row in rows] == [("x\x1b[31m", "DROPPED", 1, 100), ("curl", "FORWARDED", 2, 200)]
    assert "\x1b" not in text(names, rows, Format.TABLE)
    assert [json.loads(line)["n"] for line in text(names, rows, Format.JSON).splitlines()] == [1, 2]
    assert text(["a"], [["x,y"]], Format.CSV) == 'a\n"x,y"'
    columns = [row[0] for row in run(folder, "DESCRIBE flows")[1]]
    assert {"time", "source_pod", "destination_labels", "policies", "rtt_us"} <= set(columns)
    assert not [name for name in columns if name.startswith("_")]


def test_every_type_is_printed(folder: Path) -> None:
    sql = (
        "SELECT time, 1 AS a, 2 AS a, 'nan'::DOUBLE n, 'x'::BLOB b, [1.5::DECIMAL(3,1)] l, INTERVAL 1 DAY d FROM flows"
    )
    names, rows = run(folder, f"{sql} LIMIT 1")
    assert names == ["time", "a", "a_1", "n", "b", "l", "d"]
    line = json.loads(text(names, rows, Format.JSON))
    assert line.pop("time").startswith("2023-11-14T")
    assert line == {"a": 1, "a_1": 2, "n": None, "b": "78", "l": ["1.5"], "d": "1 day, 0:00:00"}
    assert text(names[1:3], [rows[0][1:3]], Format.CSV) == "a,a_1\n1,2"


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "SELECT '\udcff'",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM '/etc/passwd'",
        "COPY flows TO '/tmp/ciliate-stolen.csv'",
        "ATTACH '/tmp/ciliate-other.db'",
        "INSTALL httpfs",
        "SET enable_external_access=true",
        "SELEC nonsense",
        "SELECT nothing_of_the_kind FROM flows",
    ],
)
def test_sql_reaches_nothing_else_and_says_why(folder: Path, sql: str) -> None:
    with pytest.raises(Invalid, match=r"^SQL: .+"):
        run(folder, sql)
    assert not list(Path("/tmp").glob("ciliate-*stolen*"))


def test_where_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="holds no flows yet"):
        run(tmp_path, "SELECT 1")
    result = CliRunner().invoke(app, ["flows", "query", "SELECT 1", "--history", str(tmp_path / "none")])
    assert result.exit_code != 0


async def test_the_command(folder: Path) -> None:
    arguments = ["flows", "query", "SELECT count(*) AS n FROM flows", "-o", "json", "--history", str(folder)]
    assert json.loads(CliRunner().invoke(app, arguments).stdout) == {"n": 3}
    listed = CliRunner().invoke(app, ["flows", "files", "-o", "json", "--history", str(folder)])
    assert [item["flows"] for item in json.loads(listed.stdout)] == [3]
