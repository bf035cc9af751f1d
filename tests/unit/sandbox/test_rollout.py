"""Deployments change while they serve: never fewer ready pods than replicas, and in the end only new ones."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.model.objects import ObjectKey
from services.sandbox.controller import plan_pods
from services.sandbox.rollout import Running, deployments_of, next_steps, owner_of

NODES = ("node1", "node2")


def deployment(replicas: int = 3, image: str = "nginx", **strategy: Any) -> dict[str, Any]:
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"image": image}]}}
    spec = {"replicas": replicas, "template": template, **({"strategy": strategy} if strategy else {})}
    return {"kind": "Deployment", "metadata": {"name": "web", "namespace": "default"}, "spec": spec}


class Cluster:
    """Pods that become ready and go when told to."""

    def __init__(self) -> None:
        self.objects: list[dict[str, Any]] = []
        self.pods: dict[ObjectKey, Running] = {}

    def step(self, ready: bool, gone: bool) -> bool:
        """One round; whether anything happened."""
        planned = plan_pods(self.objects, NODES)
        owners = {key: owner_of(document) for key, document in planned.items()}
        start, end = next_steps(planned, list(self.pods.values()), deployments_of(self.objects))
        for key in end:
            assert not self.pods[key].ending
            self.pods[key] = Running(key, self.pods[key].owner, self.pods[key].ready, True)
        for key in start:
            assert key not in self.pods
            self.pods[key] = Running(key, owners[key], False, False)
        moved = bool(start or end)
        waiting = [pod for pod in self.pods.values() if not pod.ready and not pod.ending]
        if ready and waiting:
            pod = min(waiting, key=lambda pod: pod.key)
            self.pods[pod.key] = Running(pod.key, pod.owner, True, False)
            moved = True
        leaving = [key for key, pod in self.pods.items() if pod.ending]
        if gone and leaving:
            del self.pods[min(leaving)]
            moved = True
        return moved

    def settle(self) -> None:
        for _ in range(1000):
            if not self.step(True, True):
                return
        raise AssertionError("never settles")

    @property
    def serving(self) -> int:
        return sum(pod.ready and not pod.ending for pod in self.pods.values())


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([1, 2, "50%", "nonsense"]),
    st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40),
)
def test_a_change_never_serves_with_fewer(before: int, after: int, surge: Any, rounds: list[tuple[bool, bool]]) -> None:
    cluster = Cluster()
    cluster.objects = [deployment(before)]
    cluster.settle()
    assert cluster.serving == before
    cluster.objects = [deployment(after, "nginx:2", rollingUpdate={"maxSurge": surge})]
    for ready, gone in rounds:
        cluster.step(ready, gone)
        assert cluster.serving >= min(before, after)
    cluster.settle()
    assert cluster.pods.keys() == plan_pods(cluster.objects, NODES).keys()
    assert cluster.serving == after


def test_one_more_at_a_time() -> None:
    cluster = Cluster()
    cluster.objects = [deployment(3)]
    cluster.settle()
    cluster.objects = [deployment(3, "nginx:2")]
    cluster.step(False, False)
    assert len(cluster.pods) == 4


def test_recreate_ends_all_first() -> None:
    cluster = Cluster()
    cluster.objects = [deployment(2)]
    cluster.settle()
    cluster.objects = [deployment(2, "nginx:2", type="Recreate")]
    cluster.step(False, False)
    assert all(pod.ending for pod in cluster.pods.values())
    cluster.settle()
    assert cluster.serving == 2


@pytest.mark.parametrize("left", [[], [deployment(1)]])
def test_what_is_not_wanted_goes(left: list[dict[str, Any]]) -> None:
    cluster = Cluster()
    cluster.objects = [deployment(3)]
    cluster.settle()
    cluster.objects = left
    cluster.settle()
    assert len(cluster.pods) == len(plan_pods(left, NODES))
