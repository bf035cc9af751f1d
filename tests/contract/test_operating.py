"""docs/operating.md has what people look up: every metric, and every drop reason of our own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from services.model.verdict import DropReason

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/operating.md").read_text()


def metrics() -> Iterator[str]:
    """Names that stand in the code as they are; a counter's is told with what Prometheus appends."""
    for path in (ROOT / "services").rglob("*.py"):
        source = path.read_text()
        if "prometheus_client" not in source and "Family" not in source:
            continue
        for call in ast.walk(ast.parse(source)):
            if not (isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant)):
                continue
            name = str(call.args[0].value)
            if re.fullmatch(r"ciliate_[a-z_]+", name):
                kind = ast.unparse(call.func).lower()
                yield f"{name}_total" if "counter" in kind or kind == "family" else name


def test_every_metric_is_documented() -> None:
    found = set(metrics())
    assert len(found) > 40
    assert {name for name in found if f"`{name}`" not in TEXT} == set()


def test_every_reason_of_our_own_is_documented() -> None:
    told = {int(number): name for number, name in re.findall(r"^\| (\d+) \| (\w+) \|", TEXT, re.MULTILINE)}
    assert told == {int(reason): reason.name for reason in DropReason if reason >= 220}
