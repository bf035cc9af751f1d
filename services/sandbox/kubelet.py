"""The kubelet's part: a planned Pod becomes a network namespace, an interface by CNI, a running program, a status.

A pod is one program in namespaces of its own (network, mount, PID, host name); ending it ends all that was ever
started in it. Ready means that the program was really asked: a TCP connection from the node to a declared port.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.common.errors import CiliateError, NotFound, Unavailable
from services.common.log import get_logger
from services.common.retry import Backoff
from services.model.objects import ObjectKey
from services.sandbox import cni, ending, netns, state
from services.sandbox.cgroups import Cgroups
from services.sandbox.images import PodPlace, Program, image_of
from services.sandbox.manifests import Document, key_of
from services.sandbox.pod_files import hosts_file, resolv_conf, write_files
from services.sandbox.processes import Child, Processes

_PROBE_SECONDS = 0.5
TOLD_SECONDS = 1.0
"""How long a terminating pod goes on serving: until every node has heard that it gets nothing new."""

_START = """\
mount --bind "$CILIATE_POD/resolv.conf" /etc/resolv.conf
mount --bind "$CILIATE_POD/hosts" /etc/hosts
mount -t proc proc /proc
hostname "$CILIATE_POD_NAME"
cd "$CILIATE_POD"
exec "$@"
"""
"""What the first process of a pod does before it becomes the program."""


@dataclass(slots=True)
class RunningPod:
    """A Pod and what runs of it. `document` carries the status that agents and people see."""

    key: ObjectKey
    document: Document
    netns: str
    program: Program | None = None
    child: Child | None = None
    attachment: cni.Attachment | None = None
    addresses: list[str] = field(default_factory=list)
    ready: bool = False
    message: str = "waiting"
    restarts: int = 0

    @property
    def pid(self) -> int:
        """The pod's first process as the machine numbers it; 0 while there is none."""
        if self.child is None or not self.child.running:
            return 0
        try:
            text = Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text(encoding="ascii")
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return int(text.split()[0]) if text.split() else 0


class Kubelet:
    """Runs Pods. `changed` is called whenever a Pod's status is another one; `cni_socket` finds a node's socket."""

    def __init__(
        self,
        paths: state.Paths,
        processes: Processes,
        nodes: Mapping[str, netns.NodeNet],
        cgroups: Cgroups,
        cni_socket: Callable[[str], str],
        changed: Callable[[], None],
    ) -> None:
        self._paths, self._processes, self._nodes, self._cgroups = paths, processes, nodes, cgroups
        self._cni_socket, self._changed = cni_socket, changed
        self._sockets = netns.SocketMaker()
        self._log = get_logger("kubelet")
        self.pods: dict[ObjectKey, RunningPod] = {}

    def admit(self, document: Document) -> RunningPod:
        """Take note of a planned Pod: it is Pending from now on."""
        key = key_of(document)
        metadata = {"uid": str(uuid.uuid4()), **document["metadata"]}
        pod = RunningPod(
            key, {**document, "metadata": metadata}, f"{self._paths.netns_prefix}{key.namespace}.{key.name}"
        )
        self.pods[key] = pod
        self._report(pod, "waiting for its node")
        return pod

    async def run(self, pod: RunningPod) -> None:
        """Bring a Pod up and keep it up until cancelled; failures are told in its status and tried again."""
        backoff = Backoff(0.2, 5.0)
        async for _ in backoff:
            try:
                await self._start(pod)
                backoff.reset()
                assert pod.child is not None
                await pod.child.process.wait()
                raise pod.child.died()
            except CiliateError as error:
                pod.ready, pod.restarts = False, pod.restarts + 1
                self._report(pod, str(error))
                self._log.warning("pod failed", pod=str(pod.key), error=str(error))
                await self._take_down(pod)

    async def terminate(self, pod: RunningPod) -> None:
        """End a Pod whose `run` was cancelled as Kubernetes does: all are told, it serves on until they have heard it,
        it is asked to end, and it is ended when its grace is over."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        pod.document = {**pod.document, "metadata": {**pod.document["metadata"], "deletionTimestamp": now}}
        self._report(pod, "terminating")
        if pod.ready and pod.child is not None:
            await asyncio.sleep(max(TOLD_SECONDS, ending.pre_stop_seconds(pod.document)))
            number = pod.program.stop_signal if pod.program else signal.SIGTERM
            await ending.ask(pod.pid, pod.child.process, number, ending.grace_seconds(pod.document))
        await self.stop(pod)

    async def stop(self, pod: RunningPod) -> None:
        """End a Pod whose `run` was cancelled at once, and forget it."""
        await self._take_down(pod)
        self.pods.pop(pod.key, None)
        self._changed()

    async def _start(self, pod: RunningPod) -> None:
        node = pod.document["spec"]["nodeName"]
        await netns.run("ip", "netns", "add", pod.netns)
        await netns.in_netns(pod.netns, "ip link set lo up; echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad")
        container_id = uuid.uuid4().hex
        pod.attachment = cni.Attachment(
            container_id, pod.netns, pod.key.namespace, pod.key.name, self._cni_socket(node)
        )
        pod.addresses = await cni.add(pod.attachment)
        self._report(pod, "starting its program")
        await self._start_program(pod)
        await self._wait_ready(pod)
        pod.ready = True
        self._report(pod, "")

    async def _start_program(self, pod: RunningPod) -> None:
        directory = self._paths.pod(pod.key.namespace, pod.key.name)
        directory.mkdir(parents=True, exist_ok=True)
        container = pod.document["spec"]["containers"][0]
        place = PodPlace(pod.key.name, pod.key.namespace, str(directory), str(self._paths.dns_hosts))
        program = image_of(container["image"], f"{pod.key}: image").build(place, container)
        pod.program = program
        files = dict(program.files)
        files[str(directory / "resolv.conf")] = resolv_conf(pod.key.namespace)
        files[str(directory / "hosts")] = hosts_file(pod.key.name, pod.addresses)
        write_files(files)
        environment = {
            "CILIATE_POD": str(directory),
            "CILIATE_POD_NAME": pod.key.name,
            **{entry["name"]: str(entry.get("value", "")) for entry in container.get("env") or ()},
        }
        pod.child = await self._processes.start(
            f"pod-{pod.key.namespace}-{pod.key.name}",
            self._join(
                pod,
                [
                    *(
                        "unshare",
                        "--mount",
                        "--uts",
                        "--pid",
                        "--fork",
                        "--kill-child=KILL",
                        "--propagation",
                        "private",
                    ),
                    *("--", "sh", "-ec", _START, "pod"),
                    *program.arguments,
                ],
            ),
            netns=pod.netns,
            log=directory / "program.log",
            environment=environment,
        )

    def _join(self, pod: RunningPod, arguments: list[str]) -> list[str]:
        return self._cgroups.join(arguments, pod.document["spec"]["nodeName"], f"{pod.key.namespace}.{pod.key.name}")

    async def _wait_ready(self, pod: RunningPod) -> None:
        assert pod.child is not None
        ports = [
            int(port["containerPort"])
            for port in pod.document["spec"]["containers"][0].get("ports") or ()
            if port.get("protocol", "TCP") == "TCP"
        ]
        node = self._nodes[pod.document["spec"]["nodeName"]]
        while not pod.pid:
            await self._pause(pod.child)
        self._processes.record(pod.pid, f"pod {pod.key}")
        while not await self._answers(node.netns, pod.addresses, ports):
            await self._pause(pod.child)

    @staticmethod
    async def _pause(child: Child) -> None:
        if not child.running:
            raise child.died()
        await asyncio.sleep(0.03)

    async def _answers(self, node_netns: str, addresses: list[str], ports: list[int]) -> bool:
        """Whether every port of the pod's first address accepts a connection from its node."""
        loop = asyncio.get_running_loop()
        for port in ports:
            family = socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET
            with await self._sockets.make(node_netns, family) as probe:
                try:
                    async with asyncio.timeout(_PROBE_SECONDS):
                        await loop.sock_connect(probe, (addresses[0], port))
                except (OSError, TimeoutError):
                    return False
        return True

    async def _take_down(self, pod: RunningPod) -> None:
        pod.ready = False
        if pod.child is not None:
            if first := pod.pid:
                # The first process of a PID namespace takes all others along; `unshare` then ends by itself. Killing
                # only `unshare` is not enough: a program that changes its user forgets its parent-death signal.
                with contextlib.suppress(ProcessLookupError, TimeoutError):
                    os.kill(first, signal.SIGKILL)
                    await asyncio.wait_for(pod.child.process.wait(), 5.0)
            await self._processes.kill(pod.child)
            pod.child = None
        if pod.attachment is not None:
            with contextlib.suppress(CiliateError):  # the agent may be gone; removing the namespace ends the interface
                await cni.delete(pod.attachment)
            pod.attachment = None
        if (state.NETNS_ROOT / pod.netns).exists():
            await netns.run("ip", "netns", "del", pod.netns)
        pod.addresses = []
        self._cgroups.drop(pod.document["spec"]["nodeName"], f"{pod.key.namespace}.{pod.key.name}")

    def _report(self, pod: RunningPod, message: str) -> None:
        pod.message = message
        pod.document = {**pod.document, "status": pod_status(pod)}
        self._changed()

    def reload_dns(self) -> None:
        """Tell programs that serve the cluster's names that the records changed."""
        for pod in self.pods.values():
            if pod.program is not None and pod.program.reload_signal and pod.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pod.pid, signal.Signals(pod.program.reload_signal))

    async def exec(self, key: ObjectKey, arguments: list[str], timeout: float = 30.0) -> tuple[int, str, str]:
        """Run a command in a pod; returns (status, output, errors). Raises `NotFound`, `Unavailable`."""
        pod = self.pods.get(key)
        if pod is None or not pod.pid:
            raise NotFound(f"{key}: no such pod is running; see: ciliate sandbox status")
        process = await asyncio.create_subprocess_exec(
            # `timeout` runs inside: ending nsenter would leave its child in the pod
            *self._join(pod, enter(pod.pid, ["timeout", "-k", "1", f"{timeout:g}", *arguments])),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            stdin=asyncio.subprocess.DEVNULL,
        )
        output, errors = await process.communicate()
        if process.returncode in {124, 137}:
            raise Unavailable(f"{key}: {' '.join(arguments)}: not done in {timeout:g} s")
        return process.returncode or 0, output.decode(errors="replace"), errors.decode(errors="replace")

    async def socket_in(
        self, namespace: str, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM
    ) -> socket.socket:
        """A socket of a network namespace (TCP), usable from here."""
        return await self._sockets.make(namespace, family, kind)

    def close(self) -> None:
        """End helper threads."""
        self._sockets.close()


def enter(pid: int, arguments: list[str]) -> list[str]:
    """The command line that runs `arguments` in the namespaces of the process `pid`."""
    return ["nsenter", "-t", str(pid), "--mount", "--uts", "--net", "--pid", "--", *arguments]


def pod_status(pod: RunningPod) -> dict[str, Any]:
    """The Kubernetes status of a Pod."""
    ready = "True" if pod.ready else "False"
    found: dict[str, Any] = {
        "phase": "Running" if pod.child is not None else "Pending",
        "conditions": [{"type": "Ready", "status": ready, **({"message": pod.message} if pod.message else {})}],
    }
    if pod.addresses:
        found |= {"podIP": pod.addresses[0], "podIPs": [{"ip": address} for address in pod.addresses]}
    return found
