"""When sockets are balanced and when not, and who is told why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.agent.datapath import cgroup
from services.agent.datapath.loader_client import Loaded
from services.agent.socket_lb import SocketBalancing
from services.common.errors import Unavailable
from services.common.pb.agent.v1 import agent_pb2 as pb


def loaded(root: Path, **refused: str) -> Loaded:
    (root / "progs").mkdir(exist_ok=True)
    return Loaded(str(root), [], [], [], {name.replace("_", "."): why for name, why in refused.items()}, True, 0.0, 0.0)


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to the hooks, without a kernel."""
    done: list[str] = []
    for name in ("probe", "attach", "detach"):
        monkeypatch.setattr(cgroup.SocketHooks, name, lambda self, name=name: done.append(name))
    return done


def test_on_where_trying_succeeds(tmp_path: Path, hooks: list[str]) -> None:
    balancing = SocketBalancing("auto", str(tmp_path), loaded(tmp_path))
    balancing.enforce()
    assert balancing.enabled
    assert hooks == ["probe", "attach"]
    assert str(tmp_path) in balancing.check().message


def test_a_kernel_that_refuses_is_no_fault_unless_one_insists(tmp_path: Path, hooks: list[str]) -> None:
    found = loaded(tmp_path, sock_c="verifier refused sock_connect4: Invalid argument\nmore")
    balancing = SocketBalancing("auto", str(tmp_path), found)
    balancing.enforce()
    assert not balancing.enabled
    assert hooks == ["detach"], "what an earlier agent left is taken away"
    assert balancing.check().health == pb.HEALTH_OK
    assert "Invalid argument" in balancing.check().message
    assert "more" not in balancing.check().message
    with pytest.raises(Unavailable, match="sock_connect4"):
        SocketBalancing("on", str(tmp_path), found)


def test_off_takes_away_what_was_there(tmp_path: Path, hooks: list[str]) -> None:
    balancing = SocketBalancing("off", str(tmp_path), loaded(tmp_path))
    balancing.enforce()
    assert hooks == ["detach"]
    assert "configuration" in balancing.check().message


def test_a_failure_after_a_good_try_is_told_likewise(
    tmp_path: Path, hooks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any) -> None:
        raise Unavailable("the cgroup went away")

    monkeypatch.setattr(cgroup.SocketHooks, "attach", fail)
    balancing = SocketBalancing("auto", str(tmp_path), loaded(tmp_path))
    balancing.enforce()
    assert hooks == ["probe", "detach"]
    assert "went away" in balancing.check().message
