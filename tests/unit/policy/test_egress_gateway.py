"""CiliumEgressGatewayPolicy: what is read, and what is said of mistakes: the field, and the fix."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from services.model.objects import ObjectKey, PolicyObject
from services.policy.egress_gateway import KIND, EgressGatewayPolicy, read_egress_gateway_policy
from services.policy.problems import PolicyInvalid

GOOD: dict[str, Any] = {
    "apiVersion": "cilium.io/v2",
    "kind": KIND,
    "metadata": {"name": "x"},
    "spec": {
        "selectors": [{"podSelector": {"matchLabels": {"app": "a", "io.kubernetes.pod.namespace": "shop"}}}],
        "destinationCIDRs": ["203.0.113.0/24", "2001:db8::/32"],
        "excludedCIDRs": ["203.0.113.9/32"],
        "egressGateway": {"nodeSelector": {"matchLabels": {"gw": "yes"}}, "egressIP": "198.51.100.7"},
    },
}


def read(spec: Any) -> EgressGatewayPolicy:
    return read_egress_gateway_policy(PolicyObject(ObjectKey(KIND, "", "x"), {**GOOD, "spec": spec}))


def test_what_is_read() -> None:
    found = read(GOOD["spec"])
    assert [str(prefix) for prefix in found.destinations] == ["2001:db8::/32", "203.0.113.0/24"]
    assert [str(prefix) for prefix in found.excluded] == ["203.0.113.9/32"]
    assert [str(gateway.address) for gateway in found.gateways] == ["198.51.100.7"]


GATEWAY = "spec.egressGateway"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["selectors"], None, "spec.selectors: is empty"),
        (["selectors", 0], {"nodeSelector": {}}, "spec.selectors[0]: must have a podSelector or a namespaceSelector"),
        (["selectors", 0, "podSelectors"], {}, "spec.selectors[0].podSelectors: unknown field"),
        (["destinationCIDRs"], [], "spec.destinationCIDRs: is empty"),
        (["destinationCIDRs", 0], "203.0.113.0", "spec.destinationCIDRs[0]: '203.0.113.0' must carry a prefix length"),
        (["destinationCIDRs", 0], 7, "spec.destinationCIDRs[0]: must be a prefix such as"),
        (["excludedCIDRs"], "10.0.0.0/8", "spec.excludedCIDRs: must be a list"),
        (["egressGateway"], None, f"{GATEWAY}: is missing"),
        (["egressGateway", "nodeSelector"], None, f"{GATEWAY}.nodeSelector: is missing"),
        (["egressGateway", "interface"], "eth0", f"{GATEWAY}: has an interface and an egressIP; give one of them"),
        (["egressGateway", "egressIP"], "here", f"{GATEWAY}.egressIP: 'here' is not an IP address"),
        (["egressGateway", "egressIP"], "224.0.0.1", f"{GATEWAY}.egressIP: 224.0.0.1 cannot be a packet's source"),
        (["egressGateways"], [{"nodeSelector": {}}], f"{GATEWAY}: and egressGateways are both given; use one"),
        (["destinationCIDRs"], ["2001:db8::/32"], f"{GATEWAY}.egressIP: 198.51.100.7 is IPv4, but no destination is"),
    ],
)
def test_mistakes_name_the_field(path: list[str | int], value: Any, said: str) -> None:
    spec = copy.deepcopy(GOOD["spec"])
    place: Any = spec
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(PolicyInvalid) as raised:
        read(spec)
    assert any(str(problem).startswith(said) for problem in raised.value.problems), raised.value


@pytest.mark.parametrize("spec", [None, [], "x", 7, {"selectors": 5, "egressGateway": []}])
def test_nonsense_is_refused(spec: Any) -> None:
    with pytest.raises(PolicyInvalid):
        read(spec)
