"""The suite on a Kubernetes cluster: objects by server-side apply, requests by exec in pods of ours.

While it is open there is a pod with host network on every node that is used: requests from nodes are made there, and
it is the nodes' web server. A client outside of the cluster there is none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from services.cli.connectivity.cluster import OWNER_LABEL, Document, Facts, Node, Place, World
from services.cli.connectivity.objects import ECHO, IMAGE
from services.cli.kube import Kubernetes
from services.common.errors import NotFound, Unavailable

HOST_PORT = 18080
HOST_NAMESPACE = "ciliate-test-nodes"
_CLUSTER_SCOPED = (
    "Namespace",
    "Node",
    "CiliumClusterwideNetworkPolicy",
    "CiliumCIDRGroup",
    "CiliumEgressGatewayPolicy",
)
_MOST_NODES = 2
READY_SECONDS = 120.0


class KubernetesCluster:
    """The cluster of a kubeconfig. Two schedulable nodes are used."""

    def __init__(self, kubeconfig: str, context: str, world: World | None, image: str = IMAGE) -> None:
        self._kubernetes, self._world, self._image = Kubernetes(kubeconfig, context), world, image
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Facts:
        try:
            await self._stack.enter_async_context(self._kubernetes)
            return await self._open()
        except BaseException:
            await self._stack.aclose()
            raise

    async def __aexit__(self, *problem: object) -> None:
        await self._stack.aclose()

    async def _open(self) -> Facts:
        usable = [document for document in await self.get("Node") if _takes_pods(document)]
        if not usable:
            raise NotFound("the cluster has no node that is ready and takes pods; see: kubectl get nodes")
        nodes = tuple(_node(document) for document in usable[:_MOST_NODES])
        labels = {
            OWNER_LABEL: "true",
            "pod-security.kubernetes.io/enforce": "privileged",
        }
        place = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HOST_NAMESPACE, "labels": labels}}
        self._stack.push_async_callback(self.delete, [place])
        await self.apply([place, *(_host_pod(node.name, self._image) for node in nodes)])
        await self.wait_ready([HOST_NAMESPACE], READY_SECONDS)
        return Facts(nodes, self._world, HOST_PORT, frozenset({"pod", "node"}))

    async def apply(self, documents: Sequence[Document]) -> None:
        for document in documents:
            await self._kubernetes.apply(document)

    async def delete(self, documents: Sequence[Document]) -> None:
        for document in documents:
            metadata = document["metadata"]
            namespace = "" if document["kind"] in _CLUSTER_SCOPED else metadata.get("namespace", "")
            await self._kubernetes.delete(document["kind"], namespace, metadata["name"])
        await self._until_gone([d["metadata"]["name"] for d in documents if d["kind"] == "Namespace"])

    async def _until_gone(self, namespaces: Sequence[str]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while namespaces and time.monotonic() < deadline:
            known = {each["metadata"]["name"] for each in await self.get("Namespace")}
            namespaces = [name for name in namespaces if name in known]
            await asyncio.sleep(0.5 if namespaces else 0)
        if namespaces:
            raise Unavailable(f"namespaces are still ending after {READY_SECONDS:g} s: {', '.join(namespaces)}")

    async def wait_ready(self, namespaces: Sequence[str], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            pods = [pod for name in namespaces for pod in await self.get("Pod", name)]
            late = [f"{pod['metadata']['name']}: {_why(pod)}" for pod in pods if not _ready(pod)]
            if pods and not late:
                return
            if time.monotonic() > deadline:
                raise Unavailable(f"pods are not ready after {seconds:g} s: {'; '.join(late) or 'there are none'}")
            await asyncio.sleep(0.5)

    async def get(self, kind: str, namespace: str = "") -> Sequence[Document]:
        return await self._kubernetes.list(kind, namespace)

    async def run(self, place: Place, command: Sequence[str], seconds: float) -> tuple[int, str, str]:
        if place.kind == "outside":
            raise NotFound("there is no client outside of the cluster")
        namespace, pod = (place.namespace, place.name) if place.kind == "pod" else (HOST_NAMESPACE, place.name)
        return await self._kubernetes.exec(namespace, pod, command, seconds)


def _host_pod(node: str, image: str) -> Document:
    command = ["python3", "-c", ECHO.read_text(encoding="utf-8"), node, str(HOST_PORT)]
    container = {"name": "host", "image": image, "command": command}
    spec = {
        "nodeName": node,
        "hostNetwork": True,
        "terminationGracePeriodSeconds": 0,
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": node, "namespace": HOST_NAMESPACE}, "spec": spec}


def _node(document: Document) -> Node:
    addresses = [e["address"] for e in document["status"]["addresses"] if e["type"] == "InternalIP"]
    return Node(document["metadata"]["name"], tuple(addresses))


def _takes_pods(node: Document) -> bool:
    taints = (node.get("spec") or {}).get("taints") or ()
    return _ready(node) and not any(taint.get("effect") in ("NoSchedule", "NoExecute") for taint in taints)


def _ready(document: Document) -> bool:
    conditions: Sequence[Any] = (document.get("status") or {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _why(pod: Document) -> str:
    """Why a pod is not ready, in the cluster's own words."""
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting:
            return str(waiting.get("message") or waiting.get("reason"))
    return str(status.get("message") or status.get("phase") or "not started")
