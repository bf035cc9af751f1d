"""What the configuration and the devices say about translation, and the collection of its table."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from services.agent import translation
from services.agent.abi.config import ConfigFlags
from services.agent.abi.ipcache import IpcacheKey
from services.agent.abi.layout import be16
from services.agent.abi.nat import NatEntry, NatFlags, NatKey, NetdevInfo
from services.agent.config import Config
from services.agent.datapath.nat_gc import GRACE_NS, NatCollector
from services.agent.server import dump
from services.agent.server.translations import Translations
from services.model.addresses import to_bytes


def config(**fields: Any) -> Config:
    base = {
        "node_name": "n",
        "node_address": ["192.0.2.1"],
        "identity_target": "x:1",
        "source": "folder",
        "objects_dir": "/x",
        "pod_cidr4": "10.0.0.0/24",
        "insecure": True,
    }
    return Config(**(base | fields))


def test_masquerading_is_on_unless_switched_off() -> None:
    assert translation.flags(config()) & ConfigFlags.MASQUERADE
    assert not translation.flags(config(masquerade=False)) & ConfigFlags.MASQUERADE
    assert translation.flags(config()) & ConfigFlags.NORTH_SOUTH
    assert not translation.flags(config(north_south=False)) & ConfigFlags.NORTH_SOUTH


@pytest.mark.parametrize("text", ["", "32768", "1-2", "50000-40000", "40000-70000", "a-b", "4000-5000-6000"])
def test_bad_port_ranges_name_the_setting(text: str) -> None:
    with pytest.raises(ValidationError, match="nat_ports"):
        config(nat_ports=text)


@pytest.mark.parametrize("setting", ["native_routing_cidr", "masquerade_exclude"])
def test_bad_exclusions_name_the_setting(setting: str) -> None:
    with pytest.raises(ValidationError, match=setting):
        config(**{setting: ["10.0.0.0/33"]})


@pytest.mark.parametrize(
    ("text", "words"),
    [("ipip", "ipip has no room.*use geneve"), ("x", "'x' is no way.*use opt or geneve")],
)
def test_other_ways_of_answering_directly_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValidationError, match=f"lb_dsr_dispatch\n.*{words}"):
        config(lb_mode="dsr", lb_dsr_dispatch=text)
    assert config(lb_mode="dsr", lb_dsr_dispatch="opt").load_balancing.forwarding == "dsr"


def test_the_port_of_direct_answers() -> None:
    assert config().dsr_port == 0
    assert config(lb_dsr_dispatch="geneve", north_south=False).dsr_port == 0
    assert config(lb_dsr_dispatch="geneve").dsr_port == 6081
    assert config(lb_dsr_dispatch="geneve", lb_dsr_geneve_port=6082, routing_mode="native").dsr_port == 6082


@pytest.mark.parametrize(("port", "words"), [(8472, "overlay's, too.*tunnel_port"), (30081, "node_port_range 30000-")])
def test_a_port_of_direct_answers_that_others_have(port: int, words: str) -> None:
    with pytest.raises(ValidationError, match=f"lb_dsr_geneve_port: {port}.*{words}"):
        config(lb_dsr_dispatch="geneve", lb_dsr_geneve_port=port)
    assert not config(lb_dsr_geneve_port=port).dsr_port


def test_exclusions_become_prefixes() -> None:
    wanted = config(native_routing_cidr=["10.0.0.0/8"], masquerade_exclude=["2001:db8::/32"])
    keys = {IpcacheKey.unpack(key) for key in translation.excluded_entries(wanted.excluded_ranges)}
    assert keys == {
        IpcacheKey(prefixlen=104, address=to_bytes(ipaddress.ip_address("10.0.0.0"))),
        IpcacheKey(prefixlen=32, address=to_bytes(ipaddress.ip_address("2001:db8::"))),
    }


def test_a_device_has_at_most_one_address_of_each_family() -> None:
    addresses = [ipaddress.ip_address(text) for text in ("192.0.2.1", "192.0.2.2", "2001:db8::1")]
    entries = translation.netdev_entries({7: addresses, 8: addresses[2:]})
    first = NetdevInfo(ipv4=to_bytes(addresses[0]), ipv6=to_bytes(addresses[2]))
    assert entries == {
        (7).to_bytes(4, "little"): first.pack(),
        (8).to_bytes(4, "little"): NetdevInfo(ipv6=to_bytes(addresses[2])).pack(),
    }


class Table:
    """A table in memory."""

    def __init__(self, entries: dict[bytes, bytes], max_entries: int = 1000) -> None:
        self.entries, self.max_entries = entries, max_entries

    def chunks(self, count: int = 2) -> Iterator[tuple[bytes, bytes, int]]:
        items = list(self.entries.items())
        for start in range(0, len(items), 2):
            part = items[start : start + 2]
            yield b"".join(key for key, _ in part), b"".join(value for _, value in part), len(part)

    def delete_packed(self, keys: bytes) -> int:
        return sum(self.entries.pop(keys[at : at + 40], None) is not None for at in range(0, len(keys), 40))


def test_only_what_is_over_is_collected() -> None:
    now = 10**12
    times = {port: now + (port - 3) * GRACE_NS for port in range(6)}
    table = Table({NatKey(sport=port).pack(): NatEntry(expires_ns=end).pack() for port, end in times.items()})
    collector = NatCollector(table)
    assert asyncio.run(collector.sweep(now)).removed == 2
    assert {NatKey.unpack(key).sport for key in table.entries} == {2, 3, 4, 5}
    assert (collector.entries, collector.removed_total) == (4, 2)


def test_clients_of_a_vanished_backend_are_let_go() -> None:
    backend = to_bytes(ipaddress.ip_address("10.0.0.5"))

    def entry(port: int, flags: int = 0, service: int = 5) -> bytes:
        value = NatEntry(daddr=backend, dport=be16(port), flags=flags, service_id=service, expires_ns=10**15)
        return value.pack()

    table = Table(
        {
            NatKey(sport=1).pack(): entry(80),
            NatKey(sport=2).pack(): entry(81),
            NatKey(sport=3).pack(): entry(81, NatFlags.ANSWER),
            NatKey(sport=4).pack(): entry(81, service=0),
        }
    )
    alive = frozenset({backend + (80).to_bytes(2, "big")})
    asyncio.run(NatCollector(table, live_backends=lambda: alive).sweep(10**12))
    assert {NatKey.unpack(key).sport for key in table.entries} == {1, 3, 4}


def test_a_full_table_is_in_the_status_and_in_the_figures() -> None:
    registry = CollectorRegistry()
    collector = NatCollector(Table({}))
    shown = Translations(registry, collector)
    collector.entries = 899
    assert not shown.check().message
    collector.entries = 900
    assert "nat_max" in shown.check().message
    assert registry.get_sample_value("ciliate_nat_entries") == 900


def test_a_translation_as_people_see_it() -> None:
    key = NatKey(
        saddr=to_bytes(ipaddress.ip_address("203.0.113.9")),
        daddr=to_bytes(ipaddress.ip_address("192.0.2.1")),
        sport=be16(50000),
        dport=be16(30080),
        protocol=6,
    )
    entry = NatEntry(
        saddr=to_bytes(ipaddress.ip_address("192.0.2.1")),
        daddr=to_bytes(ipaddress.ip_address("fd00::5")),
        sport=be16(40000),
        dport=be16(80),
        flags=NatFlags.SEEN_REPLY,
        service_id=7,
    )
    row = dict(zip(dump.NAT.columns, dump.NAT.cells(key.pack(), entry.pack()), strict=True))
    assert (row["source"], row["destination"]) == ("203.0.113.9:50000", "192.0.2.1:30080")
    assert (row["new_source"], row["new_destination"]) == ("192.0.2.1:40000", "[fd00::5]:80")
    assert (row["way"], row["service_id"], row["left"], row["flags"]) == ("in", "7", "0s", "SEEN_REPLY")
