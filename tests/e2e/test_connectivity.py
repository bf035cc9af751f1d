"""`ciliate connectivity test` on a sandbox of two nodes: every case is a test, and nothing stays behind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from services.cli.connectivity.app import CASES
from tests.e2e.shell import Shell

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

NAME = f"connectivity-{os.getpid()}"
ciliate = Shell(NAME)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Case -> why it failed or was skipped; "" = passed."""
    report: Path = tmp_path_factory.mktemp("connectivity") / "junit.xml"
    try:
        ciliate("sandbox", "up")
        options = ("--concurrency", "3", "--timeout", "90", "--junit-file", str(report))
        ciliate("connectivity", "test", *options, check=False)
        suite = ElementTree.parse(report).getroot()[0]
        found = {}
        for each in suite:
            group = each.attrib["classname"]
            name = each.attrib["name"] if group == "connectivity" else f"{group}/{each.attrib['name']}"
            found[name] = "; ".join(f"{problem.tag}: {problem.attrib['message']}" for problem in each)
        status = json.loads(ciliate("sandbox", "status", "-o", "json").stdout)
        found["left behind"] = ", ".join(
            f"{each['kind']} {each['name']}" for each in status["objects"] if "ciliate-test" in str(each)
        )
        yield found
    finally:
        ciliate("sandbox", "down", check=False)


@pytest.mark.parametrize("case", [*(case.name for case in CASES), "left behind"])
def test_case(case: str, results: dict[str, str]) -> None:
    assert results.get(case, "was not run") == ""
