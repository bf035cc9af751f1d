"""A Service under load while what serves it changes: every request is counted, none may fail."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.model.objects import ObjectKey
from services.sandbox.manifests import parse
from services.sandbox.supervisor import Sandbox

pytestmark = [pytest.mark.root, pytest.mark.etcd, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

LOAD = Path(__file__).with_name("load.py")
OBJECTS = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}, annotations: {version: first}}
    spec:
      containers:
        - name: nginx
          image: nginx
          ports: [{containerPort: 80}]
          lifecycle: {preStop: {sleep: {seconds: 2}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 8000, targetPort: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  containers: [{name: shell, image: alpine}]
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(f"load-{os.getpid()}", nodes=2) as made:
        made.apply(parse(OBJECTS, "objects"))
        await made.wait_ready(60)
        watching = asyncio.create_task(made.watch())
        yield made
        watching.cancel()


class Load:
    """The client, running in its pod until `end`."""

    def __init__(self, sandbox: Sandbox, folder: Path, requests: int, seconds: float = 100) -> None:
        self._until, self._count, self._wanted = folder / "end", folder / "count", requests
        address = sandbox.store.objects[ObjectKey("Service", "default", "web")]["spec"]["clusterIP"]
        files = ("--until", str(self._until), "--count", str(self._count))
        command = [sys.executable, str(LOAD), address, "8000", "--requests", str(requests), *files]
        self._run = asyncio.create_task(
            sandbox.kubelet.exec(ObjectKey("Pod", "default", "client"), command, timeout=seconds)
        )

    def progress(self) -> int:
        """How many requests were made, as of a moment ago."""
        return int(self._count.read_text() or 0) if self._count.exists() else 0

    def enough(self) -> bool:
        """Whether as many were made as were wanted, or the client has ended."""
        return self._run.done() or self.progress() >= self._wanted

    async def end(self) -> dict[str, Any]:
        """What it counted."""
        self._until.touch()
        status, output, errors = await self._run
        assert status == 0, errors
        return json.loads(output)  # type: ignore[no-any-return]


async def test_an_agent_that_is_killed_and_comes_back_fails_no_request(sandbox: Sandbox, tmp_path: Path) -> None:
    load = Load(sandbox, tmp_path, 4_000)
    await asyncio.sleep(1)
    agents = {each["name"]: each for each in sandbox.cluster.describe() if each["name"].startswith("agent-")}
    for agent in agents.values():
        os.kill(agent["pid"], signal.SIGKILL)
    async with asyncio.timeout(60):
        for name in agents:
            while not await sandbox.cluster.agent_ready(name.removeprefix("agent-")):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
    found = await load.end()
    assert found["failed"] == 0, found
    assert found["requests"] >= 4_000
    assert len(found["servers"]) == 3
    restarted = {each["name"]: each for each in sandbox.cluster.describe()}
    assert all(restarted[name]["pid"] != agent["pid"] for name, agent in agents.items())


async def test_a_rolling_update_fails_no_request(sandbox: Sandbox, tmp_path: Path) -> None:
    before = {pod.key.name for pod in sandbox.kubelet.pods.values() if pod.key.name.startswith("web-")}
    load = Load(sandbox, tmp_path, 10_000)
    await asyncio.sleep(1)
    sandbox.apply(parse(OBJECTS.replace("version: first", "version: second"), "objects"))
    await sandbox.wait_ready(60)
    found = await load.end()
    after = {pod.key.name for pod in sandbox.kubelet.pods.values() if pod.key.name.startswith("web-")}
    assert not before & after, "every pod was replaced"
    assert found["failed"] == 0, found
    assert found["requests"] >= 10_000
    assert set(found["servers"]) == before | after, "all of both generations served"


NAMES = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: names}
spec:
  replicas: 1
  selector: {matchLabels: {app: names}}
  template:
    metadata: {labels: {app: names}}
    spec:
      containers:
        - {name: dns, image: coredns/coredns, ports: [{containerPort: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: names}
spec:
  selector: {app: names}
  ports: [{name: dns, port: 53, protocol: UDP}]
"""
ASK_AND_WAIT = """
import errno, socket, sys
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
made.settimeout(5)
made.connect((sys.argv[1], 53))
made.send(bytes.fromhex("0001010000010000000000000474657374076578616d706c6500 0001 0001".replace(" ", "")))
made.recv(512)
open(sys.argv[2], "w").close()
made.settimeout(30)
try:
    made.recv(512)
except OSError as error:
    print(errno.errorcode.get(error.errno, error))
"""


async def test_a_socket_whose_udp_backend_has_gone_is_told(sandbox: Sandbox, tmp_path: Path) -> None:
    """Nothing is sent any more: without being closed it would wait for ever."""
    sandbox.apply(parse(NAMES, "names"))
    await sandbox.wait_ready(60)
    address, asked = (
        sandbox.store.objects[ObjectKey("Service", "default", "names")]["spec"]["clusterIP"],
        tmp_path / "asked",
    )
    waiting = asyncio.create_task(
        sandbox.kubelet.exec(
            ObjectKey("Pod", "default", "client"), [sys.executable, "-c", ASK_AND_WAIT, address, str(asked)], timeout=60
        )
    )
    while not asked.exists() and not waiting.done():  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.05)
    assert asked.exists(), await waiting
    sandbox.delete([ObjectKey("Deployment", "default", "names")])
    status, output, errors = await waiting
    assert (status, output.strip()) == (0, "ECONNABORTED"), errors
