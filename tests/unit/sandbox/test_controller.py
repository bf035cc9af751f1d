"""What the controllers make of objects: pods and their nodes, Service addresses, backends, names."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import Conflict, Invalid
from services.sandbox.controller import ClusterIps, dns_records, endpoint_slices, expand_deployment, plan_pods
from services.sandbox.manifests import key_of

NODES = ("node1", "node2")


def deployment(name: str = "web", replicas: int = 3, image: str = "nginx", **spec: Any) -> dict[str, Any]:
    container = {"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}
    return {
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container], **spec}},
        },
    }


def service(name: str = "svc", **spec: Any) -> dict[str, Any]:
    spec = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}], **spec}
    return {"kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": spec}


def running(pod: dict[str, Any], *addresses: str, ready: bool = True) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {**pod, "status": {"podIPs": [{"ip": each} for each in addresses], "conditions": conditions}}


def test_replicas_go_round_the_nodes_so_that_every_client_has_a_near_and_a_far_one() -> None:
    pods = expand_deployment(deployment(), NODES)
    assert [pod["spec"]["nodeName"] for pod in pods] == ["node1", "node2", "node1"]
    (client,) = expand_deployment(deployment("client", 1), NODES)
    assert {pod["spec"]["nodeName"] == client["spec"]["nodeName"] for pod in pods} == {True, False}


def test_pod_names_are_like_kubernetes_and_do_not_move_when_scaled() -> None:
    three = [pod["metadata"]["name"] for pod in expand_deployment(deployment(), NODES)]
    five = [pod["metadata"]["name"] for pod in expand_deployment(deployment(replicas=5), NODES)]
    assert five[:3] == three
    assert len(set(five)) == 5
    assert all(name.startswith("web-") and len(name.split("-")) == 3 for name in five)


def test_a_changed_template_makes_other_pods() -> None:
    old = plan_pods([deployment()], NODES)
    new = plan_pods([deployment(image="nginx:2")], NODES)
    assert not old.keys() & new.keys()


def test_pods_say_which_replica_set_made_them() -> None:
    pod = expand_deployment(deployment(), NODES)[0]
    revision = pod["metadata"]["labels"]["pod-template-hash"]
    assert pod["metadata"]["ownerReferences"][0]["name"] == f"web-{revision}"


def test_a_pod_may_choose_its_node_but_not_one_that_is_not_there() -> None:
    (pod,) = plan_pods([deployment(replicas=1, nodeName="node2")], NODES).values()
    assert pod["spec"]["nodeName"] == "node2"
    with pytest.raises(Invalid, match=r"nodeName: no node 'node9'; nodes: node1, node2"):
        plan_pods([deployment(replicas=1, nodeName="node9")], NODES)


def test_service_addresses_are_the_lowest_free_ones_and_explicit_ones_are_honoured() -> None:
    ips = ClusterIps()
    first = ips.assign(service("a"), [])
    second = ips.assign(service("b"), [first])
    assert (first["spec"]["clusterIP"], second["spec"]["clusterIP"]) == ("10.96.0.32", "10.96.0.33")
    assert ips.assign(service("a"), [first, second])["spec"]["clusterIP"] == "10.96.0.32"
    assert ips.assign(service("c", clusterIP="10.96.7.7"), [])["spec"]["clusterIPs"] == ["10.96.7.7"]


def test_a_taken_or_foreign_address_is_refused() -> None:
    ips = ClusterIps()
    known = ips.assign(service("a", clusterIP="10.96.7.7"), [])
    with pytest.raises(Conflict, match="belongs to Service default/a"):
        ips.assign(service("b", clusterIP="10.96.7.7"), [known])
    with pytest.raises(Invalid, match="outside of"):
        ips.assign(service("b", clusterIP="192.0.2.1"), [])


def test_dual_stack_services_have_two_addresses_and_headless_ones_none() -> None:
    ips = ClusterIps()
    both = ips.assign(service("a", ipFamilyPolicy="PreferDualStack"), [])
    assert both["spec"]["clusterIPs"] == ["10.96.0.32", "fd00:10:96::20"]
    assert ips.assign(service("b", clusterIP="None"), [])["spec"]["clusterIPs"] == ["None"]


def test_slices_hold_the_selected_pods_with_their_readiness_and_target_port() -> None:
    near, far, third = expand_deployment(deployment(), NODES)
    other = expand_deployment(deployment("other", 1), NODES)[0]
    pods = [running(near, "10.0.0.1"), running(far, "10.0.0.2", ready=False), third, running(other, "10.0.0.9")]
    (made,) = endpoint_slices(service(), pods)
    assert made["metadata"]["labels"] == {"kubernetes.io/service-name": "svc"}
    assert made["ports"] == [{"name": "", "port": 8080, "protocol": "TCP"}]
    found = {each["addresses"][0]: each["conditions"]["ready"] for each in made["endpoints"]}
    assert found == {"10.0.0.1": True, "10.0.0.2": False}


def test_each_family_has_its_own_slice() -> None:
    pods = [running(expand_deployment(deployment(), NODES)[0], "10.0.0.1", "fd00::1")]
    made = endpoint_slices(service(), pods)
    assert [each["addressType"] for each in made] == ["IPv4", "IPv6"]
    assert len({each["metadata"]["name"] for each in made}) == 2


def test_slices_do_not_depend_on_the_order_of_the_pods() -> None:
    pods = [running(pod, f"10.0.0.{n}") for n, pod in enumerate(expand_deployment(deployment(), NODES))]
    assert endpoint_slices(service(), pods) == endpoint_slices(service(), pods[::-1])


def test_a_named_port_that_no_pod_has_leaves_the_slice_without_it() -> None:
    pods = [running(expand_deployment(deployment(), NODES)[0], "10.0.0.1")]
    (made,) = endpoint_slices(service(ports=[{"port": 80, "targetPort": "nope"}]), pods)
    assert made["ports"] == []


def test_names_resolve_to_the_service_or_to_the_ready_pods_of_a_headless_one() -> None:
    ready, late, _ = expand_deployment(deployment(), NODES)
    pods = [running(ready, "10.0.0.1"), running(late, "10.0.0.2", ready=False)]
    services = [ClusterIps().assign(service("a"), []), ClusterIps().assign(service("b", clusterIP="None"), [])]
    assert dns_records(services, pods) == (
        "10.0.0.1 b.default.svc.cluster.local\n10.96.0.32 a.default.svc.cluster.local\n"
    )


def test_bare_pods_run_as_they_are() -> None:
    bare = {"kind": "Pod", "metadata": {"name": "p", "namespace": "d"}, "spec": {"containers": [{"image": "nginx"}]}}
    assert list(plan_pods([bare], NODES)) == [key_of(bare)]
