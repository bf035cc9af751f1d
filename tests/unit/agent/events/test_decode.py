"""Records -> columns -> names, without a kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from services.agent.abi.events import EVENT_VERSION, EventFlags, EventType
from services.agent.events import decode
from services.agent.events.enrich import EXPLAINED_PER_SECOND, KEEP_NAMES_NS, Enricher
from services.agent.events.getters import PodRef
from services.flows.columns import TRACE
from services.flows.dictionary import Dictionaries
from services.flows.entries import Decision, HttpRequest, Party
from services.model.addresses import V4_MAPPED_PREFIX


@pytest.fixture
def dictionaries() -> Dictionaries:
    return Dictionaries()


@pytest.fixture
def enricher(dictionaries: Dictionaries, names: Any) -> Enricher:
    return Enricher(dictionaries, names, "default")


def wall(times: Any) -> Any:
    return times.astype(np.int64) + 5


def test_an_allowed_connection(records: Any, enricher: Enricher, dictionaries: Dictionaries) -> None:
    columns = decode.connections(
        records.flow({"rule_id": 900, "service_id": 3, "packets": (1, 2), "bytes": (60, 70), "rtt_us": 9}),
        enricher,
        wall,
    )
    assert dictionaries.parties[int(columns["source"][0])] == Party(
        V4_MAPPED_PREFIX + b"\x0a\0\0\x01", 1001, ("k8s:app=client",), "default", "client",
        "Deployment", "client", 5, "default",
    )  # fmt: skip
    policy = dictionaries.decisions[int(columns["policy"][0])]
    assert policy is not None
    assert (policy.matched, [str(each) for each in policy.policies]) == (
        True,
        ["CiliumNetworkPolicy default/deny-all-ingress-to-webapp"],
    )
    service = dictionaries.services[int(columns["service"][0])]
    assert service is not None
    assert service.name == "my-webapp-svc"
    single = {name: values[0].item() for name, values in columns.items()}
    assert (single["time_ns"], single["verdict"], single["source_port"], single["destination_port"]) == (
        1005, 1, 40000, 80,
    )  # fmt: skip
    assert [single[name] for name in ("packets", "reply_packets", "bytes", "reply_bytes", "rtt_us")] == [
        1,
        2,
        60,
        70,
        9,
    ]


@pytest.mark.parametrize(
    ("fields", "verdict", "matched"),
    [
        ({"type": 1}, 1, None),
        ({"type": 1, "rule_id": 900}, 1, True),
        ({"type": 1, "rule_id": 555}, 1, None),  # a rule that is gone
        ({"type": 2, "drop_reason": 133}, 2, False),
        ({"type": 2, "drop_reason": 133, "direction": 2}, 2, None),  # nothing isolates it there
        ({"type": 2, "drop_reason": 181, "rule_id": 900}, 2, True),
        ({"type": 2, "drop_reason": 132}, 2, None),
        ({"type": 2, "drop_reason": 221}, 2, False),
        ({"type": 3}, 1, None),
        ({"type": 4}, 1, None),
        ({"type": 5}, 1, None),
        ({"type": 5, "drop_reason": 133}, 2, False),
        ({"type": 1, "drop_reason": 133, "flags": EventFlags.AUDIT}, 4, False),
        ({"type": 1, "drop_reason": 181, "rule_id": 900, "flags": EventFlags.AUDIT}, 4, True),
        ({"type": 5, "drop_reason": 133, "flags": EventFlags.AUDIT}, 4, False),
    ],
)
def test_verdicts_and_policies(
    records: Any, enricher: Enricher, dictionaries: Dictionaries, fields: Any, verdict: int, matched: bool | None
) -> None:
    columns = decode.connections(records.flow(fields), enricher, wall)
    found = dictionaries.decisions[int(columns["policy"][0])]
    assert int(columns["verdict"][0]) == verdict
    assert (found.matched if isinstance(found, Decision) else None) == matched


def test_default_deny_names_the_nearest_rule_once_per_case(
    records: Any, enricher: Enricher, dictionaries: Dictionaries, names: Any
) -> None:
    drop = {"type": 2, "drop_reason": 133}
    icmp = {**drop, "protocol": 1, "sport": 8, "dport": 0}
    rows = (drop, {**drop, "sport": 40001}, {**drop, "dport": 81}, {**drop, "src_identity": 1003}, icmp)
    for _ in range(2):
        columns = decode.connections(records.flow(*rows), enricher, wall)
    found = [dictionaries.decisions[number] for number in columns["policy"].tolist()]
    assert found == [Decision(False, names.isolation[7, 1], names.near)] * 5
    assert names.explained == [(7, 1, 1001, 6, 80), (7, 1, 1001, 6, 81), (7, 1, 1003, 6, 80), (7, 1, 1001, 1, 8)]


def test_the_nearest_rule_is_that_of_the_part_concerned(records: Any, enricher: Enricher, names: Any) -> None:
    here, there = (bytes([0] * 15 + [number]) for number in (1, 2))
    names.parts = {(1001, here): 5001, (1001, there): 5002}
    drop = {"type": 2, "drop_reason": 133}
    rows = [{**drop, "saddr": here}, {**drop, "saddr": there}, {**drop, "saddr": bytes(16)}, {**drop, "saddr": here}]
    decode.connections(records.flow(*rows), enricher, wall)
    assert names.explained == [(7, 1, 5001, 6, 80), (7, 1, 5002, 6, 80), (7, 1, 1001, 6, 80)]


def test_a_scan_of_ports_is_not_explained_port_by_port(
    records: Any, enricher: Enricher, dictionaries: Dictionaries, names: Any
) -> None:
    scan = [{"type": 2, "drop_reason": 133, "dport": port} for port in range(1, 1001)]
    enricher.refresh(2 * 10**9)
    columns = decode.connections(records.flow(*scan), enricher, wall)
    assert len(names.explained) == EXPLAINED_PER_SECOND
    last = dictionaries.decisions[int(columns["policy"][-1])]
    assert last == Decision(False, names.isolation[7, 1])
    enricher.refresh(3 * 10**9)
    decode.connections(records.flow({"type": 2, "drop_reason": 133, "dport": 2000}), enricher, wall)
    assert names.explained[-1][-1] == 2000


def test_requests(records: Any, enricher: Enricher, dictionaries: Dictionaries) -> None:
    columns = decode.requests(
        records.http(
            {},
            {"status": 403, "drop_reason": 220, "method": b"POST", "method_len": 4},
            {"path": b"/\x1b[31m\xff", "path_len": 7},
            {"path": b"/" + b"a" * 135, "path_len": 400},
            {"drop_reason": 221, "path_len": 0},
            {"drop_reason": 220, "flags": EventFlags.AUDIT},
        ),
        enricher,
        wall,
    )
    requests = [dictionaries.requests[number] for number in columns["http"].tolist()]
    assert requests == [
        HttpRequest("GET", "/api/v1/users", 11, 13),
        HttpRequest("POST", "/api/v1/users", 11, 13),
        HttpRequest("GET", "/%1B[31m%FF", 11, 7),
        HttpRequest("GET", "/" + "a" * 135, 11, 400),
        HttpRequest("GET", "", 11, 0),
        HttpRequest("GET", "/api/v1/users", 11, 13),
    ]
    assert columns["verdict"].tolist() == [1, 2, 1, 1, 2, 4]
    assert columns["status"].tolist() == [0, 403, 0, 0, 0, 0]
    assert not columns.keys() & set(TRACE)


def test_traces(records: Any, enricher: Enricher) -> None:
    trace, parent = bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736"), 0x00F067AA0BA902B7
    found = records.http(
        {"traced": 1, "parent_id": parent, "trace_flags": 1, "subtype": 1, "status": 200},
        {"parent_id": parent, "trace_flags": 1},  # what an earlier record left there
        {"traced": 1, "parent_id": 7, "trace_flags": 0xA2},
    )
    found["parent_id"] = found["parent_id"].byteswap()
    found["trace_id"] = np.frombuffer(trace * 3, np.uint64).reshape(3, 2)
    columns = decode.requests(found, enricher, wall)
    high, low = (int.from_bytes(half, "big") for half in (trace[:8], trace[8:]))
    assert columns["trace_high"].tolist() == [high, 0, high, high]  # the answer is the last row
    assert columns["trace_low"].tolist() == [low, 0, low, low]
    assert columns["parent_span"].tolist() == [parent, 0, 7, parent]
    assert columns["trace_flags"].tolist() == [1, 0, 0xA2, 1]


def test_responses_are_rows_of_their_own(records: Any, enricher: Enricher, dictionaries: Dictionaries) -> None:
    given = records.http(
        {"latency_us": 5},
        {"subtype": 1, "status": 404, "latency_us": 7, "time_ns": 50_000, "sport": 4321},
        {"subtype": 1, "status": 200, "latency_us": 2, "flags": EventFlags.AUDIT, "drop_reason": 220},
    )
    given["time_ns"][[0, 2]] = 40_000
    columns = decode.requests(given, enricher, lambda times: times.astype(np.int64))
    found = list(
        zip(*(columns[n].tolist() for n in ("time_ns", "ct_state", "status", "duration_us", "verdict")), strict=True)
    )
    assert found == [
        (35_000, 0, 0, 0, 1),
        (38_000, 0, 0, 0, 4),
        (40_000, 2, 200, 2, 1),
        (43_000, 0, 0, 0, 1),
        (50_000, 2, 404, 7, 1),
    ]
    assert columns["source_port"][[3, 4]].tolist() == [4321, columns["destination_port"][3]]
    assert columns["source"][4] == columns["destination"][3]
    assert columns["policy"][4] == 0


def test_known_things_are_asked_once(records: Any, enricher: Enricher, names: Any) -> None:
    batch = records.flow(*({"sport": port} for port in range(1000)))
    decode.connections(batch, enricher, wall)
    decode.connections(batch, enricher, wall)
    assert names.asked == 2


def test_the_same_address_under_another_identity_is_another_party(
    records: Any, enricher: Enricher, dictionaries: Dictionaries
) -> None:
    columns = decode.connections(records.flow({}, {"src_identity": 1003}, {}), enricher, wall)
    first, second, third = columns["source"].tolist()
    assert first == third != second


def test_renamed_things_are_new_entries_and_old_rows_keep_theirs(
    records: Any, enricher: Enricher, names: Any, dictionaries: Dictionaries
) -> None:
    before = decode.connections(records.flow({}), enricher, wall)["source"]
    address = V4_MAPPED_PREFIX + b"\x0a\0\0\x01"
    names.pods[address] = PodRef("default", "next", 9)
    enricher.refresh(1)
    assert decode.connections(records.flow({}), enricher, wall)["source"].tolist() == before.tolist()  # not told yet
    names.generation += 1
    enricher.refresh(2)
    after = decode.connections(records.flow({}), enricher, wall)["source"]
    parties = [dictionaries.parties[int(numbers[0])] for numbers in (before, after)]
    assert [party.pod for party in parties if party] == ["client", "next"]


def test_a_pod_s_last_events_keep_its_name(
    records: Any, enricher: Enricher, names: Any, dictionaries: Dictionaries
) -> None:
    def pod(now: int) -> str:
        names.generation += 1
        enricher.refresh(now)
        party = dictionaries.parties[int(decode.connections(records.flow({}), enricher, wall)["source"][0])]
        assert party is not None
        return party.pod

    hour = 3600 * 1_000_000_000
    assert pod(1) == "client"
    names.pods.clear()
    assert pod(hour) == "client"  # known until now, however long ago it was asked
    assert pod(hour + KEEP_NAMES_NS) == "client"
    assert pod(hour + KEEP_NAMES_NS + 1) == ""


def test_a_freed_number_is_asked_again(records: Any, enricher: Enricher, dictionaries: Dictionaries) -> None:
    numbers = decode.connections(records.flow({}), enricher, wall)["source"]
    dictionaries.parties.retain(numbers)
    dictionaries.parties.release(numbers)
    other = dictionaries.parties.intern(Party(bytes(16)))
    assert other == int(numbers[0])
    again = decode.connections(records.flow({}), enricher, wall)["source"]
    party = dictionaries.parties[int(again[0])]
    assert party is not None
    assert party.pod == "client"


def test_thousands_of_addresses_are_told_apart(records: Any, enricher: Enricher, dictionaries: Dictionaries) -> None:
    batch = np.repeat(records.flow({}), 70_000)
    batch["saddr"][:, 13] = np.arange(70_000) >> 16
    batch["saddr"][:, 14] = (np.arange(70_000) >> 8) & 255
    batch["saddr"][:, 15] = np.arange(70_000) & 255
    for _ in range(2):
        numbers = decode.connections(batch, enricher, wall)["source"]
        assert len(np.unique(numbers)) == 70_000
        for place in (0, 1, 255, 256, 65_536, 69_999):
            party = dictionaries.parties[int(numbers[place])]
            assert party is not None
            assert party.address == batch["saddr"][place].tobytes()


def test_unreadable_records_are_left_out(records: Any) -> None:
    batch = records.flow({}, {"version": EVENT_VERSION + 1}, {"type": 6}, {"type": 0}, {"type": 4})
    good = decode.readable(batch, EventType.NEW, EventType.VERDICT_CHANGE)
    assert good["type"].tolist() == [1, 4]


def test_two_rings_are_one_batch_in_the_order_of_time(records: Any, enricher: Enricher) -> None:
    flows = decode.connections(records.flow({"time_ns": 10}, {"time_ns": 30}), enricher, wall)
    requests = decode.requests(records.http({"time_ns": 20}), enricher, wall)
    joined = decode.by_time(flows, requests)
    assert joined["kind"].tolist() == [1, 6, 1]
    assert joined["http"].tolist()[0] == joined["http"].tolist()[2] == 0
    assert joined["rtt_us"].tolist() == [0, 0, 0]
