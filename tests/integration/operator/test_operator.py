"""The operator's chores, end to end: objects in, objects out, and what happens when things go wrong."""

from __future__ import annotations

import asyncio
import ipaddress
from itertools import combinations
from typing import Any

from services.operator.definitions import REVISION, shipped
from tests.integration.operator.conftest import Cluster, Start, eventually

NODES = "/apis/ciliate.io/v1/ciliatenodes"
POOLS = "/apis/ciliate.io/v1/ciliatepodippools"
LB_POOLS = "/apis/cilium.io/v2/ciliumloadbalancerippools"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
KINDS = len(shipped())
TAINT = {"key": "node.ciliate.io/agent-not-ready", "effect": "NoSchedule"}


def blocks(cluster: Cluster, node: str) -> list[str]:
    return [text for each in cluster.get(f"{NODES}/{node}")["spec"]["ipam"]["pools"] for text in each["cidrs"]]


def condition(document: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(each for each in document["status"]["conditions"] if each["type"] == kind)


async def test_definitions_are_installed_and_others_are_left_alone(cluster: Cluster, start: Start) -> None:
    foreign = next(each for each in shipped() if each["spec"]["names"]["plural"] == "ciliumnetworkpolicies")
    foreign["metadata"] = {"name": foreign["metadata"]["name"], "annotations": {"someone": "else"}}
    cluster.put(DEFINITIONS, foreign["metadata"]["name"], metadata=foreign["metadata"], spec=foreign["spec"])
    await start()
    await eventually(lambda: len(cluster.all(DEFINITIONS)) == KINDS)
    kept = cluster.get(f"{DEFINITIONS}/ciliumnetworkpolicies.cilium.io")
    assert kept["metadata"]["annotations"] == {"someone": "else"}


async def test_an_older_definition_of_ours_is_upgraded_a_newer_one_is_not(cluster: Cluster, start: Start) -> None:
    for plural, revision in (("ciliatenodes", "0"), ("ciliatepodippools", "99")):
        old = next(each for each in shipped() if each["spec"]["names"]["plural"] == plural)
        old["metadata"]["annotations"][REVISION] = revision
        version = old["spec"]["versions"][0]
        version["schema"]["openAPIV3Schema"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        old["spec"]["versions"].append({**version, "name": "v0", "storage": False})
        old["status"] = {"storedVersions": ["v0", "v1"], "conditions": [{"type": "Established", "status": "True"}]}
        cluster.put(
            DEFINITIONS, old["metadata"]["name"], metadata=old["metadata"], spec=old["spec"], status=old["status"]
        )
    await start()

    def upgraded() -> Any:
        return cluster.get(f"{DEFINITIONS}/ciliatenodes.ciliate.io")["metadata"]["annotations"][REVISION] == "1"

    await eventually(upgraded)
    versions = cluster.get(f"{DEFINITIONS}/ciliatenodes.ciliate.io")["spec"]["versions"]
    assert [each["name"] for each in versions] == ["v1", "v0"], "a version that objects are kept in stays"
    await eventually(lambda: len(cluster.all(DEFINITIONS)) == KINDS)
    untouched = cluster.get(f"{DEFINITIONS}/ciliatepodippools.ciliate.io")
    assert untouched["metadata"]["annotations"][REVISION] == "99"


async def test_every_node_gets_blocks_of_both_families_and_they_go_with_it(cluster: Cluster, start: Start) -> None:
    await start(cluster_pool_cidr=["10.0.0.0/16", "fd00::/112"])
    for name in ("a", "b", "c"):
        cluster.node(name)
    found = [await eventually(lambda name=name: blocks(cluster, name)) for name in ("a", "b", "c")]
    assert all(len(each) == 2 for each in found)
    networks = [ipaddress.ip_network(text) for each in found for text in each]
    assert not any(x.overlaps(y) for x, y in combinations(networks, 2) if x.version == y.version)
    await eventually(lambda: condition(cluster.get(f"{NODES}/a"), "Ready")["status"] == "True")
    cluster.store.delete(_at("/api/v1/nodes/b"))  # a renamed node is a node that goes and another that comes
    assert not any(each["metadata"]["name"] == "b" for each in cluster.all(NODES)), "its owner is gone"
    cluster.node("b2")
    assert not set(await eventually(lambda: blocks(cluster, "b2"))) & {t for each in found for t in each}


async def test_a_lost_object_does_not_give_its_nodes_addresses_to_another(cluster: Cluster, start: Start) -> None:
    cluster.node("a")
    cluster.node("b")
    running = {"phase": "Running", "podIP": "10.0.0.5", "podIPs": [{"ip": "10.0.0.5"}]}
    cluster.put("/api/v1/pods", "web", "default", spec={"nodeName": "b"}, status=running)
    await start(cluster_pool_cidr=["10.0.0.0/16"])
    await eventually(lambda: blocks(cluster, "b") == ["10.0.0.0/24"])
    assert blocks(cluster, "a") == ["10.0.1.0/24"]


async def test_an_exhausted_pool_is_told_and_healed_by_a_range(cluster: Cluster, start: Start) -> None:
    await start()
    await eventually(lambda: len(cluster.all(DEFINITIONS)) == KINDS)
    pool = {"ipv4": {"cidrs": ["10.9.0.0/24"], "maskSize": 24}}
    cluster.put(POOLS, "default", spec=pool)
    await eventually(lambda: condition(cluster.get(f"{POOLS}/default"), "Valid")["status"] == "True")
    cluster.node("a")
    await eventually(lambda: blocks(cluster, "a"))
    cluster.node("b")
    await eventually(lambda: condition(cluster.get(f"{NODES}/b"), "Ready")["status"] == "False")
    await eventually(lambda: "no free IPv4 block" in condition(cluster.get(f"{NODES}/b"), "Ready")["message"])
    await eventually(lambda: condition(cluster.get(f"{POOLS}/default"), "Exhausted")["status"] == "True")
    events = await eventually(lambda: [e for e in cluster.all("/api/v1/events") if e["involvedObject"]["name"] == "b"])
    assert [(e["reason"], e["type"]) for e in events] == [("PodRangeProblem", "Warning")]
    cluster.set(f"{POOLS}/default", spec={"ipv4": {"cidrs": ["10.9.0.0/24", "10.10.0.0/24"]}})
    assert await eventually(lambda: blocks(cluster, "b")) == ["10.10.0.0/24"]
    await eventually(lambda: condition(cluster.get(f"{NODES}/b"), "Ready")["status"] == "True")
    await eventually(lambda: cluster.get(f"{POOLS}/default")["status"]["blocks"]["ipv4"] == {"total": 2, "used": 2})


async def test_pods_that_name_a_pool_bring_their_node_blocks_of_it(cluster: Cluster, start: Start) -> None:
    await start()
    await eventually(lambda: len(cluster.all(DEFINITIONS)) == KINDS)
    cluster.put(POOLS, "gold", spec={"ipv4": {"cidrs": ["10.50.0.0/24"], "maskSize": 28}})
    cluster.node("a")
    cluster.put("/api/v1/namespaces", "rich", metadata={"annotations": {"ipam.ciliate.io/pool": "gold"}})
    for index in range(15):
        cluster.put("/api/v1/pods", f"p{index}", "rich", spec={"nodeName": "a"})
    cluster.put("/api/v1/pods", "host", "rich", spec={"nodeName": "a", "hostNetwork": True})
    found = await eventually(
        lambda: len(got := [t for t in blocks(cluster, "a") if t.startswith("10.50.")]) > 1 and got
    )
    assert found == ["10.50.0.0/28", "10.50.0.16/28"], "15 pods and some to spare do not fit into 13 addresses"


async def test_ranges_out_of_nodes_are_looked_at(cluster: Cluster, start: Start) -> None:
    await start(ipam="kubernetes")
    cluster.node("a", podCIDRs=["10.0.0.0/24"])
    cluster.node("b", podCIDRs=["10.0.0.128/25"])
    cluster.node("c")
    events = await eventually(lambda: len(found := cluster.all("/api/v1/events")) >= 2 and found)
    assert {(e["involvedObject"]["name"], e["reason"]) for e in events} == {
        ("b", "PodRangeOverlaps"),
        ("c", "PodRangeMissing"),
    }


async def test_a_service_gets_an_address_and_gives_it_back(cluster: Cluster, start: Start) -> None:
    await start()
    await eventually(lambda: len(cluster.all(DEFINITIONS)) == KINDS)
    spec = {"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{"port": 80}]}
    cluster.put("/api/v1/services", "web", "default", spec=spec)
    cluster.put(
        "/api/v1/services", "odd", "default", spec=spec, metadata={"annotations": {"lbipam.cilium.io/ips": "x"}}
    )
    cluster.put("/api/v1/services", "cloud", "default", spec={**spec, "loadBalancerClass": "example.com/other"})
    await asyncio.sleep(0.2)
    assert "status" not in cluster.get("/api/v1/namespaces/default/services/web"), "no pool, nothing to say"
    cluster.put(LB_POOLS, "pool", spec={"blocks": [{"cidr": "192.0.2.0/31"}]})

    def web() -> Any:
        return cluster.get("/api/v1/namespaces/default/services/web")

    ingress = await eventually(lambda: web()["status"]["loadBalancer"]["ingress"])
    assert ingress == [{"ip": "192.0.2.0", "ipMode": "VIP"}]
    assert condition(web(), "cilium.io/IPAMRequestSatisfied")["status"] == "True"

    def odd() -> Any:
        return cluster.get("/api/v1/namespaces/default/services/odd")

    await eventually(lambda: "'x' is no address" in condition(odd(), "cilium.io/IPAMRequestSatisfied")["message"])
    assert "status" not in cluster.get("/api/v1/namespaces/default/services/cloud"), "another controller's"
    await eventually(lambda: condition(cluster.get(f"{LB_POOLS}/pool"), "cilium.io/IPsUsed")["message"] == "1")
    cluster.set("/api/v1/namespaces/default/services/web", spec={"type": "ClusterIP"})
    await eventually(lambda: not web()["status"]["loadBalancer"].get("ingress"))
    await eventually(lambda: not web()["status"]["conditions"])


async def test_the_taint_goes_when_the_agent_is_ready_and_other_taints_stay(cluster: Cluster, start: Start) -> None:
    await start()
    other = {"key": "dedicated", "value": "gpu", "effect": "NoSchedule"}
    for name in ("a", "b"):
        cluster.node(name, taints=[TAINT, other])
    cluster.agent("a")
    cluster.agent("b", ready=False)
    await eventually(lambda: cluster.get("/api/v1/nodes/a")["spec"]["taints"] == [other])
    await eventually(lambda: condition(cluster.get("/api/v1/nodes/a"), "NetworkUnavailable")["status"] == "False")
    assert cluster.get("/api/v1/nodes/b")["spec"]["taints"] == [TAINT, other]


async def test_two_operators_never_both_act(cluster: Cluster, start: Start) -> None:
    tasks = {name: await start(name) for name in ("one", "two", "three")}
    lease = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/ciliate-operator"

    def holder() -> str:
        return str(cluster.get(lease)["spec"]["holderIdentity"])

    given: dict[str, str] = {}
    for round_ in range(3):
        first = await eventually(holder)
        for index in range(5):
            cluster.node(f"n{round_}-{index}")
        for index in range(5):
            for text in await eventually(lambda r=round_, i=index: blocks(cluster, f"n{r}-{i}")):
                assert given.setdefault(text, f"n{round_}-{index}") == f"n{round_}-{index}", "one block, two nodes"
        if round_ < 2:
            tasks.pop(first).cancel()
            await eventually(lambda first=first: holder() not in ("", first))
    assert cluster.get(lease)["spec"]["leaseTransitions"] >= 2


async def test_a_restarted_server_and_lost_history_change_nothing(cluster: Cluster, start: Start) -> None:
    await start()
    cluster.node("a")
    before = await eventually(lambda: blocks(cluster, "a"))
    await cluster.server.stop()
    cluster.node("b")
    cluster.store.compact()
    await cluster.server.start()
    cluster.node("c")
    assert (
        len({*before, *await eventually(lambda: blocks(cluster, "b")), *await eventually(lambda: blocks(cluster, "c"))})
        == 3
    )
    assert blocks(cluster, "a") == before


async def test_what_may_not_be_written_is_tried_again_and_the_rest_goes_on(cluster: Cluster, start: Start) -> None:
    cluster.server.faults.allowed = lambda asked: (
        asked[0] not in ("create", "patch")
        or asked[2]
        in (
            "leases",
            "customresourcedefinitions",
            "nodes",
        )
    )
    await start()
    cluster.node("a", taints=[TAINT])
    cluster.agent("a")
    await eventually(lambda: not cluster.get("/api/v1/nodes/a")["spec"]["taints"])
    assert not cluster.all(NODES)
    cluster.server.faults.allowed = lambda asked: True
    assert await eventually(lambda: blocks(cluster, "a"))


async def test_absurd_objects_harm_nobody_else(cluster: Cluster, start: Start) -> None:
    await start(install_definitions=True)
    await eventually(lambda: len(cluster.all(DEFINITIONS)) == KINDS)
    cluster.store.schemas.clear()  # a definition that somebody loosened
    cluster.put(POOLS, "odd", spec={"ipv4": {"cidrs": ["nonsense"], "maskSize": "24"}})
    cluster.put(LB_POOLS, "odd", spec={"blocks": [{"start": "z"}], "serviceSelector": {"matchExpressions": [{}]}})
    cluster.put(NODES, "ghost", spec={"ipam": {"pools": [{"pool": 3}, 4, {"pool": "default", "cidrs": "x"}]}})
    cluster.put("/api/v1/pods", "odd", "default", spec={"nodeName": "a"}, metadata={"annotations": None})
    cluster.put("/api/v1/services", "odd", "default", spec={"type": "LoadBalancer", "ports": [{}]})
    cluster.node("a")
    assert await eventually(lambda: blocks(cluster, "a"))
    await eventually(lambda: "spec.ipv4" in condition(cluster.get(f"{POOLS}/odd"), "Valid")["message"])
    await eventually(lambda: condition(cluster.get(f"{LB_POOLS}/odd"), "cilium.io/PoolConflict")["reason"] == "invalid")


def _at(path: str) -> Any:
    from tests.kube.store import place

    return place(path)
