"""`status --wait`: until everything works, as long as was said, also while nothing is there yet."""

from __future__ import annotations

from typing import Any

import pytest

from services.cli import connect, status
from services.common.errors import NotFound


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the next looks find; the last one again and again. An error is raised."""
    found: list[Any] = []

    async def collect(_servers: object, _node: str) -> Any:
        answer = found.pop(0) if len(found) > 1 else found[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(status, "collect", collect)
    monkeypatch.setattr(status, "WAIT_STEP", 0.01)
    monkeypatch.setattr(connect, "find", lambda settings: None)
    return found


async def test_until_everything_works(answers: list[Any]) -> None:
    answers += [NotFound("no agent runs here"), {"ok": False}, {"ok": False}, {"ok": True}]
    assert await status.until_ok(connect.Settings(), "", 10.0) == {"ok": True}


async def test_not_longer_than_was_said(answers: list[Any]) -> None:
    answers.append({"ok": False, "relay": {"error": "away"}})
    assert (await status.until_ok(connect.Settings(), "", 0.05))["relay"] == {"error": "away"}
    answers[:] = [NotFound("no agent runs here")]
    with pytest.raises(NotFound):
        await status.until_ok(connect.Settings(), "", 0.05)
