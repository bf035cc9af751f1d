"""What our processes rely on of an API server, asked of both: a difference is a fault of the one in memory."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import CiliateError, Conflict, Denied, Invalid, NotFound
from services.common.kube.client import MERGE
from services.common.kube.resources import CILIATE_ENDPOINTS, CILIUM_POLICIES, DEFINITIONS, EVENTS, LEASES, SERVICES
from services.operator import definitions
from tests.integration.kubernetes.conftest import Cluster, service

Document = dict[str, Any]


async def refusal(call: Any) -> type[CiliateError] | None:
    """The kind of error that a request ends with."""
    try:
        await call
    except CiliateError as error:
        return type(error)
    return None


def policy(name: str, **fields: Any) -> Document:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"endpointSelector": {}},
        **fields,
    }


def endpoint(name: str, **fields: Any) -> Document:
    return {"apiVersion": "ciliate.io/v1", "kind": "CiliateEndpoint", "metadata": {"name": name}, **fields}


@pytest.fixture
async def defined(cluster: Cluster) -> Cluster:
    """With our kinds, as the operator installs them."""
    for wanted in definitions.shipped():
        if wanted["spec"]["names"]["kind"] in (CILIUM_POLICIES.kind, CILIATE_ENDPOINTS.kind):
            try:
                present = await cluster.api.list(DEFINITIONS.object_path(wanted["metadata"]["name"]), {})
            except NotFound:
                present = None
            write = definitions.plan(wanted, present)
            if write is not None and present is None:
                await cluster.api.create(DEFINITIONS.path, wanted)
    follower = cluster.follow(CILIUM_POLICIES)  # a definition is served some moments later
    await follower.until(lambda: follower.synced)
    return cluster


async def test_objects_are_made_once_and_changed_as_of_a_version(cluster: Cluster) -> None:
    api, path = cluster.api, SERVICES.collection_path(cluster.namespace)
    made = await api.create(path, service("a"))
    at = SERVICES.object_path("a", cluster.namespace)
    assert await refusal(api.create(path, service("a"))) is Conflict
    assert await refusal(api.create(path, {**service("b"), "metadata": {"name": "B"}})) is Invalid
    assert await refusal(api.list(SERVICES.object_path("b", cluster.namespace), {})) is NotFound
    assert await refusal(api.delete(SERVICES.object_path("b", cluster.namespace))) is NotFound
    assert await refusal(api.list(f"{path[: -len('services')]}nonsenses", {})) is NotFound
    old = made["metadata"]["resourceVersion"]
    changed = await api.patch(at, {"metadata": {"labels": {"a": "1", "b": "2"}}})
    assert changed["metadata"]["resourceVersion"] != old
    same = await api.patch(at, {"metadata": {"labels": {"a": "1"}}})
    assert same["metadata"]["resourceVersion"] == changed["metadata"]["resourceVersion"], "nothing changed"
    less = await api.patch(at, {"metadata": {"labels": {"a": None}}})
    assert less["metadata"]["labels"] == {"b": "2"}
    stale = {"metadata": {"resourceVersion": old, "labels": {"c": "3"}}}
    assert await refusal(api.patch(at, stale)) is Conflict
    assert await refusal(api.replace(at, made)) is Conflict
    await api.replace(at, {**less, "metadata": {**less["metadata"], "labels": {"d": "4"}}})
    assert (await api.list(at, {}))["metadata"]["labels"] == {"d": "4"}


async def test_nothing_is_made_in_a_namespace_that_is_not_there(cluster: Cluster) -> None:
    nowhere = SERVICES.collection_path(f"{cluster.namespace}-not")
    assert await refusal(cluster.api.create(nowhere, service("a"))) is NotFound
    assert (await cluster.api.list(nowhere, {}))["items"] == []


async def test_a_status_is_written_apart(cluster: Cluster) -> None:
    api, at = cluster.api, SERVICES.object_path("a", cluster.namespace)
    condition = {"type": "example.com/Told", "status": "True", "reason": "R", "message": ""}
    condition["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    await cluster.create("a", status={"conditions": [condition]})
    assert not (await api.list(at, {})).get("status", {}).get("conditions"), "who creates says nothing about the state"
    await api.patch(at, {"status": {"conditions": [condition]}})
    assert not (await api.list(at, {})).get("status", {}).get("conditions")
    await api.patch(f"{at}/status", {"spec": {"sessionAffinity": "ClientIP"}, "status": {"conditions": [condition]}})
    after = await api.list(at, {})
    assert (after["spec"].get("sessionAffinity", "None"), after["status"]["conditions"]) == ("None", [condition])


async def test_leases_are_taken_by_one(cluster: Cluster) -> None:
    api, path = cluster.api, LEASES.collection_path(cluster.namespace)
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {}}
    made = await api.create(path, lease)
    at = LEASES.object_path("l", cluster.namespace)
    mine = {**made, "spec": {"holderIdentity": "one", "renewTime": "2026-01-01T00:00:00.000000Z"}}
    await api.replace(at, mine)
    assert await refusal(api.replace(at, {**mine, "spec": {"holderIdentity": "two"}})) is Conflict
    assert (await api.list(at, {}))["spec"]["holderIdentity"] == "one"


async def test_events_are_where_their_object_is(cluster: Cluster) -> None:
    event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "reason": "r", "message": "m"}
    node = {"apiVersion": "v1", "kind": "Node", "name": "n"}
    path = EVENTS.collection_path(cluster.namespace)
    assert await refusal(cluster.api.create(path, {**event, "involvedObject": node})) is Invalid
    there = {**node, "kind": "Pod", "namespace": cluster.namespace}
    await cluster.api.create(path, {**event, "involvedObject": there})


async def test_defined_kinds_have_a_schema_a_status_and_generations(defined: Cluster) -> None:
    api, path = defined.api, CILIUM_POLICIES.collection_path(defined.namespace)
    wrong = policy("w", spec={"endpointSelector": {"matchLabels": "app=web"}})
    with pytest.raises(Invalid, match=r"spec\.endpointSelector\.matchLabels"):
        await api.create(path, wrong)
    made = await api.create(path, policy("p", status={"conditions": []}, spec={"endpointSelector": {}, "later": 1}))
    at = CILIUM_POLICIES.object_path("p", defined.namespace)
    assert "status" not in made
    assert made["spec"]["later"] == 1, (
        "a field of a later version is kept: without it the policy would mean another thing"
    )
    assert made["metadata"]["generation"] == 1
    condition = {"type": "Valid", "status": "True", "reason": "Accepted", "message": ""}
    condition["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    told = await api.patch(f"{at}/status", {"spec": {"later": 2}, "status": {"conditions": [condition]}})
    assert (told["spec"]["later"], told["status"]["conditions"]) == (1, [condition])
    assert told["metadata"]["generation"] == 1
    after = await api.patch(at, {"spec": {"later": 3}, "status": {"conditions": []}})
    assert (after["metadata"]["generation"], after["status"]["conditions"]) == (2, [condition])
    bare = {**after, "metadata": {"name": "p"}}
    assert await refusal(api.replace(at, bare)) is Invalid, "of which version?"


async def test_kinds_that_keep_no_unknown_fields_drop_them(defined: Cluster) -> None:
    path = CILIATE_ENDPOINTS.collection_path(defined.namespace)
    made = await defined.api.create(path, endpoint("e", node="n", nonsense=1, identity={"id": 300, "x": 1}))
    assert (made["node"], made["identity"]) == ("n", {"id": 300})
    assert "nonsense" not in made


async def test_merges_need_their_own_media_type(cluster: Cluster) -> None:
    await cluster.create("a")
    at = SERVICES.object_path("a", cluster.namespace)
    assert MERGE == "application/merge-patch+json"
    changed = await cluster.api.patch(at, {"spec": {"ports": [{"name": "x", "port": 81, "protocol": "TCP"}]}})
    assert [port["port"] for port in changed["spec"]["ports"]] == [81], "a list is replaced"


async def test_who_may_not_is_told_so(cluster: Cluster) -> None:
    cluster.faults.allowed = lambda asked: False
    assert await refusal(cluster.client.list(SERVICES.collection_path(cluster.namespace), {})) is Denied
