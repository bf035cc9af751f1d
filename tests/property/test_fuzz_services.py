"""Whatever stands in a Service, an EndpointSlice, a Pod with host ports or a Node: it is read or refused naming the
field, and whatever was read, the maps stay whole and a Service beside it works."""

from __future__ import annotations

import ipaddress
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.agent.abi.lb import ServiceInfo
from services.agent.calc.services import LbOptions, NodeFacts, Services
from services.agent.calc.services.entries import backend_key, service_key
from services.agent.sources.decode import decode
from services.agent.sources.fields import FieldError
from services.model.objects import EndpointSlice, KubeNode, Pod, Service, ServicePort, SliceEndpoint
from tests.fuzz.documents import mutated

META = {"name": "web", "namespace": "ns"}
SEEDS: tuple[dict[str, Any], ...] = (
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            **META,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"service.kubernetes.io/service-proxy-name": ""},
            "annotations": {
                "service.cilium.io/lb-algorithm": "maglev",
                "service.cilium.io/node-selector": "zone in (a,b),!x",
                "service.cilium.io/type": "ClusterIP,NodePort",
                "service.cilium.io/src-ranges-policy": "deny",
            },
        },
        "spec": {
            "type": "LoadBalancer",
            "clusterIPs": ["10.96.0.1", "fd00::96"],
            "externalIPs": ["198.51.100.7"],
            "ports": [
                {"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080},
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353, "nodePort": 30053},
                {"name": "s", "port": 99, "protocol": "SCTP"},
            ],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "internalTrafficPolicy": "Local",
            "externalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": ["10.0.0.0/8", "fd00::/8"],
            "healthCheckNodePort": 31000,
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9", "ipMode": "VIP"}, {"hostname": "x"}]}},
    },
    {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**META, "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}],
        "endpoints": [
            {
                "addresses": ["10.1.0.1"],
                "conditions": {"ready": True, "serving": None, "terminating": False},
                "nodeName": "node1",
                "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "node1"}]},
            },
            {"addresses": ["10.1.0.2", "10.1.0.3"], "conditions": {"ready": False, "terminating": True}},
        ],
    },
    {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": META,
        "spec": {
            "nodeName": "node1",
            "containers": [{"ports": [{"containerPort": 80, "hostPort": 8080, "hostIP": "192.168.0.1"}]}],
        },
        "status": {"phase": "Running", "podIPs": [{"ip": "10.1.0.9"}]},
    },
    {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1", "labels": {"zone": "a"}}},
)
NODE = NodeFacts("node1", (ipaddress.ip_address("192.168.0.1"), ipaddress.ip_address("fd00:192::1")))
GOOD = Service(
    "good",
    "good",
    cluster_ips=(ipaddress.ip_address("10.96.9.9"),),
    ports=(ServicePort("p", 80, 6, 80),),
    created="0",
)
BEHIND = EndpointSlice("good", "g", "good", (("p", 80, 6),), (SliceEndpoint((ipaddress.ip_address("10.9.9.9"),)),))
OPTIONS = LbOptions(annotations=True, maglev_size=251)


def tell(registry: Services, thing: Any) -> None:
    match thing:
        case Service():
            registry.set_service(thing.key, thing)
        case EndpointSlice():
            registry.set_slice(thing.key, thing)
        case Pod():
            registry.set_pod((thing.namespace, thing.name), thing)
        case KubeNode():
            registry.set_node(thing)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 60), st.integers(1, 4))
def test_changed_documents(seed: int, count: int) -> None:
    generator = random.Random(seed)
    registry = Services(NODE, OPTIONS)
    tell(registry, GOOD)
    tell(registry, BEHIND)
    for _ in range(count):
        try:
            thing = decode(mutated(generator.randrange, SEEDS))
        except FieldError:
            continue
        tell(registry, thing)
        registry.settle()
        list(registry.problems())
        registry.health_checks()
        for report in registry.reports():
            assert report.name
    registry.settle()
    tables = {name: table.desired for name, table in registry.tables.items()}
    for raw in tables["services"].values():
        info = ServiceInfo.unpack(raw)
        assert all(backend_key(info.service_id, slot) in tables["backends"] for slot in range(info.backend_count))
    good = tables["services"][service_key(GOOD.cluster_ips[0], 80, 6)]
    assert ServiceInfo.unpack(good).backend_count == 1
