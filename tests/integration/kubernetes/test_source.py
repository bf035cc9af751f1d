"""What the Kubernetes source promises, against a server in memory and against a real one: the same tests."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from services.agent.sources.kubernetes import KubernetesSource, resources_for
from services.common.kube import client, reflector
from services.common.kube.resources import NETWORK_POLICIES, PODS, SERVICES
from services.model.objects import Pod, Service
from tests.integration.kubernetes.conftest import Cluster, Follower, replace_backoff


def labels(follower: Follower, name: str) -> dict[str, str]:
    """Of a pod."""
    thing = follower.known[name]
    assert isinstance(thing, Pod)
    return dict(thing.labels)


async def many(cluster: Cluster, first: int, last: int) -> None:
    for index in range(first, last):
        await cluster.create(f"s{index:03}")


async def test_what_is_there_then_in_sync_then_what_changes(cluster: Cluster) -> None:
    await cluster.create("a")
    await cluster.create("b")
    follower = cluster.follow()
    await follower.until(lambda: follower.synced)
    assert sorted(follower.told[:-1]) == ["+a", "+b"]
    assert follower.told[-1] == "synced"
    await cluster.create("c")
    await cluster.change("a", spec={"ports": [{"port": 81, "protocol": "TCP"}]})
    await cluster.delete("b")
    await follower.until(lambda: "-b" in follower.told)
    assert follower.told[3:] == ["+c", "+a", "-b"]
    thing = follower.known["a"]
    assert isinstance(thing, Service)
    assert [port.port for port in thing.ports] == [81]


async def test_pages(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "PAGE", 7)
    await many(cluster, 0, 30)
    follower = cluster.follow()
    await follower.until(lambda: follower.synced)
    assert follower.told == [*sorted(follower.told[:-1]), "synced"]
    assert len(follower.known) == 30


async def test_connections_that_break_in_the_middle_of_an_event(cluster: Cluster) -> None:
    follower = cluster.follow()
    await follower.until(lambda: follower.synced)
    cluster.faults.cut_watch_after = 2
    await many(cluster, 0, 20)
    for index in range(0, 20, 3):
        await cluster.delete(f"s{index:03}")
    await follower.until(lambda: len(follower.known) == 13)
    assert len([each for each in follower.told if each == "synced"]) == 1
    assert len(cluster.server.watches) > 5, "it resumed"
    assert cluster.server.asked.count(("list", "", "services")) == 1, "and listed once"


async def test_events_that_come_more_than_once_are_told_once(cluster: Cluster) -> None:
    cluster.faults.repeat_events = 3
    follower = cluster.follow()
    await follower.until(lambda: follower.synced)
    await many(cluster, 0, 5)
    await cluster.delete("s001")
    await follower.until(lambda: "-s001" in follower.told)
    assert sorted(follower.told) == ["+s000", "+s001", "+s002", "+s003", "+s004", "-s001", "synced"]


async def test_events_that_come_slowly(cluster: Cluster) -> None:
    cluster.faults.event_delay = 0.1
    follower = cluster.follow()
    await follower.until(lambda: follower.synced)
    await many(cluster, 0, 5)
    await follower.until(lambda: len(follower.known) == 5)


async def test_a_version_that_is_too_old_lists_again_and_tells_what_went_meanwhile(cluster: Cluster) -> None:
    await many(cluster, 0, 5)
    follower = cluster.follow()
    await follower.until(lambda: follower.synced)
    cluster.faults.cut_watch_after = 0
    cluster.faults.expire_watches = 3
    await cluster.delete("s000")
    await cluster.create("s005")
    await follower.until(lambda: set(follower.known) == {f"s{n:03}" for n in range(1, 6)})
    assert follower.told.count("+s001") == 1, "what stayed as it was is not told again"


async def test_a_kind_that_nobody_changes_is_watched_in_silence(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers say nothing at all then, not even a bookmark: that is no trouble, and no reason to list again."""
    monkeypatch.setattr(client, "QUIET_SECONDS", 0.1)
    follower = cluster.follow(NETWORK_POLICIES)
    await follower.until(lambda: follower.synced)
    troubles = set[str]()

    def watched() -> bool:
        troubles.update(follower.source.errors.values())
        return len(cluster.server.watches) > reflector.FRUITLESS_WATCHES + 1

    await follower.until(watched)
    assert not troubles
    assert cluster.server.asked.count(("list", "networking.k8s.io", "networkpolicies")) == 1
    policy = {"kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": {"podSelector": {}}}
    await cluster.api.create(
        NETWORK_POLICIES.collection_path(cluster.namespace), {"apiVersion": "networking.k8s.io/v1", **policy}
    )
    await follower.until(lambda: "p" in follower.known)


async def test_a_server_that_goes_away_and_comes_back(cluster: Cluster) -> None:
    await many(cluster, 0, 3)
    follower = cluster.follow()
    await follower.until(lambda: follower.synced)
    await cluster.server.stop()
    await asyncio.sleep(0.2)
    assert len(follower.known) == 3, "the last known state stays in force"
    assert "connection" in follower.source.errors
    await cluster.server.start()
    await cluster.create("s003")
    await cluster.delete("s000")
    await follower.until(lambda: set(follower.known) == {"s001", "s002", "s003"})
    await follower.until(lambda: not follower.source.errors)


@pytest.mark.parametrize("status", [429, 500, 503, 504, 302, 418])
async def test_answers_that_are_none(cluster: Cluster, status: int) -> None:
    cluster.faults.refuse = [status] * 4
    follower = cluster.follow()
    await follower.until(lambda: follower.synced)
    await follower.until(lambda: not follower.source.errors)


async def test_a_verb_that_is_forbidden_says_which_and_heals(cluster: Cluster) -> None:
    cluster.faults.allowed = lambda asked: asked[0] != "list"
    follower = cluster.follow()
    await follower.until(lambda: "connection" in follower.source.errors)
    assert "RBAC" in follower.source.errors["connection"]
    assert not follower.synced, "nothing was told, so nothing may be believed to be complete"
    cluster.faults.allowed = lambda asked: True
    await follower.until(lambda: follower.synced)
    await follower.until(lambda: not follower.source.errors)


async def test_without_the_right_to_watch_it_lists_again_and_again(cluster: Cluster) -> None:
    cluster.faults.allowed = lambda asked: asked[0] != "watch"
    follower = cluster.follow()
    await follower.until(lambda: follower.synced)
    await cluster.create("a")
    await follower.until(lambda: "a" in follower.known)
    await follower.until(lambda: "RBAC" in follower.source.errors.get("connection", ""))


async def test_objects_larger_than_a_buffer(cluster: Cluster) -> None:
    follower = cluster.follow()
    await follower.until(lambda: follower.synced)
    await cluster.create("big", metadata={"annotations": {"note": "x" * 250_000}})
    await cluster.create("after")
    await follower.until(lambda: {"big", "after"} <= set(follower.known))


async def test_pods_of_a_node_are_asked_for_by_the_server(cluster: Cluster) -> None:
    """A pod is told when it is bound to the node, and those of others never are."""
    pods = resources_for("ciliate-test")[0]
    assert pods.field_selector == "spec.nodeName=ciliate-test"
    resource = replace(pods, path=pods.collection_path(cluster.namespace))
    follower = Follower(KubernetesSource(cluster.client, resource, replace_backoff()))
    cluster.followers.append(follower)
    await follower.until(lambda: follower.synced)
    containers = [{"name": "c", "image": "none"}]
    await cluster.create("other", PODS, spec={"nodeName": "ciliate-test-2", "containers": containers})
    await cluster.create("mine", PODS, metadata={"labels": {"app": "web"}})
    await follower.until(lambda: "mine" in follower.known)
    assert set(follower.known) == {"mine"}
    assert labels(follower, "mine") == {"app": "web"}
    await cluster.change("mine", PODS, metadata={"labels": {"app": "db"}})
    await follower.until(lambda: labels(follower, "mine") == {"app": "db"})


async def test_a_selector_that_the_server_does_not_know_is_said_and_nothing_is_believed(cluster: Cluster) -> None:
    for resource in (replace(PODS, field_selector="spec.hostname=x"), replace(SERVICES, field_selector="spec.a=b")):
        follower = Follower(KubernetesSource(cluster.client, resource, replace_backoff()))
        cluster.followers.append(follower)
        await follower.until(lambda follower=follower: "field label not supported" in str(follower.source.errors))
        assert not follower.told


async def test_two_sources_of_one_client_do_not_disturb_each_other(cluster: Cluster) -> None:
    one, two = cluster.follow(), cluster.follow(PODS)
    await cluster.create("a")
    await cluster.create("p", PODS)
    await one.until(lambda: "a" in one.known)
    await two.until(lambda: "p" in two.known)
