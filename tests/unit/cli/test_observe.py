"""`observe` beyond flows from a relay: files, formats of time, events of nodes, explanations, switches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from typer.testing import CliRunner

from services.cli import explanation, node_events, time_formats
from services.cli.app import app
from services.cli.arguments import mark_negations
from services.cli.flowtext import Style, node_status
from services.common.errors import Invalid, NotFound
from services.common.pb.details.v1 import details_pb2
from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2 as pb


def event(second: int, verdict: str = "FORWARDED", **flow: Any) -> dict[str, Any]:
    time = f"2026-11-23T05:06:{second:02d}.123456789Z"
    base = {"time": time, "verdict": verdict, "event_type": {"type": 4}, "is_reply": False, "node_name": "n1"}
    ends = {"IP": {"source": "10.0.0.1", "destination": "10.0.0.2"}, "Summary": f"flow {second}"}
    return {"flow": base | ends | flow, "node_name": "n1", "time": time}


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Ten flows, a second apart; the even ones are drops; after them 7 lost events."""
    path = tmp_path / "flows.json"
    events = [event(number, "DROPPED" if number % 2 == 0 else "FORWARDED") for number in range(1, 11)]
    lost = {"source": "HUBBLE_RING_BUFFER", "num_events_lost": "7", "first": events[0]["time"]}
    events.append({"lost_events": lost | {"last": events[1]["time"]}, "time": events[9]["time"]})
    path.write_text("".join(json.dumps(each | {"unknown": 1}) + "\n" for each in events))
    return path


def observe(*words: str) -> str:
    result = CliRunner().invoke(app, mark_negations(["observe", *words]), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def seconds(text: str) -> list[int]:
    return [int(line.rpartition("flow ")[2].rstrip(")")) for line in text.splitlines() if "flow " in line]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", list(range(1, 11))),
        ("--last 3", [9, 10]),  # a message about losses counts, as every kept line does
        ("--first 3", [1, 2, 3]),
        ("--all", list(range(1, 11))),
        ("--verdict DROPPED", [2, 4, 6, 8, 10]),
        ("--not --verdict DROPPED", [1, 3, 5, 7, 9]),
        ("--since 2026-11-23T05:06:09Z", [9, 10]),
        ("--until 2026-11-23T05:06:02.5Z", [1, 2]),
        ("--cel-expression _flow.verdict==Verdict.DROPPED --last 3", [8, 10]),
        ('--allowlist {"verdict":["DROPPED"]} --first 1', [2]),
        ('--denylist {"verdict":["DROPPED"]} --first 1', [1]),
        ("-4", []),
        ("--not -4 --first 1", [1]),
        ("--follow=false --first 1", [1]),
    ],
)
def test_flows_of_a_file(recorded: Path, words: str, expected: list[int]) -> None:
    assert seconds(observe("--input-file", str(recorded), *words.split())) == expected


def test_losses_in_a_file_are_told_and_summed_up(recorded: Path) -> None:
    text = observe("--input-file", str(recorded))
    assert "EVENTS LOST: HUBBLE_RING_BUFFER CPU(0) 7 (first: Nov 23 05:06:01.123, last: Nov 23 05:06:02.123)" in text
    assert "7 events were lost; see above where" in text


def test_formats_of_a_file(recorded: Path) -> None:
    name = ("--input-file", str(recorded))
    records = observe(*name, "-o", "dict", "--last", "2").split("-" * 12 + "\n")
    assert len(records) == 2
    assert "  TIMESTAMP: Nov 23 05:06:10.123\n     SOURCE: 10.0.0.1\nDESTINATION: 10.0.0.2\n" in records[0]
    assert "       TYPE: EVENTS LOST\n    VERDICT: -\n" in records[1]
    (line,) = observe(*name, "-j", "--first", "1").splitlines()
    assert json.loads(line)["flow"]["verdict"] == "FORWARDED"
    assert '": ' not in line
    table = observe(*name, "-o", "table").splitlines()
    assert len(table) == 1 + 11 + 1  # titles, events, and how much was lost
    assert observe(*name, "--first", "1", "--time-format", "RFC3339Nano").startswith("2026-11-23T05:06:01.123456789Z: ")
    coloured = observe(*name, "--last", "2", "--color", "always")
    assert "\x1b[31mDROPPED\x1b[0m" in coloured
    assert "\x1b[31mEVENTS LOST\x1b[0m" in coloured


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--input-file /nonexistent", "--input-file: cannot read /nonexistent: No such file"),
        ("--color blue", "--color: 'blue'"),
        ("--time-format soon", "--time-format: 'soon' is not known"),
        ("--field-mask verdict", "--field-mask: goes with --output json alone"),
        ("--allowlist {", "--allowlist: '{' is no FlowFilter in JSON"),
        ("--cel-expression 1+", "cel_expression: '1.' does not compile"),
        ("-n a -A", "--namespace: cannot be combined with --all-namespaces"),
        ("--ip-version v5", "--ip-version: 'v5' is not known"),
        ("--ip-trace-id 0", "--ip-trace-id: '0': must be a number above 0"),
        ("things", "'things' cannot be observed"),
    ],
)
def test_what_is_wrong_is_named(recorded: Path, words: str, message: str) -> None:
    given = words.split() if "--input-file" in words else ["--input-file", str(recorded), *words.split()]
    with pytest.raises((Invalid, NotFound), match=message):
        observe(*given)


def test_a_line_that_is_no_flow_is_named(recorded: Path) -> None:
    with recorded.open("a") as file:
        file.write("\n{]\n")
    with pytest.raises(Invalid, match=r"flows.json:13: no flow"):
        observe("--input-file", str(recorded))


def test_switches_become_values_and_values_of_switches_go() -> None:
    words = ["observe", "-4", "--not", "--encrypted", "--ip-translation=false", "--print-node-name=true", "-A"]
    assert mark_negations(words) == [
        "observe",
        "--ip-version=v4",
        "--encrypted",
        "\0true",
        "--no-ip-translation",
        "--print-node-name",
        "--all-namespaces=true",
    ]
    assert mark_negations(["status", "-4", "--not"]) == ["status", "-4", "--not"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("StampMilli", "Nov  3 05:06:07.089"),
        ("YearMonthDay", "2026-11-03"),
        ("YearMonthDayHour", "2026-11-03T05Z"),
        ("YearMonthDayHourMinute", "2026-11-03T05:06Z"),
        ("RFC3339", "2026-11-03T05:06:07Z"),
        ("RFC3339Milli", "2026-11-03T05:06:07.089Z"),
        ("RFC3339Micro", "2026-11-03T05:06:07.089Z"),
        ("RFC3339Nano", "2026-11-03T05:06:07.089000001Z"),
        ("RFC1123Z", "Tue, 03 Nov 2026 05:06:07 +0000"),
        ("%H:%M", "05:06"),
    ],
)
def test_formats_of_time(name: str, expected: str) -> None:
    assert time_formats.text(1793682367, 89_000_001, time_formats.check(name)) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"type": "AGENT_STARTED", "agent_start": {"time": "2026-11-23T05:06:07Z"}},
            "start time: 2026-11-23T05:06:07Z",
        ),
        (
            {"type": "POLICY_UPDATED", "policy_update": {"labels": ["a=b", "c"], "revision": 5, "rule_count": 2}},
            "labels: [a=b, c], revision: 5, count: 2",
        ),
        (
            {"type": "ENDPOINT_REGENERATE_FAILURE", "endpoint_regenerate": {"id": 7, "labels": ["x"], "error": "e"}},
            "id: 7, labels: [x], error: e",
        ),
        (
            {"type": "ENDPOINT_CREATED", "endpoint_update": {"id": 7, "namespace": "n", "pod_name": "p"}},
            "id: 7, namespace: n, pod name: p",
        ),
        (
            {
                "type": "IPCACHE_UPSERTED",
                "ipcache_update": {"cidr": "10.0.0.1/32", "identity": 5, "old_identity": 4, "host_ip": "1.1.1.1"},
            },
            "cidr: 10.0.0.1/32, identity: 5, old identity: 4, host ip: 1.1.1.1, encrypt key: 0",
        ),
        ({"type": "SERVICE_DELETED", "service_delete": {"id": 3}}, "id: 3"),
        ({"unknown": {"type": "9", "notification": "{\x1b}"}}, "type: 9, notification: {^[}"),
    ],
)
def test_agent_events_as_text(given: dict[str, Any], expected: str) -> None:
    message = ParseDict({"agent_event": given, "time": "2026-11-23T05:06:07Z"}, pb.GetAgentEventsResponse())
    assert node_events.line(message, Style()).endswith(f": {given.get('type', 'AGENT_EVENT_UNKNOWN')} ({expected})")


def test_debug_events_as_text() -> None:
    given = {"type": "DBG_CT_CREATED4", "source": {"ID": 7, "namespace": "n", "pod_name": "p"}, "message": "made"}
    message = ParseDict({"debug_event": given, "node_name": "n1"}, pb.GetDebugEventsResponse())
    expected = "N/A [n1]: n/p (ID: 7) DBG_CT_CREATED4 MARK: N/A CPU: N/A (made)"
    assert node_events.line(message, Style(node_names=True)) == expected


def explained(details: dict[str, Any], **flow: Any) -> list[str]:
    found = ParseDict({"traffic_direction": "INGRESS"} | flow, flow_pb2.Flow())
    found.extensions.Pack(ParseDict(details, details_pb2.FlowDetails()))
    return [line.strip() for line in explanation.lines(found)]


POLICY = {"name": "web", "namespace": "d", "kind": "NetworkPolicy", "labels": ["ciliate:rule=spec.ingress[0]"]}


def test_explanations() -> None:
    denied = {"default_deny": True, "nearest_rule": "NetworkPolicy d/web spec.ingress[1]", "nearest_failed": ["port"]}
    assert explained(denied, verdict="DROPPED", ingress_denied_by=[POLICY | {"labels": [], "revision": 4}]) == [
        "no rule matched at ingress of the destination: default deny, isolated by NetworkPolicy d/web (revision 4)",
        "nearest rule: NetworkPolicy d/web spec.ingress[1]: its port did not match",
    ]
    assert explained({}, verdict="FORWARDED", ingress_allowed_by=[POLICY | {"revision": 4}]) == [
        "allowed at ingress of the destination by NetworkPolicy d/web spec.ingress[0] (revision 4)"
    ]
    assert explained({}, verdict="DROPPED", drop_reason_desc="STALE_OR_UNROUTABLE_IP") == [
        "dropped for another reason than policy: STALE_OR_UNROUTABLE_IP"
    ]
    process = {"pid": 42, "name": "curl", "executable": "/usr/bin/curl", "container": "abc"}
    assert explained({"process": process}, verdict="FORWARDED")[-1] == (
        "process curl (pid 42) /usr/bin/curl, container abc"
    )


def test_statuses_of_nodes() -> None:
    def status(state: str, *names: str, debug: bool = False, **rest: Any) -> str:
        message = {"node_status": {"state_change": state, "node_names": names, **rest}, "node_name": "relay"}
        return node_status(ParseDict(message, pb.GetFlowsResponse()), Style(debug=debug))

    assert status("NODE_CONNECTED", "a", "b") == ""
    assert status("NODE_CONNECTED", "a", "b", debug=True) == "N/A [relay]: Receiving flows from 2 nodes: a, b"
    many = [f"a-node-with-a-long-name-{number}" for number in range(5)]
    assert status("NODE_UNAVAILABLE", *many).endswith(f"5 nodes are unavailable: {many[0]} (and 4 more)")
    assert status("NODE_ERROR", "a", message="no \x1b") == 'N/A [relay]: Error "no ^[" on 1 nodes: a'
