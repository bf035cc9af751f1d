"""The suite on a running sandbox: objects through its supervisor, requests from inside its namespaces.

While it is open, the outside world and every node have a web server of ours, since nothing else serves there.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import yaml

from services.cli.connectivity.cluster import Document, Facts, Node, Place, World
from services.cli.connectivity.objects import ECHO
from services.common.errors import NotFound, Unavailable
from services.sandbox import cgroups, state
from services.sandbox.client import SandboxClient
from services.sandbox.images import WORLD_DOMAIN
from services.sandbox.kubelet import enter
from services.sandbox.netns import WORLD4, WORLD6
from services.sandbox.processes import Processes

HOST_PORT = 18080
_NAMES = (f"api.{WORLD_DOMAIN}", f"other.{WORLD_DOMAIN}")


class SandboxCluster:
    """One running sandbox. Its supervisor is asked over the control socket, blocking calls in threads."""

    def __init__(self, name: str) -> None:
        self._client = SandboxClient(name)
        self._paths = state.Paths(name)
        self._stack = AsyncExitStack()
        self._nodes: dict[str, Path | None] = {}
        self._pids: dict[Place, int] = {}

    async def __aenter__(self) -> Facts:
        try:
            return await self._open()
        except BaseException:
            await self._stack.aclose()
            raise

    async def __aexit__(self, *problem: object) -> None:
        await self._stack.aclose()

    async def _open(self) -> Facts:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ciliate-connectivity-")))
        processes = Processes(folder / "ledger", folder)
        self._stack.push_async_callback(processes.stop_all)
        status = await self._call("status")
        pids = {each["name"]: int(each["pid"]) for each in status["nodes"]}
        nodes = tuple(_node(document) for document in await self.get("Node"))
        self._nodes = {node.name: cgroups.of_process(pids.get(f"agent-{node.name}", 0)) for node in nodes}
        script = ECHO.read_text(encoding="utf-8")
        for node in nodes:
            words = ["python3", "-c", script, node.name, str(HOST_PORT)]
            await processes.start(node.name, self._joined(node.name, words), netns=self._netns(node.name))
        words = ["python3", "-c", script, "world", "80", "0", WORLD4, WORLD6]
        await processes.start("world", words, netns=self._netns("switch"))
        world = World((WORLD4, WORLD6), _NAMES, tells=True)
        return Facts(nodes, world, HOST_PORT, frozenset({"pod", "node", "outside"}))

    def _netns(self, what: str) -> str:
        return f"{self._paths.netns_prefix}{what}"

    def _joined(self, node: str, words: Sequence[str]) -> list[str]:
        """In the node's cgroup, where its agent looks after sockets."""
        place = self._nodes.get(node)
        return cgroups.run_in(place, words) if place else list(words)

    async def _call(self, operation: str, **fields: object) -> Document:
        return await asyncio.to_thread(self._client.call, operation, 60.0, **fields)

    async def apply(self, documents: Sequence[Document]) -> None:
        text = yaml.safe_dump_all([dict(document) for document in documents])
        await self._call("apply", sources=[{"origin": "connectivity test", "text": text}])

    async def delete(self, documents: Sequence[Document]) -> None:
        for document in documents:
            metadata = document["metadata"]
            key = [document["kind"], metadata.get("namespace", ""), metadata["name"]]
            try:
                await self._call("delete", keys=[key])
            except NotFound:
                continue

    async def wait_ready(self, namespaces: Sequence[str], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            pods = [pod for pod in (await self._call("status"))["pods"] if pod["namespace"] in namespaces]
            late = [f"{pod['namespace']}/{pod['name']}: {pod['message']}" for pod in pods if not pod["ready"]]
            if pods and not late:
                return
            if time.monotonic() > deadline:
                raise Unavailable(f"pods are not ready after {seconds:g} s: {'; '.join(late) or 'there are none'}")
            await asyncio.sleep(0.1)

    async def get(self, kind: str, namespace: str = "") -> Sequence[Document]:
        found: Sequence[Document] = (await self._call("get", kind=kind, namespace=namespace))["items"]
        return found

    async def run(self, place: Place, command: Sequence[str], seconds: float) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            *await self._words(place, [*("timeout", "-k", "1", f"{seconds:g}"), *command]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
        return process.returncode or 0, output.decode(errors="replace"), errors.decode(errors="replace")

    async def _words(self, place: Place, command: list[str]) -> list[str]:
        if place.kind == "outside":
            return ["nsenter", f"--net={state.NETNS_ROOT / self._netns('switch')}", "--", *command]
        if place.kind == "node":
            inside = ["nsenter", f"--net={state.NETNS_ROOT / self._netns(place.name)}", "--", *command]
            return self._joined(place.name, inside)
        pid = await self._pid(place)
        cgroup = cgroups.of_process(pid)
        inside = enter(pid, command)
        return cgroups.run_in(cgroup, inside) if cgroup else inside

    async def _pid(self, place: Place) -> int:
        pid = self._pids.get(place, 0)
        if not pid or state.start_time(pid) is None:  # not known yet, or started again
            for pod in (await self._call("status"))["pods"]:
                self._pids[Place("pod", pod["name"], pod["namespace"])] = int(pod["pid"])
            pid = self._pids.get(place, 0)
        if not pid:
            raise NotFound(f"pod {place.namespace}/{place.name} does not run")
        return pid


def _node(document: Document) -> Node:
    addresses = [e["address"] for e in document["status"]["addresses"] if e["type"] == "InternalIP"]
    return Node(document["metadata"]["name"], tuple(addresses))
