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
    metadata: {labels: {app: web}}
    spec:
      containers:
        - {name: nginx, image: nginx, ports: [{containerPort: 80}]}
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

    def __init__(self, sandbox: Sandbox, tmp_path: Path, requests: int) -> None:
        self._until = tmp_path / "end"
        address = sandbox.store.objects[ObjectKey("Service", "default", "web")]["spec"]["clusterIP"]
        command = [sys.executable, str(LOAD), address, "8000", "--requests", str(requests), "--until", str(self._until)]
        self._run = asyncio.create_task(
            sandbox.kubelet.exec(ObjectKey("Pod", "default", "client"), command, timeout=100)
        )

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
