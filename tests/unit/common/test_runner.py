"""How a process ends: exit codes and messages; how a failure is tried again."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from services.common.errors import Invalid, NotFound, Unavailable
from services.common.retry import Backoff
from services.common.runner import GrpcServer, run
from services.common.targets import split_address


async def fails(error: BaseException) -> None:
    raise error


async def fails_in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(fails(Invalid("field a: wrong")))
        group.create_task(fails(NotFound("field b: missing")))


async def told_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(30)


async def ends() -> None:
    await asyncio.sleep(0)


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ends()) == 0
    assert run(told_to_end()) == 0
    assert run(fails(Invalid("x: no"))) == 1
    assert capsys.readouterr().err == "error: x: no\n"
    assert run(fails_in_a_group()) == 1
    assert "field a: wrong" in capsys.readouterr().err


def test_a_defect_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run(fails(ZeroDivisionError()))


def test_backoff_grows_to_its_bound_and_starts_again() -> None:
    backoff = Backoff(initial=1.0, maximum=8.0, jitter=0.0)
    delays = []
    for _ in range(5):
        delays.append(backoff.delay())
        backoff._attempt += 1
    assert delays == [1.0, 2.0, 4.0, 8.0, 8.0]
    backoff.reset()
    assert backoff.delay() == 1.0
    assert all(0.7 <= Backoff(1.0, 1.0, 0.3).delay() <= 1.0 for _ in range(100))


@pytest.mark.parametrize(
    ("text", "expected"), [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:0", ("::1", 0)), (":9", ("0.0.0.0", 9))]
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text, "metrics_address") == expected


@pytest.mark.parametrize("text", ["", "80", "host:", "host:x", "host:70000"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(Invalid, match="metrics_address"):
        split_address(text, "metrics_address")


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("127.0.0.1:99999", Invalid, "cannot listen: '127.0.0.1:99999' is not host:port"),
        ("127.0.0.1", Invalid, "is not host:port"),
        ("127.0.0.1:²", Invalid, "is not host:port"),
        ("unix:///dev/null/x.sock", Unavailable, "cannot listen on unix:///dev/null/x.sock: File exists"),
        ("unix:///tmp", Unavailable, "cannot listen on unix:///tmp: Is a directory"),
    ],
)
async def test_addresses_that_nobody_can_listen_on(address: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as failed:
        async with GrpcServer([address], None, lambda _server: None):
            pass
    assert words in str(failed.value)
