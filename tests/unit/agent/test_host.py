"""Whose addresses are the node's own, as its devices get and lose them; and what the cluster is told of them."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from typing import Any

from services.agent.abi.nat import NETDEV_NODE, NetdevInfo
from services.agent.datapath.fake_map import FakeMap
from services.agent.devices import NodeDevices
from services.agent.host import Advertiser, HostAddresses, rows
from services.common.errors import Internal
from services.common.pb.agent.v1 import agent_pb2 as pb
from services.model.addresses import IPNetwork, to_bytes
from services.model.identity import NumericIdentity, Reserved
from services.model.objects import IpDeleted, IpEntry, IpUpserted, NodeAddresses, Update

A, N = ipaddress.ip_address, ipaddress.ip_network
OWN, SECOND, BRIDGE = A("192.0.2.1"), A("198.51.100.1"), A("172.17.0.1")


def told(host: HostAddresses, update: Update) -> dict[str, int | None]:
    """Prefix -> identity, None: none; of what the engine hears."""
    found: dict[str, int | None] = {}
    for each in host.seen(update):
        match each:
            case IpUpserted(entry=entry):
                found[str(entry.prefix)] = entry.identity
            case IpDeleted(prefix=prefix):
                found[str(prefix)] = None
            case _:
                pass
    return found


def addresses(**interfaces: Any) -> NodeAddresses:
    return NodeAddresses(interfaces, devices=("eth0", "eth1"))


def row(address: Any, identity: int, node: str, **more: Any) -> IpUpserted:
    return IpUpserted(IpEntry(N(address), NumericIdentity(identity), node, **more))


def test_every_address_of_the_node_is_the_hosts_while_it_has_it() -> None:
    host = HostAddresses("n1", [OWN])
    everything = addresses(eth0=(OWN,), eth1=(SECOND,), docker0=(BRIDGE,))
    assert told(host, everything) == {"172.17.0.1/32": 1, "198.51.100.1/32": 1}
    assert told(host, row(SECOND, Reserved.REMOTE_NODE, "n1", tunnel=OWN)) == {"198.51.100.1/32": 1}
    assert told(host, row(OWN, Reserved.REMOTE_NODE, "n1", tunnel=OWN)) == {"192.0.2.1/32": 1}
    assert told(host, IpDeleted(N("198.51.100.1/32"))) == {}, "whatever the table forgets"
    assert told(host, row("198.51.100.0/24", 2, "n2")) == {"198.51.100.0/24": 2}, "a range is no address"
    assert told(host, addresses()) == {"172.17.0.1/32": None, "198.51.100.1/32": None}, "the official one stays"
    assert told(host, row(SECOND, Reserved.REMOTE_NODE, "n2")) == {"198.51.100.1/32": Reserved.REMOTE_NODE}


def test_an_address_that_moved_is_what_the_table_says() -> None:
    table = {N(SECOND): IpEntry(N(SECOND), NumericIdentity(300), "n2", A("192.0.2.2"), "default", "web")}
    host = HostAddresses("n1", [OWN], table.get)
    host.seen(addresses(eth1=(SECOND, BRIDGE)))
    table[N(BRIDGE)] = IpEntry(N(BRIDGE), NumericIdentity(Reserved.REMOTE_NODE), "n1", OWN)
    assert told(host, addresses()) == {"198.51.100.1/32": 300, "172.17.0.1/32": None}


class Rows:
    """This node's rows in the cluster's table."""

    def __init__(self) -> None:
        self.there: dict[IPNetwork, IpEntry] = {}

    def put(self, entries: Collection[IpEntry]) -> None:
        self.there |= {entry.prefix: entry for entry in entries}

    def remove(self, prefixes: Collection[IPNetwork]) -> None:
        for prefix in prefixes:
            del self.there[prefix]


def test_others_hear_of_what_is_on_devices_and_of_nothing_else() -> None:
    table = Rows()
    advertiser = Advertiser("n1", [OWN], table)
    assert list(table.there.values()) == rows("n1", [OWN], Reserved.REMOTE_NODE, OWN)
    advertiser.observe(addresses(eth0=(OWN,), eth1=(SECOND,), docker0=(BRIDGE,)))
    assert set(table.there) == {N(OWN), N(SECOND)}
    assert table.there[N(SECOND)].tunnel == OWN
    advertiser.observe(addresses(docker0=(BRIDGE,)))
    assert set(table.there) == {N(OWN)}


class Hooks:
    def __init__(self) -> None:
        self.attached: list[list[int]] = []
        self.broken = False

    async def attach_netdev(self, ifindexes: Collection[int]) -> None:
        if self.broken:
            raise Internal("no")
        self.attached.append(list(ifindexes))


def masquerades(netdevs: FakeMap) -> Mapping[int, bytes]:
    """Index -> IPv4 address that packets leave with."""
    return {int.from_bytes(k, "little"): bytes(NetdevInfo.unpack(v).ipv4) for k, v in netdevs.items()}


async def test_masquerading_and_hooks_follow_the_devices() -> None:
    netdevs, hooks = FakeMap("netdevs"), Hooks()
    devices = NodeDevices({"eth0": 2, "eth1": 3}, [OWN], 9, netdevs, hooks)
    await devices.follow(
        {"eth0": 2, "eth1": 3, "docker0": 4}, addresses(eth0=(OWN,), eth1=(SECOND,), docker0=(BRIDGE,))
    )
    own = to_bytes(OWN)
    assert masquerades(netdevs) == {NETDEV_NODE: own, 9: own, 2: own, 3: to_bytes(SECOND)}
    assert not hooks.attached, "not before the maps say what they should"
    await devices.enforce()
    await devices.follow({"eth0": 2}, addresses(eth0=(OWN,)))
    assert 3 not in masquerades(netdevs)
    assert devices.check().health == pb.HEALTH_DEGRADED
    assert "eth1" in devices.check().message
    await devices.follow({"eth0": 2, "eth1": 7}, addresses(eth0=(OWN,), eth1=(BRIDGE,)))
    assert masquerades(netdevs)[7] == to_bytes(BRIDGE)
    assert hooks.attached == [[2, 3], [2], [2, 7]]
    assert devices.check().health == pb.HEALTH_OK
    hooks.broken = True
    await devices.follow({"eth0": 2, "eth1": 8}, addresses(eth0=(OWN,)))
    assert devices.check().health == pb.HEALTH_DEGRADED
