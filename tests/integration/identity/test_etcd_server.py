"""The etcd child: ready when it says so, gone when its parent is, and clear about why it did not start."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from services.common.errors import Unavailable
from services.common.etcd_server import EtcdServer

pytestmark = pytest.mark.etcd

PARENT = """
import asyncio, sys, pathlib
from services.common.etcd_server import EtcdServer
async def main():
    async with EtcdServer(pathlib.Path(sys.argv[1])) as etcd:
        print(etcd.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_it_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert alive(pid)
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    async with asyncio.timeout(10):
        while alive(pid):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)


async def test_data_and_address_outlive_a_crash(tmp_path: Path) -> None:
    async with EtcdServer(tmp_path) as etcd:
        endpoint, pid = etcd.endpoint, etcd.pid
        await etcd.restart(kill=True)
        assert (etcd.endpoint, alive(pid)) == (endpoint, False)
        assert alive(etcd.pid)
        last = etcd.pid
    assert not alive(last)


async def test_why_it_does_not_start_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot assign requested address"):
        async with EtcdServer(tmp_path, extra_flags=("--listen-client-urls=http://192.0.2.1:1",)):
            pass
