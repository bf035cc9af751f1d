"""`ciliate flows`: SQL over the flows that the relay keeps on disk (Parquet), by DuckDB.

Runs where the files are: beside the relay, on a copy, in a sandbox. A query sees one view, `flows`, and nothing else
of this machine: DuckDB may read that folder only and write nowhere.
"""

from __future__ import annotations

import datetime
import enum
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli import connect, output
from services.common.errors import Invalid, NotFound
from services.flows.history import files

app = typer.Typer(name="flows", help="Recorded flows: SQL over the relay's history.", no_args_is_help=True)

MEMORY = "1GB"
EXAMPLE = "SELECT source_pod, destination_pod, verdict, count(*) AS flows FROM flows GROUP BY ALL ORDER BY flows DESC"


class Format(enum.StrEnum):
    """How to print."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


FolderOption = Annotated[
    str, typer.Option("--history", envvar="CILIATE_HISTORY", help="the relay's history_dir, or a copy of it")
]


def _folder(context: typer.Context, given: str) -> Path:
    name = given or connect.find(context.obj).history
    if not name:
        raise NotFound("--history: no folder of flows is known here; name the relay's history_dir")
    path = Path(name).resolve()
    if not path.is_dir():
        raise NotFound(f"--history: there is no folder {path}")
    return path


@app.command("query")
def query(
    context: typer.Context,
    sql: Annotated[str, typer.Argument(help=f'over the view "flows": {EXAMPLE}')],
    history: FolderOption = "",
    how: Annotated[Format, typer.Option("--output", "-o", help="how to print")] = Format.TABLE,
) -> None:
    """Ask recorded flows in SQL. `DESCRIBE flows` tells the columns."""
    names, rows = run(_folder(context, history), sql)
    output.say(text(names, rows, how))


@app.command("files")
def show(
    context: typer.Context,
    history: FolderOption = "",
    how: output.OutputOption = output.Output.TABLE,
) -> None:
    """The files that hold recorded flows: times, rows, size."""
    items = [
        {"from": _time(found.first_ns), "to": _time(found.last_ns), "flows": found.rows, "bytes": found.size}
        | {"file": found.path.name}
        for found in _listing(_folder(context, history))
    ]
    output.say(output.render(items, [(title, title) for title in ("from", "to", "flows", "bytes")], how, "no files"))


def run(folder: Path, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """(column names, rows) of a query over the files in `folder`; raises `Invalid` with the database's reason."""
    import duckdb

    try:
        sql.encode()
    except UnicodeEncodeError as error:
        raise Invalid(f"SQL: {sql[error.start : error.end]!r} is not UTF-8") from error
    found = _listing(folder)
    if not found:
        raise NotFound(f"--history: {folder} holds no flows yet")
    database = duckdb.connect(":memory:", config={"memory_limit": MEMORY})
    try:
        paths = "[" + ", ".join("'" + str(each.path).replace("'", "''") + "'" for each in found) + "]"
        database.execute(
            "CREATE VIEW flows AS SELECT columns(lambda c: NOT starts_with(c, '_')) "
            f"FROM read_parquet({paths}, union_by_name=true)"
        )
        for setting in (f"allowed_paths={paths}", "enable_external_access=false", "lock_configuration=true"):
            database.execute(f"SET {setting}")
        statements = database.extract_statements(sql)
        if not statements:
            raise Invalid(f"SQL: there is no statement; try: {EXAMPLE}")
        for statement in statements:
            if statement.type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
                raise Invalid(f"SQL: only SELECT, DESCRIBE and EXPLAIN are for here, not {statement.type.name}")
        result = database.execute(sql)
        return _unlike([column[0] for column in result.description or ()]), result.fetchall()
    except duckdb.Error as error:
        raise Invalid(f"SQL: {str(error).strip().splitlines()[0]}") from error
    finally:
        database.close()


def text(names: Sequence[str], rows: Sequence[Sequence[Any]], how: Format) -> str:
    """The answer, printed."""
    items: list[Mapping[str, Any]] = [dict(zip(names, map(_plain, row), strict=True)) for row in rows]
    if how is Format.JSON:
        return "\n".join(json.dumps(item, ensure_ascii=False, allow_nan=False, default=str) for item in items)
    if how is Format.CSV:
        import csv
        import io

        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(item.values() for item in items)
        return stream.getvalue().rstrip("\n")
    return output.render(items, [(name, name) for name in names], output.Output.TABLE, "no rows")


def _unlike(names: Sequence[str]) -> list[str]:
    """Names of columns, each once: a second `a` becomes `a_1`, so that none hides another."""
    found: list[str] = []
    for name in names:
        number, fresh = 0, name
        while fresh in found:
            number += 1
            fresh = f"{name}_{number}"
        found.append(fresh)
    return found


def _plain(value: Any) -> Any:
    """A value in what JSON has: times as ISO 8601, bytes in hexadecimal digits, what is no number as nothing."""
    match value:
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case bytes():
            return value.hex()
        case float() if not math.isfinite(value):
            return None
        case list() | tuple():
            return [_plain(part) for part in value]
        case dict():
            return {str(key): _plain(part) for key, part in value.items()}
        case _:
            return value


def _listing(folder: Path) -> list[files.SegmentFile]:
    try:
        return files.listing(folder)
    except OSError as error:
        raise Invalid(f"--history: {folder}: {os.strerror(error.errno or 0)}") from error


def _time(nanoseconds: int) -> str:
    return datetime.datetime.fromtimestamp(nanoseconds / 1e9, datetime.UTC).isoformat(timespec="milliseconds")
