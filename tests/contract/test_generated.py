"""The generated stubs are what `proto/` says today, and nothing hand-written lives among them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "services/common/pb"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("pb")
    files = sorted((ROOT / "proto").rglob("*.proto"))
    mapped = [f"services/common/pb/{file.relative_to(ROOT / 'proto')}" for file in files]
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-Iservices/common/pb=proto"),
            *(f"--python_out={target}", f"--grpc_python_out={target}", *mapped),
        ],
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    return target / "services/common/pb"


def test_the_page_of_the_api_is_up_to_date(tmp_path: Path) -> None:
    files = [
        f"services/common/pb/{file.relative_to(ROOT / 'proto')}" for file in sorted((ROOT / "proto").rglob("*.proto"))
    ]
    descriptors = tmp_path / "set"
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-Iservices/common/pb=proto", "--include_source_info"),
            *(f"--descriptor_set_out={descriptors}", *files),
        ],
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    made = subprocess.run(
        [sys.executable, "proto/api_page.py", descriptors],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert (ROOT / "docs/api.md").read_text() == made, "run ./dev proto"
    for call in ("Allocate", "GetFlows", "ExplainPolicy", "Push"):
        assert f"| `{call}` |" in made


def test_stubs_are_up_to_date(fresh: Path) -> None:
    expected = {file.relative_to(fresh): file.read_text() for file in fresh.rglob("*.py")}
    present = {file.relative_to(GENERATED): file.read_text() for file in GENERATED.rglob("*_pb2*.py")}
    assert present == expected, "run ./dev proto"


def test_nothing_hand_written_among_them(fresh: Path) -> None:
    generated = {file.relative_to(fresh).with_suffix("") for file in fresh.rglob("*.py")}
    others = [
        file
        for file in GENERATED.rglob("*.py*")
        if "__pycache__" not in file.parts and file.relative_to(GENERATED).with_suffix("") not in generated
    ]
    assert others == [GENERATED / "__init__.py"]
