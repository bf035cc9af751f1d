"""The command line around its servers: options, tables, where servers are found, and errors one can act on."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from services.cli import bpf, connect, inspection, observe, status, times
from services.cli.app import app
from services.cli.connect import Settings
from services.cli.output import Output, cell, render, render_one
from services.cli.sandbox import find_pod, read_manifests, up
from services.common.errors import Invalid, NotFound, Unavailable
from services.common.pb.agent.v1 import agent_pb2
from services.flows.flags import Filters
from services.sandbox import state

NOW = datetime.datetime(2026, 11, 23, 5, 0, tzinfo=datetime.UTC)
NONE = Filters((), ())
ROOT = Path(__file__).parents[3]


def ciliate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "services.cli", *arguments])


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CILIATE_")}
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.fixture
def no_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(state, "RUN_ROOT", tmp_path)
    monkeypatch.setattr(connect, "AGENT_SOCKETS", tmp_path / "agents")
    return tmp_path


def pretend(name: str, *, alive: bool = True) -> None:
    paths = state.Paths(name)
    paths.root.mkdir(parents=True)
    begun = (state.start_time(os.getpid()) or 0) + (0 if alive else 1)
    node = state.NodeState("node1", "ns", f"/{name}/agent.sock", "h", "b")
    fields = {
        "identity": f"unix:///{name}/i",
        "relay": f"unix:///{name}/r",
        "tls_ca": "ca",
        "tls_cert": "c",
        "tls_key": "k",
    }
    state.SandboxState(name, os.getpid(), begun, str(paths.control), nodes=(node,), **fields).save(paths.state)


def test_a_running_sandbox_is_found_without_flags(no_sandbox: Path) -> None:
    pretend("one")
    pretend("dead", alive=False)
    found = connect.find(Settings())
    assert (found.sandbox, found.relay, found.agents) == (
        "one",
        "unix:///one/r",
        (("node1", "unix:///one/agent.sock"),),
    )
    assert connect.find(Settings(relay="10.0.0.1:4245")).relay == "10.0.0.1:4245"
    assert connect.find(Settings(insecure=True)).tls is None


def test_of_several_sandboxes_the_default_one_is_meant_or_one_must_be_named(no_sandbox: Path) -> None:
    pretend("one")
    pretend("two")
    with pytest.raises(Invalid, match=r"several sandboxes are running \(one, two\); .*--sandbox"):
        connect.find(Settings())
    assert connect.find(Settings(sandbox="two")).sandbox == "two"
    pretend("default")
    assert connect.find(Settings()).sandbox == "default"


def test_without_any_server_the_error_says_what_to_start(no_sandbox: Path) -> None:
    with pytest.raises(NotFound, match="ciliate sandbox up"):
        connect.find(Settings())
    with pytest.raises(NotFound, match="no sandbox 'x' here"):
        connect.find(Settings(sandbox="x"))
    pretend("dead", alive=False)
    with pytest.raises(Unavailable, match="is not running"):
        connect.find(Settings(sandbox="dead"))
    with pytest.raises(NotFound, match="no agent runs here"):
        connect.known_agents(connect.find(Settings(insecure=True)))


def test_half_a_certificate_is_refused(no_sandbox: Path) -> None:
    with pytest.raises(Invalid, match="are all needed"):
        connect.find(Settings(tls_ca="ca"))


def test_a_server_that_is_not_there_is_named_with_its_address(tmp_path: Path) -> None:
    result = ciliate(
        "--insecure", "--relay", f"unix://{tmp_path}/none.sock", "--identity", "x:1", "--agent", "y:1", "observe"
    )
    assert result.returncode == 1
    assert "ciliate: the relay at unix://" in result.stderr
    assert "is it running?" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_root_the_sandbox_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(Invalid, match="needs root"):
        up("never", 2)


def test_help_of_every_command_is_there() -> None:
    for words in (["observe"], ["status"], ["bpf", "ct", "list"], ["sandbox", "apply"], ["policy", "get"]):
        result = ciliate(*words, "--help")
        assert result.returncode == 0, result.stderr
        assert "Usage:" in result.stdout


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("1h30m", 5400), ("1.5s", 1.5), ("250ms", 0.25), ("5", None), ("", None), ("5m x", None)],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert times.duration(text) == (pytest.approx(seconds) if seconds is not None else None)


def test_points_in_time() -> None:
    assert times.point("5m", "--since", NOW) == NOW - datetime.timedelta(minutes=5)
    assert times.point("2026-11-23T04:00:00Z", "--since", NOW) == NOW - datetime.timedelta(hours=1)
    assert times.point("2026-11-23", "--since", NOW) == NOW - datetime.timedelta(hours=5)
    with pytest.raises(Invalid, match=r"--since: 'yesterday' is no time"):
        times.point("yesterday", "--since", NOW)
    for far in ("99999999999h", "9" * 400 + "h", "0001-01-01T00:00:00+23:00"):
        with pytest.raises(Invalid, match=r"--since: '.*' is outside the years 1 to 9999"):
            times.point(far, "--since", NOW)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["observe", "--last", "9" * 20], "--last: 99999999999999999999 is more than"),
        (["observe", "--since", "1m", "--until", "5m"], "--since: '1m' is later than --until '5m'"),
        (["observe", "--identity", "4294967296"], "--identity: '4294967296' is no identity"),
        (["observe", "--identity", "9" * 5000], "is no identity"),
        (["observe", "--port", "²"], "--port: '²' is no port"),
        (["observe", "--type", "99999999999"], "--type: '99999999999' is no event type"),
        (["observe", "--ip-trace-id", str(1 << 64)], "must be a number above 0"),
        (["observe", "--allowlist", "[]"], "--allowlist: '[]' is no FlowFilter"),
        (["observe", "--field-mask", "nope", "-o", "json"], "--field-mask: 'nope' is no field of a flow"),
        (
            ["--insecure", "--agent", "unix:///x", "observe", "agent-events", "--node", "nope"],
            "name a socket with --agent",
        ),
        (["--relay", "127.0.0.1:99999", "observe"], "--relay: '127.0.0.1:99999' has no port from 1 to 65535"),
        (["--relay", "nohost", "observe"], "--relay: 'nohost' is no address"),
        (["--relay", "http://127.0.0.1:4245", "observe"], "write host:port, [IPv6]:port or unix:///path"),
        (["--identity", "::1", "identity", "list"], "--identity: '::1' is no address"),
        (["--agent", "unix://", "endpoint", "list"], "--agent: 'unix://' names no socket"),
        (["policy", "explain", "--from", "", "--to", "x", "--port", "80"], "--from: is empty"),
        (["identity", "get", "4294967296"], "identity: '4294967296' is no number below 2**32"),
    ],
)
def test_values_that_nothing_can_hold(arguments: list[str], words: str) -> None:
    with pytest.raises(Invalid if "nope" not in arguments[-1] or "-o" in arguments else NotFound) as failed:
        app(args=arguments, prog_name="ciliate", standalone_mode=False)
    assert words in str(failed.value)


def test_what_cannot_be_read_or_written_is_one_message() -> None:
    words = ["--insecure", "--relay", "unix:///nowhere", "--agent", "unix:///nowhere"]
    foreign = run([sys.executable, "-m", "services.cli", *words, "endpoint", "get", "\udcff"])
    assert (foreign.returncode, foreign.stderr) == (
        1,
        "ciliate: '\\udcff' is not UTF-8: write arguments and CILIATE_ variables in UTF-8\n",
    )
    full = run(["sh", "-c", f"{sys.executable} -m services.cli --help > /dev/full"])
    assert (full.returncode, full.stderr) == (1, "ciliate: output: No space left on device\n")
    closed = run(["sh", "-c", f"{sys.executable} -m services.cli --help >&-"])
    assert (closed.returncode, closed.stderr) == (1, "ciliate: standard output is closed\n")


def test_what_is_asked_of_the_relay() -> None:
    assert observe.request(NONE, NOW).number == 20
    assert observe.request(NONE, NOW, everything=True).number == observe.ALL
    first = observe.request(NONE, NOW, first=3)
    assert (first.number, first.first) == (3, True)
    follow = observe.request(NONE, NOW, follow=True, until="1m")
    assert (follow.number, follow.follow, follow.HasField("until")) == (0, True, False)
    since = observe.request(NONE, NOW, since="1h", everything=True)
    assert (since.number, since.since.ToDatetime(datetime.UTC)) == (0, NOW - datetime.timedelta(hours=1))


@pytest.mark.parametrize(
    "options", [{"first": 1, "last": 1}, {"first": 1, "follow": True}, {"last": 1, "everything": True}]
)
def test_options_that_exclude_each_other(options: dict[str, int]) -> None:
    with pytest.raises(Invalid, match="cannot be combined"):
        observe.request(NONE, NOW, **options)  # type: ignore[arg-type]


def test_tables_json_and_yaml_tell_the_same() -> None:
    items = [{"id": 1, "labels": ["k8s:app=web", "k8s:x"], "none": ""}, {"id": 2, "labels": [], "none": None}]
    text = render(items, (("id", "id"), ("labels", "labels"), ("none", "none")), Output.TABLE)
    assert [line.split() for line in text.splitlines()] == [
        ["ID", "LABELS", "NONE"],
        ["1", "k8s:app=web,", "k8s:x", "-"],
        ["2", "-", "-"],
    ]
    assert json.loads(render(items, (), Output.JSON)) == items
    assert yaml.safe_load(render(items, (), Output.YAML)) == items
    assert render([], (), Output.TABLE, "no things") == "no things"
    assert json.loads(render([], (), Output.JSON)) == []


def test_text_from_pods_is_neither_markup_nor_a_control_sequence() -> None:
    text = render([{"name": "[red]x[/red]\x1b[2J"}], (("name", "name"),), Output.TABLE)
    assert "[red]x[/red]" in text
    assert "\x1b" not in text
    assert cell({"a": 1}) == "a=1"
    assert cell(True) == "yes"


def test_one_item_is_key_and_value_lines() -> None:
    assert render_one({"id": 7, "labels": ["a", "b"]}, Output.TABLE) == "id:     7\nlabels: a\n        b"


def test_policy_entries_in_words() -> None:
    entry = {
        "direction": "ingress",
        "identity": 300,
        "identity_labels": [
            "k8s:io.cilium.k8s.policy.cluster=c",
            "k8s:io.kubernetes.pod.namespace=n",
            "k8s:role=frontend",
        ],
        "protocol": "TCP",
        "port": 80,
        "port_prefix": 16,
        "verdict": "http",
        "http_rules": ["GET /api/v1/users"],
        "rule": {
            "kind": "CiliumNetworkPolicy",
            "namespace": "default",
            "name": "p",
            "direction": "ingress",
            "index": 0,
        },
    }
    text = render([entry], inspection.ENTRY_COLUMNS, Output.TABLE)
    assert "300 namespace=n role=frontend" in text
    assert "80/TCP" in text
    assert "CiliumNetworkPolicy default/p ingress[0]" in text
    whole = {**entry, "identity": 0, "port": 1024, "port_prefix": 6, "rule": {}}
    text = render([whole], inspection.ENTRY_COLUMNS, Output.TABLE)
    assert "any" in text
    assert "1024-2047/TCP" in text
    assert "nothing closes this direction" in text


def test_several_maps_are_several_tables() -> None:
    rows = [{"node": "n", "map": "services", "a": "1"}, {"node": "n", "map": "backends", "b": "2"}]
    text = bpf.show(rows, Output.TABLE)
    assert [line.split() for line in text.splitlines() if line] == [
        ["services:"],
        ["NODE", "A"],
        ["n", "1"],
        ["backends:"],
        ["NODE", "B"],
        ["n", "2"],
    ]
    assert bpf.show([], Output.TABLE) == "the map is empty"


def test_status_shows_what_is_wrong_first_hand() -> None:
    node = {
        "node": "node1",
        "ready": True,
        "ready_after_seconds": 1.5,
        "rss_bytes": "90000000",
        "components": [{"name": "relay", "health": "HEALTH_DEGRADED", "message": "away"}],
        "policy_errors": ["p: spec: wrong"],
        "policy_pressure": ["endpoints 3 need 9 policy entries and find no room"],
        "policy_revision": 8,
        "policy_revision_realised": 7,
        "policy_enforcement": "always",
        "policy_audit": "namespaces a",
        "host_policed": True,
    }
    relay = {"status": "SERVING", "num_flows": "3", "max_flows": "10", "num_connected_nodes": 2, "flows_rate": 1.25}
    found = {"sandbox": "default", "identity": {"error": "the identity service at x does not answer"}, "relay": relay}
    text = status.text({**found, "nodes": [node, {"node": "node2", "error": "gone"}]})
    assert "identity:  the identity service at x does not answer" in text
    assert "3/10 flows" in text
    assert "degraded: relay" in text
    assert "90 MB" in text
    assert "! node1: p: spec: wrong" in text
    assert "! node1: endpoints 3 need 9 policy entries and find no room" in text
    assert "revision 7, 8 pending, enforcement always, audit namespaces a, host policed" in text
    assert "! node2: gone" in text


def endpoint(**fields: object) -> dict[str, object]:
    item = inspection.as_item(agent_pb2.Endpoint(id=3, namespace="default", pod="web", state="ready"), node="n1")
    return {**item, **fields}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"policy_revision": 7}, ["default/web", "off", "7", "ready"]),
        ({"host": True, "ingress_enforced": True}, ["(host)", "ingress"]),
        ({"policy_revision": 7, "policy_revision_pending": 9}, ["7, 9 pending"]),
        ({"egress_enforced": True, "audit": True}, ["egress (audit)"]),
        ({"state": "closed", "closed": "no room (drop reason X)"}, ["closed: no room (drop reason X)"]),
        ({"problems": ["rules conflict: a and b"]}, ["ready; rules conflict: a and b"]),
    ],
)
def test_an_endpoint_says_what_it_obeys_and_what_not(fields: dict[str, object], words: list[str]) -> None:
    text = render([endpoint(**fields)], inspection.ENDPOINT_COLUMNS, Output.TABLE)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"in_force": True}, "in force"),
        ({"in_force": True, "pending": [3, 4]}, "in force, pending on endpoints 3, 4"),
        ({"in_force": True, "error": "spec: wrong"}, "older version in force"),
        ({"in_force": False, "error": "spec: wrong"}, "rejected"),
    ],
)
def test_a_policy_says_whether_it_is_in_force(fields: dict[str, object], words: str) -> None:
    item = {**inspection.as_item(agent_pb2.Policy(kind="NetworkPolicy", name="p"), node="n1"), **fields}
    assert words in render([item], inspection.POLICY_COLUMNS, Output.TABLE)


PODS = [
    {"namespace": "default", "name": "web-abc-1", "owner": "web", "pid": 1},
    {"namespace": "team", "name": "web-abc-2", "owner": "web", "pid": 2},
]


def test_a_pod_is_found_by_its_name_or_its_deployments() -> None:
    assert find_pod(PODS, "web")["pid"] == 1
    assert find_pod(PODS, "web-abc-1")["pid"] == 1
    assert find_pod(PODS, "team/web")["pid"] == 2
    with pytest.raises(NotFound, match="pods there: web-abc-1"):
        find_pod(PODS, "db")


def test_manifest_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("b")
    (tmp_path / "a.yml").write_text("a")
    (tmp_path / "notes.txt").write_text("x")
    assert [text for _, text in read_manifests([tmp_path])] == ["a", "b"]
    with pytest.raises(Invalid, match="cannot read"):
        list(read_manifests([tmp_path / "none.yaml"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(Invalid, match=r"holds no \*\.yaml"):
        list(read_manifests([tmp_path / "empty"]))
