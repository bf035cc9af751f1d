"""Address table, services and numbers on their own."""

from __future__ import annotations

import ipaddress

import pytest

from services.agent.abi.ipcache import RemoteEndpointInfo
from services.agent.calc.ipcache import Ipcache
from services.agent.calc.maps import Put, Remove, ipcache_key
from services.agent.calc.numbers import StableNumbers
from services.agent.calc.services import Services
from services.model.addresses import to_bytes
from services.model.identity import NumericIdentity
from services.model.objects import EndpointSlice, IpEntry, LocalEndpoint, ObjectKey, Service, ServicePort, SliceEndpoint

A = ipaddress.ip_address
N = ipaddress.ip_network


def entry(prefix: str, node: str = "node2") -> IpEntry:
    return IpEntry(N(prefix), NumericIdentity(300), node, A("192.168.0.2"), "default", "p")


def endpoint(address: str) -> LocalEndpoint:
    return LocalEndpoint(1, "default", "p", "", 1, "", bytes(6), bytes(6), (A(address),), NumericIdentity(400))


def read(ipcache: Ipcache, prefix: str) -> tuple[int, bytes] | None:
    raw = ipcache.desired.get(ipcache_key(N(prefix)))
    if raw is None:
        return None
    info = RemoteEndpointInfo.unpack(raw)
    return int(info.identity), bytes(info.tunnel_endpoint)


def test_who_knows_an_address_best() -> None:
    ipcache = Ipcache("node1")
    assert read(ipcache, "0.0.0.0/0") == (9, bytes(16))
    assert read(ipcache, "::/0") == (10, bytes(16))
    ipcache.set_prefix(N("10.0.0.1/32"), 1 << 24 | 5)
    ipcache.set_row(N("10.0.0.1/32"), entry("10.0.0.1/32"))
    assert read(ipcache, "10.0.0.1/32") == (300, to_bytes(A("192.168.0.2")))
    ipcache.set_endpoint(None, endpoint("10.0.0.1"))
    assert read(ipcache, "10.0.0.1/32") == (400, bytes(16)), "a local endpoint is not behind a tunnel"
    ipcache.set_endpoint(endpoint("10.0.0.1"), None)
    ipcache.set_row(N("10.0.0.1/32"), None)
    assert read(ipcache, "10.0.0.1/32") == (1 << 24 | 5, bytes(16))
    ipcache.set_prefix(N("10.0.0.1/32"), None)
    assert read(ipcache, "10.0.0.1/32") is None


def test_own_rows_have_no_tunnel() -> None:
    ipcache = Ipcache("node1")
    ipcache.set_row(N("10.0.0.1/32"), entry("10.0.0.1/32", "node1"))
    assert read(ipcache, "10.0.0.1/32") == (300, bytes(16))


def service(*addresses: str, **more: object) -> Service:
    ips = tuple(A(address) for address in addresses)
    return Service("ns", "web", "ClusterIP", ips, (ServicePort("http", 80, 6, 8080),), **more)  # type: ignore[arg-type]


def endpoints(name: str, *found: SliceEndpoint, port: str = "http") -> EndpointSlice:
    return EndpointSlice("ns", name, "web", ((port, 8080, 6),), found)


READY = SliceEndpoint((A("10.1.0.1"),))
READY6 = SliceEndpoint((A("fd00::1"),))
UNREADY = SliceEndpoint((A("10.1.0.2"),), ready=False)
LEAVING = SliceEndpoint((A("10.1.0.3"),), ready=False, serving=True, terminating=True)
GONE = SliceEndpoint((A("10.1.0.4"),), ready=False, serving=False, terminating=True)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((READY, UNREADY, LEAVING), ["10.1.0.1"]),
        ((UNREADY, LEAVING, GONE), ["10.1.0.3"]),
        ((UNREADY, GONE), []),
        ((READY6,), []),
        ((), []),
    ],
)
def test_backends_are_those_that_can_answer(found: tuple[SliceEndpoint, ...], expected: list[str]) -> None:
    services = Services()
    services.set_service(ObjectKey("Service", "ns", "web"), service("10.96.0.1"))
    services.set_slice(ObjectKey("EndpointSlice", "ns", "web-1"), endpoints("web-1", *found))
    services.settle()
    (frontend,) = services.frontends()
    assert [str(address) for address, _ in frontend.backends] == expected
    assert services.name_of(frontend.id) == ("ns", "web")


def test_slots_exist_before_they_are_counted_and_go_after() -> None:
    services = Services()
    key = ObjectKey("EndpointSlice", "ns", "web-1")
    services.set_service(ObjectKey("Service", "ns", "web"), service("10.96.0.1", "fd00::96"))
    services.set_slice(key, endpoints("web-1", READY, READY6, SliceEndpoint((A("10.1.0.9"),))))
    services.settle()
    assert {name: len(table.take()[0]) for name, table in services.tables.items()} == {
        "services": 4,  # with the addresses' other ports
        "backends": 3,
        "backend_slots": 0,
        "maglev": 0,
        "source_ranges": 0,
        "revnat": 2,
    }
    services.set_slice(key, endpoints("web-1", READY))
    services.settle()
    puts, removals = services.tables["backends"].take()
    assert (len(puts), len(removals)) == (0, 2)
    services.set_service(ObjectKey("Service", "ns", "web"), None)
    services.set_slice(key, None)
    services.settle()
    assert not services.frontends()
    assert not any(table.desired for table in services.tables.values())


def test_ports_meet_by_name() -> None:
    services = Services()
    services.set_service(ObjectKey("Service", "ns", "web"), service("10.96.0.1"))
    services.set_slice(ObjectKey("EndpointSlice", "ns", "web-1"), endpoints("web-1", READY, port="other"))
    services.settle()
    assert services.frontends()[0].backends == ()


def test_numbers_are_stable_bounded_and_free_again() -> None:
    numbers = StableNumbers(1, 4)
    taken = {numbers.take(name) for name in "abcd"}
    assert taken == {1, 2, 3, 4}
    assert numbers.take("e") is None
    again = numbers.take("b")
    numbers.give_back("b")
    numbers.give_back("unknown")
    assert numbers.take("e") == again
    other = StableNumbers(1, 1 << 30)
    assert other.take("x") == StableNumbers(1, 1 << 30).take("x")
    assert other.name(other.take("x") or 0) == "x"


def test_tables_tell_only_what_changed() -> None:
    ipcache = Ipcache("node1")
    ipcache.take()
    ipcache.set_row(N("10.0.0.1/32"), entry("10.0.0.1/32"))
    ipcache.set_row(N("10.0.0.1/32"), None)
    assert ipcache.take() == ([], [], False)
    ipcache.set_row(N("10.0.0.1/32"), entry("10.0.0.1/32"))
    puts, removals, moved = ipcache.take()
    assert [type(change) for change in puts] == [Put]
    assert not removals
    assert not moved
    ipcache.set_row(N("10.0.0.1/32"), None)
    puts, removals, _ = ipcache.take()
    assert [type(change) for change in removals] == [Remove]
