"""One sandbox, from nothing to ready and back to nothing.

    claim ── network ─┬─ etcd ── identity ─┬─ agents (one per node) ─┬─ system objects ── ready
                      └─ certificates ─────┴─ relay ─────────────────┘

    applied manifests ─▶ ObjectStore ─▶ pods to run ─▶ Kubelet ─▶ CNI, programs
                              └──────────▶ objects folder ◀── pod status ──┘      (watched by the agents)

Whatever ends it (the caller, an error, a signal), everything that was made is taken away again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from services.common.errors import Unavailable
from services.common.log import get_logger
from services.model.objects import ObjectKey
from services.sandbox import netns, state, sweep
from services.sandbox.cgroups import Cgroups
from services.sandbox.cluster import Cluster
from services.sandbox.controller import dns_records, is_ready
from services.sandbox.kubelet import Kubelet, RunningPod
from services.sandbox.manifests import Manifest
from services.sandbox.processes import Processes
from services.sandbox.rollout import Running, deployments_of, next_steps, owner_of
from services.sandbox.store import ObjectsFolder, ObjectStore
from services.sandbox.system import node_manifests, system_manifests

Progress = Callable[[str], None]


class Sandbox:
    """A running sandbox while the context is open. `progress` hears what is being done, for people."""

    def __init__(
        self, name: str, nodes: int = 2, progress: Progress = lambda step: None, routing_mode: str = "tunnel"
    ) -> None:
        self.name, self._progress = name, progress
        self.paths = state.Paths(state.check_name(name))
        self.topology = netns.plan(self.paths.netns_prefix, nodes)
        self.processes = Processes(self.paths.ledger, self.paths.logs)
        self.cgroups = Cgroups(name, self.paths.cgroup)
        self.cluster = Cluster(self.paths, self.topology, self.processes, self.cgroups, routing_mode)
        self.store = ObjectStore([node.name for node in self.topology.nodes])
        self._by_name = {node.name: node for node in self.topology.nodes}
        self.kubelet = Kubelet(
            self.paths, self.processes, self._by_name, self.cgroups, self.cluster.cni_socket, self._publish
        )
        self._folder: ObjectsFolder | None = None
        self._runs: dict[ObjectKey, asyncio.Task[None]] = {}
        self._ends: dict[ObjectKey, asyncio.Task[None]] = {}
        self._dns = ""
        self._dirty, self._changed = asyncio.Event(), asyncio.Condition()
        self._driver: asyncio.Task[None] | None = None
        self._log = get_logger("sandbox")

    async def __aenter__(self) -> Self:
        claimed = await sweep.claim(self.name)
        try:
            await self._bring_up(claimed)
        except BaseException:
            await uninterrupted(self._take_down())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await uninterrupted(self._take_down())

    async def _bring_up(self, claimed: state.SandboxState) -> None:
        self._folder = ObjectsFolder(self.paths.objects)
        self.paths.dns_hosts.touch()
        self._progress(f"network: {len(self.topology.nodes)} nodes and a switch between them")
        self.cgroups.create([node.name for node in self.topology.nodes])
        await netns.build(self.topology)
        await self.cluster.start(claimed.relay_tcp, claimed.web, self._progress)
        self.cluster.state(claimed).save(self.paths.state)
        self._driver = asyncio.create_task(self._drive(), name="pods")
        self._progress("cluster DNS")
        self.apply([*node_manifests(self.topology), *system_manifests()])
        await self.wait_ready(60.0)

    async def _take_down(self) -> None:
        if self._driver is not None:
            self._driver.cancel()
            await asyncio.gather(self._driver, return_exceptions=True)
        async with AsyncExitStack() as steps:  # a step that fails keeps none of the others from being taken
            steps.push_async_callback(sweep.remove, self.name)
            steps.callback(self.kubelet.close)
            steps.push_async_callback(self.processes.stop_all)
            steps.push_async_callback(self.cluster.stop)
            for ending in self._ends.values():
                ending.cancel()
            await asyncio.gather(*self._ends.values(), return_exceptions=True)
            pods = list(self.kubelet.pods.values())
            ends = await asyncio.gather(*(self._stop_pod(pod) for pod in pods), return_exceptions=True)
            if failed := [str(end) for end in ends if isinstance(end, BaseException)]:
                self._log.warning("pods did not end as they should", errors=failed)

    def apply(self, manifests: Sequence[Manifest]) -> list[str]:
        """Create or replace objects; agents see them at once, pods follow. Raises `Invalid`, `Conflict`."""
        told = self.store.apply(manifests)
        self._publish()
        self._dirty.set()
        return told

    def delete(self, keys: Sequence[ObjectKey]) -> list[str]:
        """Remove objects and what came of them. Raises `NotFound`."""
        told = self.store.delete(keys)
        self._publish()
        self._dirty.set()
        return told

    async def wait_ready(self, timeout: float) -> None:
        """Wait until every planned pod is ready; `Unavailable` names those that are not, and why."""
        try:
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(self._settled)
        except TimeoutError as error:
            late = [f"{pod.key}: {pod.message or 'not ready'}" for pod in self.kubelet.pods.values() if not pod.ready]
            raise Unavailable(f"not ready after {timeout:g} s: " + "; ".join(late)) from error

    def _settled(self) -> bool:
        pods = self.kubelet.pods
        return pods.keys() == self.store.planned_pods().keys() and all(is_ready(pod.document) for pod in pods.values())

    def _publish(self) -> None:
        """Let agents and the cluster's DNS know how things stand now."""
        if self._folder is None:
            return
        documents = [pod.document for pod in self.kubelet.pods.values()]
        self._folder.publish(self.store.for_agents(documents))
        records = dns_records(self.store.services(), documents)
        if records != self._dns:
            self._dns = records
            temporary = self.paths.dns_hosts.with_suffix(".tmp")
            temporary.write_text(records, encoding="utf-8")
            temporary.rename(self.paths.dns_hosts)
            self.kubelet.reload_dns()
        self._dirty.set()

    async def _drive(self) -> None:
        """Make the running pods those that are planned, whenever something changed."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            planned = self.store.planned_pods()
            running = [
                Running(key, owner_of(pod.document), pod.ready, key in self._ends)
                for key, pod in self.kubelet.pods.items()
            ]
            start, end = next_steps(planned, running, deployments_of(self.store.objects.values()))
            for key in end:
                self._ends[key] = asyncio.create_task(self._end_pod(self.kubelet.pods[key]), name=f"end {key}")
            for key in start:
                pod = self.kubelet.admit(planned[key])
                self._runs[key] = asyncio.create_task(self.kubelet.run(pod), name=f"pod {key}")
            for task in (*self._runs.values(), *self._ends.values()):
                if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                    raise error
            self._ends = {key: task for key, task in self._ends.items() if not task.done()}
            async with self._changed:
                self._changed.notify_all()

    async def _end_pod(self, pod: RunningPod) -> None:
        """Let a pod finish what it does, and end it."""
        await self._cancel_run(pod)
        await self.kubelet.terminate(pod)

    async def _cancel_run(self, pod: RunningPod) -> None:
        run = self._runs.pop(pod.key, None)
        if run is not None:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)

    async def _stop_pod(self, pod: RunningPod) -> None:
        await self._cancel_run(pod)
        await self.kubelet.stop(pod)

    async def watch(self) -> None:
        """Run until a part that a sandbox cannot do without fails; raises its error."""
        assert self._driver is not None
        watchers = [self._driver, asyncio.create_task(self.cluster.watch(), name="cluster")]
        try:
            done, _ = await asyncio.wait(watchers, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            watchers[1].cancel()


async def uninterrupted(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end even if the caller is cancelled meanwhile, as by a second Ctrl-C; then be cancelled."""
    task, cancelled = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError
