"""What a Service gets besides its cluster address, and what it may not have."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import Conflict, Invalid
from services.sandbox.controller import endpoint_slices
from services.sandbox.exposure import with_addresses, with_node_ports
from services.sandbox.manifests import key_of


def service(name: str = "web", type: str = "NodePort", **spec: Any) -> dict[str, Any]:
    spec = {"type": type, "ports": [{"name": "http", "port": 80}], **spec}
    return {"kind": "Service", "metadata": {"name": name, "namespace": "ns"}, "spec": spec}


def ports(document: dict[str, Any]) -> list[int]:
    return [port.get("nodePort", 0) for port in document["spec"]["ports"]]


def test_node_ports_are_kept_and_never_given_twice() -> None:
    first = with_node_ports(service(), None, [])
    assert ports(first) == [30000]
    second = with_node_ports(service("other"), None, [first])
    assert ports(second) == [30001]
    assert ports(with_node_ports(service(), first, [first, second])) == [30000]
    asked = service("third", ports=[{"port": 80, "nodePort": 30000}])
    with pytest.raises(Conflict, match=r"nodePort: 30000 belongs to Service ns/web; choose another"):
        with_node_ports(asked, None, [first])
    with pytest.raises(Invalid, match=r"nodePort: 99 is not in 30000-32767; remove it to get one"):
        with_node_ports(service(ports=[{"port": 80, "nodePort": 99}]), None, [])
    assert ports(with_node_ports(service(type="ClusterIP"), None, [])) == [0]


def test_load_balancers() -> None:
    plain = with_node_ports(service(type="LoadBalancer", allocateLoadBalancerNodePorts=False), None, [])
    assert ports(plain) == [0]
    local = with_node_ports(service("l", "LoadBalancer", externalTrafficPolicy="Local"), None, [])
    assert local["spec"]["healthCheckNodePort"] not in ports(local)
    other = service("o", "LoadBalancer", loadBalancerClass="example.com/theirs")
    objects = {key_of(each): each for each in (plain, local, other)}
    found = with_addresses(objects)
    given = {key.name: document.get("status", {}).get("loadBalancer") for key, document in found.items()}
    assert given["web"] == {"ingress": [{"ip": "10.111.0.2", "ipMode": "VIP"}]}
    assert given["l"] == {"ingress": [{"ip": "10.111.0.1", "ipMode": "VIP"}]}
    assert given["o"] is None
    assert with_addresses(found) == found


def test_pools_that_were_applied_replace_the_sandbox_s_own() -> None:
    pool = {
        "kind": "CiliumLoadBalancerIPPool",
        "metadata": {"name": "blue"},
        "spec": {"blocks": [{"cidr": "192.0.2.0/30"}], "allowFirstLastIPs": "No"},
    }
    balanced = service(type="LoadBalancer")
    found = with_addresses({key_of(pool): pool, key_of(balanced): balanced})
    assert found[key_of(balanced)]["status"]["loadBalancer"]["ingress"][0]["ip"] == "192.0.2.1"
    broken = {**pool, "spec": {"blocks": [{"cidr": "nonsense"}]}}
    with pytest.raises(Invalid, match="CiliumLoadBalancerIPPool blue"):
        with_addresses({key_of(broken): broken})


def pod(name: str, node: str, ending: bool = False) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": "ns", "labels": {"app": "web"}}
    if ending:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    status = {"podIPs": [{"ip": "10.1.0.1"}], "conditions": [{"type": "Ready", "status": "True"}]}
    return {"metadata": metadata, "spec": {"nodeName": node, "containers": [{}]}, "status": status}


@pytest.mark.parametrize(
    ("wish", "hints"),
    [
        (None, None),
        ("PreferClose", {"forZones": [{"name": "a"}]}),
        ("PreferSameNode", {"forNodes": [{"name": "n1"}], "forZones": [{"name": "a"}]}),
    ],
)
def test_slices_say_who_ends_and_who_is_near(wish: str | None, hints: Any) -> None:
    web = service(selector={"app": "web"}, **({"trafficDistribution": wish} if wish else {}))
    (found,) = endpoint_slices(web, [pod("x", "n1"), pod("y", "n1", ending=True)], {"n1": "a"})
    here, leaving = found["endpoints"]
    assert here["conditions"] == {"ready": True, "serving": True, "terminating": False}
    assert leaving["conditions"] == {"ready": False, "serving": True, "terminating": True}
    assert (here["zone"], here.get("hints")) == ("a", hints)
