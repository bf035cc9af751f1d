"""Whose calls were refused: namespaces are found by their cookies, pods that are gone and strangers are nobody."""

from __future__ import annotations

import ipaddress
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from services.agent.abi.events import FLOW_EVENT
from services.agent.refusals import SEARCH_SECONDS, NodeOwner, Owners, name_owners
from services.common.netns import inside, netns_cookie, opened
from services.flows.columns import Array
from services.model.addresses import to_bytes
from services.model.identity import NumericIdentity, Reserved
from services.model.objects import LocalEndpoint

A = ipaddress.ip_address
NODE4, POD4, POD6, VIP4, VIP6 = A("192.168.0.1"), A("10.1.0.1"), A("fd00:1::1"), A("10.96.0.1"), A("fd00:96::1")


def pod(netns: Path) -> LocalEndpoint:
    return LocalEndpoint(
        id=7,
        namespace="default",
        pod="p",
        container_id="c",
        ifindex=1,
        ifname="cil0",
        mac=bytes(6),
        node_mac=bytes(6),
        addresses=(POD4, POD6),
        identity=NumericIdentity(300),
        netns=str(netns),
    )


def refused(*calls: tuple[int, object]) -> Array:
    records = np.zeros(len(calls), FLOW_EVENT)
    for row, (cookie, address) in enumerate(calls):
        records["bytes"][row, 0] = cookie
        records["daddr"][row] = memoryview(to_bytes(address))  # type: ignore[arg-type]
    return records


def sources(records: Array) -> list[tuple[int, int, bytes]]:
    return [(int(r["endpoint_id"]), int(r["src_identity"]), r["saddr"].tobytes()) for r in records]


def test_the_node_itself_by_family() -> None:
    owners = Owners(NodeOwner([NODE4]), list, lambda: 0.0)
    found = name_owners(refused((netns_cookie(), VIP4), (netns_cookie(), VIP6)), owners)
    assert sources(found) == [(0, Reserved.HOST, to_bytes(NODE4)), (0, Reserved.HOST, bytes(16))]
    assert not found["bytes"].any(), "the cookie is no count of bytes"


@pytest.mark.root
def test_pods_are_looked_for_only_when_a_namespace_is_new(tmp_path: Path) -> None:
    name = f"clt{os.getpid()}refused"
    subprocess.run(["ip", "netns", "add", name], check=True)
    place = Path("/run/netns") / name
    now, asked, known = [0.0], [0], [pod(place), pod(tmp_path / "gone")]

    def endpoints() -> list[LocalEndpoint]:
        asked[0] += 1
        return known

    try:
        with opened(str(place)) as descriptor, inside(descriptor):
            cookie = netns_cookie()
        owners = Owners(NodeOwner([NODE4]), endpoints, lambda: now[0])
        found = name_owners(refused((cookie, VIP4), (cookie, VIP6), (1 << 60, VIP4)), owners)
        assert sources(found)[:2] == [(7, 300, to_bytes(POD4)), (7, 300, to_bytes(POD6))]
        assert sources(found)[2] == (0, 0, bytes(16)), "a stranger"
        assert asked == [1]
        now[0] = SEARCH_SECONDS
        known.clear()
        name_owners(refused((1 << 60, VIP4), (1 << 60, VIP4)), owners)
        assert asked == [2]
        assert owners.of(cookie) is None
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
