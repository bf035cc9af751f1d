"""Where replicas of the identity service are found before names work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from services.common.errors import Invalid, Unavailable
from services.common.kube.locate import Replicas, grpc_target, ready_addresses


def piece(kind: str, *endpoints: tuple[str, bool | None]) -> dict[str, Any]:
    return {
        "addressType": kind,
        "endpoints": [
            {"addresses": [address], "conditions": {} if ready is None else {"ready": ready}}
            for address, ready in endpoints
        ],
    }


@pytest.mark.parametrize(
    ("slices", "addresses"),
    [
        ([], []),
        ([piece("IPv4", ("10.0.0.1", True), ("10.0.0.2", False), ("10.0.0.3", None))], ["10.0.0.1", "10.0.0.3"]),
        ([piece("IPv4", ("10.0.0.1", True)), piece("IPv4", ("10.0.0.1", True))], ["10.0.0.1"]),
        ([piece("IPv6", ("fd00::1", True)), piece("IPv4", ("10.0.0.1", True))], ["10.0.0.1"]),
        ([piece("IPv6", ("fd00::1", True)), piece("IPv4", ("10.0.0.1", False))], ["fd00::1"]),
        ([piece("FQDN", ("name", True))], []),
        ([{"addressType": "IPv4", "endpoints": None}], []),
    ],
)
def test_ready_addresses_of_one_family(slices: list[dict[str, Any]], addresses: list[str]) -> None:
    assert ready_addresses(slices) == addresses


def test_targets_are_grpcs() -> None:
    assert grpc_target(["10.0.0.1", "10.0.0.2"], 4250) == "ipv4:10.0.0.1:4250,10.0.0.2:4250"
    assert grpc_target(["fd00::1"], 4250) == "ipv6:[fd00::1]:4250"


@pytest.mark.parametrize("target", ["k8s://x:1", "k8s://ns/svc", "k8s://ns/svc:0", "k8s://ns/svc:70000", "k8s://N/s:1"])
def test_bad_targets_are_named(target: str) -> None:
    with pytest.raises(Invalid, match="identity_target"):
        Replicas(Api([]), target)


class Api:
    """Answers with slices, or with an error."""

    def __init__(self, answer: list[dict[str, Any]] | Unavailable) -> None:
        self.answer, self.asked = answer, list[tuple[str, dict[str, str]]]()

    async def list(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        self.asked.append((path, dict(query)))
        if isinstance(self.answer, Unavailable):
            raise self.answer
        return {"items": self.answer}


async def test_what_was_found_last_outlives_the_api_server_and_the_last_endpoint() -> None:
    api = Api(Unavailable("away"))
    find = Replicas(api, "k8s://kube-system/ciliate-identity:4250", shuffle=lambda addresses: None)
    with pytest.raises(Unavailable, match="kube-system/ciliate-identity: away"):
        await find()
    api.answer = []
    with pytest.raises(Unavailable, match="no ready endpoint"):
        await find()
    api.answer = [piece("IPv4", ("10.0.0.1", True))]
    assert await find() == "ipv4:10.0.0.1:4250"
    assert api.asked[-1] == (
        "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices",
        {"labelSelector": "kubernetes.io/service-name=ciliate-identity"},
    )
    for answer in ([], Unavailable("away")):
        api.answer = answer
        assert await find() == "ipv4:10.0.0.1:4250"
