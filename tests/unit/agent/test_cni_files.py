"""Plugin and configuration in the runtime's folders: whole, only when asked for, and only ours are taken away."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from services.agent import cni_files
from services.agent.cni_files import CONFLIST, PLUGIN, CniFiles
from services.common.pb.agent.v1 import agent_pb2 as pb


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "bin", tmp_path / "conf"


def test_both_are_there_as_a_whole_and_work(folders: tuple[Path, Path]) -> None:
    binaries, configurations = folders
    files = CniFiles(str(binaries), str(configurations), "/run/ciliate/cni.sock", ["portmap", "bandwidth"])
    files.install()
    assert [path.name for path in (*binaries.iterdir(), *configurations.iterdir())] == [PLUGIN, CONFLIST]
    document = json.loads((configurations / CONFLIST).read_text())
    assert [plugin["type"] for plugin in document["plugins"]] == [PLUGIN, "portmap", "bandwidth"]
    assert document["plugins"][0]["socket"] == "/run/ciliate/cni.sock"
    assert document["plugins"][1]["capabilities"] == {"portMappings": True}
    assert (document["cniVersion"], document["cniVersions"][-1]) == ("1.0.0", "1.1.0")
    done = subprocess.run(
        [binaries / PLUGIN], env={"CNI_COMMAND": "VERSION"}, capture_output=True, check=True, input=b""
    )
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]
    assert files.check().health == pb.HEALTH_OK


def test_what_is_equal_is_left_alone_and_what_is_not_is_replaced(folders: tuple[Path, Path]) -> None:
    binaries, configurations = folders
    files = CniFiles(str(binaries), str(configurations), "/run/cni.sock")
    files.install()
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in (binaries / PLUGIN, configurations / CONFLIST)]
    files.install()
    assert before == [(p.stat().st_ino, p.stat().st_mtime_ns) for p in (binaries / PLUGIN, configurations / CONFLIST)]
    (binaries / PLUGIN).write_text("an older one")
    CniFiles(str(binaries), str(configurations), "/run/other.sock").install()
    assert os.access(binaries / PLUGIN, os.X_OK)
    assert "other.sock" in (configurations / CONFLIST).read_text()


def test_nothing_is_written_unless_asked_for_and_failures_are_told(tmp_path: Path) -> None:
    CniFiles("", "", "/run/cni.sock").install()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    files = CniFiles(str(tmp_path / "file"), str(tmp_path / "conf"), "/run/cni.sock")
    files.install()
    assert files.check().health == pb.HEALTH_DEGRADED
    assert "cni_bin_dir" in files.check().message
    assert not (tmp_path / "conf").exists(), "no configuration without its plugin"


def test_uninstalling_takes_only_what_is_ours(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    binaries, configurations = folders
    CniFiles(str(binaries), str(configurations), "/run/cni.sock").install()
    (configurations / "10-other.conflist").write_text("{}")
    arguments = ["--bin-dir", str(binaries), "--conf-dir", str(configurations)]
    assert cni_files.main(arguments) == 0
    assert [path.name for path in (*binaries.iterdir(), *configurations.iterdir())] == ["10-other.conflist"]
    assert capsys.readouterr().out.count("removed") == 2
    (binaries / PLUGIN).write_text("somebody else's")
    for text in ("{", "[]", json.dumps({"plugins": [{"type": "other"}]})):
        (configurations / CONFLIST).write_text(text)
        assert cni_files.main(arguments) == 0
    assert (binaries / PLUGIN).exists()
    assert (configurations / CONFLIST).exists()
