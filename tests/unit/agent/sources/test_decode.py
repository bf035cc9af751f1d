"""Manifests to objects: the API server's defaults, and errors that name the field."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from services.agent.sources.decode import decode, key_of
from services.agent.sources.fields import FieldError
from services.model.objects import (
    ContainerPort,
    EndpointSlice,
    Namespace,
    ObjectKey,
    Pod,
    PolicyObject,
    SliceEndpoint,
)


def pod(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": spec}


def test_a_pod_has_the_api_servers_defaults() -> None:
    found = decode(pod(containers=[{"name": "a", "ports": [{"containerPort": 80}]}]))
    assert found == Pod("default", "web", ports=(ContainerPort("", 80, 6),))


def test_sidecars_have_ports_and_plain_init_containers_do_not() -> None:
    ports = [{"containerPort": 9, "protocol": "UDP", "name": "x"}]
    sidecar, plain = {"ports": ports, "restartPolicy": "Always"}, {"ports": ports}
    found = decode(pod(initContainers=[sidecar, plain]))
    assert isinstance(found, Pod)
    assert found.ports == (ContainerPort("x", 9, 17),)


def test_a_pods_addresses_and_workload() -> None:
    document = pod(nodeName="n1", serviceAccountName="robot", hostNetwork=True)
    document["metadata"] |= {
        "namespace": "shop",
        "labels": {"app": "web", "pod-template-hash": "abc"},
        "ownerReferences": [{"kind": "ReplicaSet", "name": "web-abc", "controller": True}],
    }
    document["status"] = {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}
    found = decode(document)
    assert isinstance(found, Pod)
    assert found.addresses == (ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("fd00::1"))
    assert found.workload == ("Deployment", "web")
    assert (found.node, found.service_account, found.host_network, found.phase) == ("n1", "robot", True, "Running")


def test_a_namespace_is_labelled_with_its_name() -> None:
    found = decode({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "a"}}})
    assert found == Namespace("shop", {"team": "a", "kubernetes.io/metadata.name": "shop"})


def service(**spec: Any) -> Any:
    return decode({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec})


def test_a_services_target_port_is_its_port_unless_it_says_otherwise() -> None:
    found = service(
        clusterIP="10.96.0.1",
        ports=[{"port": 80}, {"port": 81, "targetPort": "http"}, {"port": 82, "targetPort": "8082"}],
    )
    assert [port.target_port for port in found.ports] == [80, "http", 8082]
    assert found.cluster_ips == (ipaddress.ip_address("10.96.0.1"),)


@pytest.mark.parametrize("spec", [{"clusterIP": "None"}, {"clusterIPs": ["None"]}, {"type": "ExternalName"}, {}])
def test_headless_services_have_no_address(spec: dict[str, Any]) -> None:
    assert service(**spec).cluster_ips == ()


def test_slice_conditions_default_as_the_api_says() -> None:
    document = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "s-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 80}, {"name": "all"}],
        "endpoints": [
            {"addresses": ["10.0.0.1"], "conditions": {"ready": None}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": False, "terminating": True}, "nodeName": "n"},
        ],
    }
    one, two = ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("10.0.0.2")
    assert decode(document) == EndpointSlice(
        "shop",
        "s-1",
        "s",
        (("http", 80, 6),),
        (SliceEndpoint((one,)), SliceEndpoint((two,), False, True, True, "n")),
        4,
    )


def test_a_policy_keeps_its_document_without_what_servers_write() -> None:
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop", "uid": "u", "resourceVersion": "7", "managedFields": []},
        "spec": {"endpointSelector": {}},
        "status": {"conditions": []},
    }
    found = decode(document, "kubernetes")
    assert isinstance(found, PolicyObject)
    assert (found.key, found.uid, found.origin) == (ObjectKey("CiliumNetworkPolicy", "shop", "p"), "u", "kubernetes")
    assert found.document["metadata"] == {"name": "p", "namespace": "shop", "uid": "u"}
    assert "status" not in found.document


def test_a_cluster_wide_policy_has_no_namespace() -> None:
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "p", "namespace": "ignored"},
    }
    assert key_of(document) == ObjectKey("CiliumClusterwideNetworkPolicy", "", "p")


@pytest.mark.parametrize(
    "document", [{"apiVersion": "apps/v1", "kind": "Deployment"}, {"apiVersion": "x/v1", "kind": "Pod"}]
)
def test_other_kinds_are_passed_over(document: dict[str, Any]) -> None:
    assert decode(document) is None
    assert key_of(document) is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "document: must be a mapping, not a list"),
        ({"apiVersion": "v1"}, "kind: is required"),
        ({"kind": "Pod"}, "apiVersion: is required"),
        ({"apiVersion": "v1", "kind": "Pod", "metadata": {}}, "metadata.name: is required"),
        (pod(containers={}), "spec.containers: must be a list, not a mapping"),
        (
            pod(containers=[{"ports": [{"containerPort": 70000}]}]),
            "spec.containers[0].ports[0].containerPort: must be a port number 1..65535, not 70000",
        ),
        (
            pod(containers=[{"ports": [{"containerPort": 7, "protocol": "tcp"}]}]),
            "spec.containers[0].ports[0].protocol: must be TCP, UDP or SCTP, not 'tcp'",
        ),
        (
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"v": 1.0}}},
            "metadata.labels.v: must be a string, not a number; quote it",
        ),
        (pod(hostNetwork="yes"), "spec.hostNetwork: must be true or false, not a string"),
        (
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "status": {"podIP": "10.0.0"}},
            "status.podIP: must be an IP address, not '10.0.0'",
        ),
    ],
)
def test_errors_name_the_field(document: Any, message: str) -> None:
    with pytest.raises(FieldError) as caught:
        decode(document)
    assert str(caught.value) == message
