"""A sandbox of two nodes: every case of `ciliate connectivity test` is a test, nothing stays behind; then a sysdump."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from services.cli.connectivity.app import CASES
from tests.e2e.shell import Shell

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

NAME = f"connectivity-{os.getpid()}"
SECRET = "correct-horse-battery-staple"
POD = f"""
apiVersion: v1
kind: Pod
metadata: {{name: bystander, annotations: {{example.com/api-token: {SECRET}}}}}
spec: {{containers: [{{name: c, image: alpine, env: [{{name: ANYTHING, value: {SECRET}}}]}}]}}
"""
ciliate = Shell(NAME)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[None]:
    try:
        ciliate("sandbox", "up")
        ciliate("sandbox", "apply", "-f", "-", text=POD)
        yield
    finally:
        ciliate("sandbox", "down", check=False)


@pytest.fixture(scope="module")
def results(sandbox: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Case -> why it failed or was skipped; "" = passed."""
    report: Path = tmp_path_factory.mktemp("connectivity") / "junit.xml"
    options = ("--concurrency", "3", "--timeout", "90", "--junit-file", str(report))
    done = ciliate("connectivity", "test", *options, check=False)
    found = {}
    for each in ElementTree.parse(report).getroot()[0]:
        group = each.attrib["classname"]
        name = each.attrib["name"] if group == "connectivity" else f"{group}/{each.attrib['name']}"
        found[name] = "; ".join(f"{problem.tag}: {problem.attrib['message']}" for problem in each)
    assert (done.returncode == 0) is not any(found.values())
    status = json.loads(ciliate("sandbox", "status", "-o", "json").stdout)
    left = [f"{each['kind']} {each['name']}" for each in status["objects"] if "ciliate-test" in str(each)]
    found["left behind"] = ", ".join(left)
    return found


@pytest.mark.parametrize("case", [*(case.name for case in CASES), "left behind"])
def test_case(case: str, results: dict[str, str]) -> None:
    assert results.get(case, "was not run") == ""


def test_sysdump(sandbox: None, tmp_path: Path) -> None:
    path = tmp_path / "dump.tar.gz"
    ciliate("sysdump", "--output-file", str(path), "--flows", "100")
    with tarfile.open(path) as archive:
        texts = {}
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            texts[member.name.partition("/")[2]] = file.read().decode()
    failed = {n["file"]: n["error"] for n in json.loads(texts["index.json"])["collected"] if n["error"]}
    assert failed == {}
    assert {"status.json", "flows.jsonl", "objects.jsonl", "machine/kernel.txt", "machine/preflight.json"} <= set(texts)
    for node in ("node1", "node2"):
        for name in ("endpoints.jsonl", "maps/ipcache.jsonl", "network/links.txt"):
            assert texts[f"nodes/{node}/{name}"]
        hooks = texts["nodes/node1/network/tc.txt"] + texts["nodes/node1/network/tcx.txt"]
        assert {"from_endpoint", "to_endpoint"} <= set(hooks.split())
        assert f"logs/agent-{node}.log" in texts
        assert f"node_name: {node}" in texts[f"configuration/agent-{node}.yaml"]
    assert "bystander" in texts["objects.jsonl"]
    leaks = [name for name, text in texts.items() if SECRET in text or "PRIVATE KEY" in text]
    assert leaks == []


def test_configuration_and_status(sandbox: None) -> None:
    assert "ready" in ciliate("status", "--wait", "--wait-duration", "20").stdout
    found = json.loads(ciliate("config", "view", "--node", "node1", "-o", "json").stdout)
    by_name = {each["name"]: each for each in found}
    assert by_name["node_name"]["value"] == "node1"
    assert by_name["node_name"]["origin"].startswith("file /")
    assert by_name["policy_max"] | {"description": ""} == {
        "node": "node1",
        "name": "policy_max",
        "value": "262144",
        "default": "262144",
        "origin": "default",
        "description": "",
    }
    wrong = ciliate("config", "view", "node_nam", check=False)
    assert (wrong.returncode, "did you mean node_name?" in wrong.stderr) == (1, True)
