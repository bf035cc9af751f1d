"""What the endpoints need to know about pods: labels, ports, and when a pod appears. Fed with every update."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from services.common.errors import Unavailable
from services.model.label_filter import LabelFilter
from services.model.labels import Labels, pod_identity_labels
from services.model.objects import POOL_ANNOTATION, Deleted, Namespace, ObjectKey, Pod, Update, Upserted


class PodDirectory:
    """Pods and namespaces as last told. A deleted pod is forgotten here; its endpoint keeps its labels until DEL."""

    def __init__(self, cluster: str, label_filter: LabelFilter) -> None:
        self._cluster, self._filter = cluster, label_filter
        self._pods: dict[tuple[str, str], Pod] = {}
        self._namespaces: dict[str, Namespace] = {}
        self._waiting: dict[tuple[str, str], list[asyncio.Future[None]]] = {}

    def observe(self, update: Update) -> bool:
        """Take note; True when labels or ports of some pod may have changed."""
        match update:
            case Upserted(object=Pod() as pod):
                known = self._pods.get((pod.namespace, pod.name))
                self._pods[pod.namespace, pod.name] = pod
                self._wake(pod)
                return known is None or (known.labels, known.ports, known.service_account) != (
                    pod.labels,
                    pod.ports,
                    pod.service_account,
                )
            case Upserted(object=Namespace() as namespace):
                known_namespace = self._namespaces.get(namespace.name)
                self._namespaces[namespace.name] = namespace
                return known_namespace != namespace
            case Deleted(key=ObjectKey(kind="Pod") as key):
                self._pods.pop((key.namespace, key.name), None)
            case Deleted(key=ObjectKey(kind="Namespace") as key):
                self._namespaces.pop(key.name, None)
            case _:
                pass
        return False

    def get(self, namespace: str, name: str) -> Pod | None:
        """The pod, if it is known."""
        return self._pods.get((namespace, name))

    def all(self) -> Iterable[Pod]:
        """Every pod known."""
        return self._pods.values()

    def labels(self, pod: Pod) -> Labels:
        """The labels that make the pod's identity."""
        namespace = self._namespaces.get(pod.namespace)
        found = pod_identity_labels(
            pod.labels,
            pod.namespace,
            namespace.labels if namespace else {"kubernetes.io/metadata.name": pod.namespace},
            pod.service_account,
            self._cluster,
        )
        return self._filter.apply(found)

    def pool(self, pod: Pod) -> str:
        """The pool that its addresses come from: its own wish, else its namespace's; '' = the default one."""
        namespace = self._namespaces.get(pod.namespace)
        return pod.annotations.get(POOL_ANNOTATION) or (namespace.pool if namespace else "")

    async def wait_for(self, namespace: str, name: str, seconds: float) -> Pod:
        """The pod, as soon as it is known: the runtime may be faster than the watch. Raises `Unavailable`."""
        if pod := self._pods.get((namespace, name)):
            return pod
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((namespace, name), []).append(waiter)
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except TimeoutError as error:
            raise Unavailable(f"pod {namespace}/{name} is not known yet: no such object after {seconds:g} s") from error
        finally:
            waiters = self._waiting.get((namespace, name), [])
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters:
                self._waiting.pop((namespace, name), None)
        return self._pods[namespace, name]

    def _wake(self, pod: Pod) -> None:
        for waiter in self._waiting.pop((pod.namespace, pod.name), ()):
            if not waiter.done():
                waiter.set_result(None)
