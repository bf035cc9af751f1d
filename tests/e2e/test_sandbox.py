"""A sandbox driven from separate shells, as a person would; also one that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.sandbox import netns, state
from services.sandbox.cgroups import cgroup2
from services.sandbox.processes import recorded
from tests.e2e.shell import ROOT, Shell

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

EXAMPLE = ROOT / "deploy" / "examples" / "my-webapp"
NAME = f"shell-{os.getpid()}"


ciliate = Shell(NAME)


def asked(*arguments: str) -> Any:
    """The JSON that a command prints."""
    return json.loads(ciliate(*arguments, "-o", "json").stdout)


def eventually(condition: Callable[[], Any], seconds: float = 5.0) -> Any:
    """The condition's first true value, within a bound."""
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> Iterator[None]:
    """One sandbox with the example for all tests here."""
    try:
        ciliate("sandbox", "up")
        ciliate("sandbox", "apply", "-f", str(EXAMPLE))
        yield
    finally:
        ciliate("sandbox", "down", check=False)
        paths = state.Paths(NAME)
        tree = cgroup2()
        left = [
            *(tree.glob(f"ciliate-{NAME}-*") if tree else ()),
            *netns.existing(paths.netns_prefix),
            *(each for each in (paths.root, paths.bpffs) if each.exists()),
        ]
        assert not left


def test_the_pods_are_there_and_ready() -> None:
    pods = asked("sandbox", "status")["pods"]
    assert len([pod for pod in pods if pod["owner"] == "my-webapp"]) == 3
    assert {pod["node"] for pod in pods} == {"node1", "node2"}
    assert all(pod["ready"] and pod["pid"] for pod in pods)
    assert "my-webapp" in ciliate("sandbox", "status").stdout
    assert NAME in ciliate("sandbox", "list").stdout


def test_exec_is_the_programs_own_status_and_output() -> None:
    url = "http://my-webapp-svc/api/v1/users"
    allowed = ciliate("sandbox", "exec", "frontend", "--", "curl", "-s", "-m", "5", url)
    assert "URI: /api/v1/users" in allowed.stdout
    refused = ciliate("sandbox", "exec", "frontend", "--", "curl", "-sf", "http://my-webapp-svc/", check=False)
    assert refused.returncode == 22  # curl's word for an HTTP error
    dropped = ciliate("sandbox", "exec", "visitor", "--", "curl", "-s", "--connect-timeout", "1", url, check=False)
    assert dropped.returncode == 28  # and for a time-out
    missing = ciliate("sandbox", "exec", "nobody", "--", "true", check=False)
    assert missing.returncode == 1
    assert "pods there: frontend-" in missing.stderr


def test_status_says_that_everything_works() -> None:
    found = asked("status")
    assert found["ok"] is True
    assert [node["node"] for node in found["nodes"]] == ["node1", "node2"]
    assert all(node["ready"] for node in found["nodes"])
    assert "SERVING" in ciliate("status").stdout


def test_endpoints_identities_policies_services() -> None:
    endpoints = asked("endpoint", "list")
    assert len([each for each in endpoints if not each["host"]]) == 6
    assert {each["node"] for each in endpoints if each["host"]} == {"node1", "node2"}
    assert "k8s:kubernetes.io/hostname=node2" in asked("endpoint", "get", "host", "--node", "node2")["labels"]
    web = next(each for each in endpoints if each["pod"].startswith("my-webapp"))
    assert web["ingress_enforced"]
    one = asked("endpoint", "get", f"default/{web['pod']}")
    assert one["identity"] == web["identity"]
    assert "k8s:app=my-webapp" in asked("identity", "get", str(web["identity"]))["labels"]
    labels = [label for each in asked("identity", "list") for label in each["labels"]]
    assert "k8s:role=frontend" in labels
    keys = {each["key"]: each for each in asked("identity", "labels")["keys"]}
    assert keys["k8s:app"]["policies"] == ["CiliumNetworkPolicy default/deny-all-ingress-to-webapp"]
    assert "no policy" in ciliate("identity", "labels").stdout
    assert {each["name"] for each in asked("policy", "list")} == {"deny-all-ingress-to-webapp"}
    policy = asked("policy", "get", "my-webapp")
    http = [rule for entry in policy["entries"] for rule in entry["http_rules"]]
    assert any("/api/v1/users" in rule for rule in http)
    services = {each["name"]: each for each in asked("service", "list")}
    assert len(services["my-webapp-svc"]["ports"][0]["backends"]) == 3
    unknown = ciliate("endpoint", "get", "default/nobody", check=False)
    assert unknown.returncode == 1
    assert "ciliate endpoint list" in unknown.stderr
    assert "/api/v1/users" in ciliate("policy", "get", "my-webapp").stdout
    for what in ("endpoint", "identity", "policy", "service"):
        assert "webapp" in ciliate(what, "list").stdout


@pytest.mark.parametrize("name", ["policy", "ct", "ipcache", "lb"])
def test_kernel_maps_are_shown(name: str) -> None:
    ciliate("sandbox", "exec", "frontend", "--", "curl", "-s", "http://my-webapp-svc/api/v1/users")
    assert asked("bpf", name, "list")
    assert "node1" in ciliate("bpf", name, "list", "--node", "node1").stdout


def test_observe_tells_who_and_why() -> None:
    ciliate("sandbox", "exec", "visitor", "--", "curl", "-s", "-m", "1", "http://my-webapp-svc/", check=False)
    arguments = ["observe", "--from-pod", "visitor", "--verdict", "DROPPED", "--last", "5"]
    text = eventually(lambda: ciliate(*arguments).stdout)
    assert "deny-all-ingress-to-webapp" in text
    assert "nearest rule CiliumNetworkPolicy default/deny-all-ingress-to-webapp spec.ingress[0], other peer" in text
    lines = [json.loads(line) for line in ciliate(*arguments, "-o", "json").stdout.splitlines()]
    assert all(line["flow"]["verdict"] == "DROPPED" for line in lines)
    assert ciliate("observe", "--pod", "no-such-pod").stdout == ""
    assert ciliate("observe", "--last", "3", "-o", "table").stdout.startswith("TIMESTAMP")


def test_explain_says_what_the_packets_meet() -> None:
    url = "http://my-webapp-svc/api/v1/users"
    ciliate("sandbox", "exec", "visitor", "--", "curl", "-s", "-m", "1", url, check=False)
    explained = ["policy", "explain", "--to", "my-webapp", "--port", "80"]
    egress, ingress = asked(*explained, "--from", "visitor")["directions"]
    assert egress["answer"]["passes"]
    assert ingress["answer"]["fate"] == "dropped by default"
    assert [rule["name"] for rule in ingress["isolating"]] == ["deny-all-ingress-to-webapp"]
    assert (ingress["nearest"]["rule"]["path"], ingress["nearest"]["failed"]) == ("spec.ingress[0]", ["peer"])
    assert asked(*explained, "--from", "frontend", "--http", "GET /api/v1/users")["passes"]
    refused = asked(*explained, "--from", "frontend", "--http", "GET /")["directions"][1]
    assert (refused["answer"]["fate"], refused["nearest"]["failed"]) == ("refused", ["request"])
    assert "nearest rule" in ciliate(*explained, "--from", "world").stdout
    nobody = ciliate(*explained, "--from", "nobody", check=False)
    assert nobody.returncode == 1
    assert "source: 'nobody' is no pod" in nobody.stderr


def example(name: str, *arguments: str) -> str:
    """What a program of the client package's examples prints."""
    command = [sys.executable, "-m", f"services.client.examples.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout


def test_the_examples_of_the_client_package_run_on_it() -> None:
    found = state.load(NAME)
    tls = ("--tls-ca", found.tls_ca, "--tls-cert", found.tls_cert, "--tls-key", found.tls_key)
    known = example("watch_identities", "--address", found.identity, *tls, "--once")
    assert "k8s:role=frontend" in known
    assert "default/frontend" in known
    talkers = example("top_talkers", "--address", found.relay, *tls, "--minutes", "60")
    assert "bytes  default/frontend" in talkers
    agent = next(node.agent_socket for node in found.nodes)
    why = example("explain", "--address", f"unix://{agent}", *tls, "visitor", "my-webapp", "80")
    assert "is denied" in why


def test_simulate_tells_flips_and_recorded_flows_and_applies_nothing(tmp_path: Path) -> None:
    url = "http://my-webapp-svc/api/v1/users"
    for pod in ("frontend", "visitor"):
        ciliate("sandbox", "exec", pod, "--", "curl", "-s", "-m", "1", url, check=False)
    changed = tmp_path / "new.yaml"
    changed.write_text((EXAMPLE / "policy.yaml").read_text().replace("role: frontend", "app: visitor"))
    before = asked("policy", "get", "my-webapp")["entries"]

    def told() -> Any:
        found = asked("policy", "simulate", "-f", str(changed))
        return found if {flow["source"].split("/")[1][:5] for flow in found["flows"]} == {"front", "visit"} else None

    found = eventually(told)
    assert found["complete"]
    flips = {flip["source"][0].split("/")[1].split("-")[0]: flip for flip in found["flips"]}
    assert set(flips) == {"frontend", "visitor"}
    assert flips["visitor"]["ports"] == "80/TCP"
    assert flips["visitor"]["after"]["requests"] == ["GET /api/v1/users"]
    assert {(flow["recorded"], flow["then"]["passes"]) for flow in found["flows"]} == {
        ("FORWARDED", False),
        ("DROPPED", True),
    }
    assert (
        "would meet another verdict"
        in ciliate("policy", "simulate", "--delete", "cnp/deny-all-ingress-to-webapp").stdout
    )
    assert asked("policy", "get", "my-webapp")["entries"] == before
    changed.write_text(changed.read_text().replace("ingress:", "ingres:"))
    wrong = ciliate("policy", "simulate", "-f", str(changed), check=False)
    assert wrong.returncode == 1
    assert f"{changed}:" in wrong.stderr


def test_a_suggestion_allows_what_was_seen_and_reads_without_mistakes(tmp_path: Path) -> None:
    ciliate("sandbox", "exec", "frontend", "--", "curl", "-s", "-m", "5", "http://my-webapp-svc/api/v1/users")
    written = tmp_path / "suggested.yaml"

    def told() -> str:
        text = ciliate("policy", "suggest", "--for", "app=my-webapp", check=False).stdout
        return text if "/api/v1/users" in text else ""

    written.write_text(eventually(told))
    assert "ciliate.io/generated-by: ciliate policy suggest" in written.read_text()
    assert "role: frontend" in written.read_text()
    assert ciliate("policy", "validate", str(written)).stdout.startswith("1 policy accepted, 0 mistakes")
    # Applied in the place of the policy under which the flows were let pass, it lets the same ones pass.
    replaced = ["policy", "simulate", "--delete", "cnp/deny-all-ingress-to-webapp", "-f", str(written)]
    assert not [flow for flow in asked(*replaced)["flows"] if flow["recorded"] == "FORWARDED"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - image: redis:7\n",
            "image: the sandbox",
        ),
        ("apiVersion: v1\nkind: Nonsense\nmetadata: {name: p}\n", "standard input:2: kind"),
        ("a: [", "not YAML"),
    ],
)
def test_a_bad_manifest_is_refused_with_its_place(text: str, words: str) -> None:
    result = ciliate("sandbox", "apply", "-f", "-", text=text, check=False)
    assert result.returncode == 1
    assert words in result.stderr


def test_scaling_and_deleting_follow() -> None:
    manifest = (EXAMPLE / "clients.yaml").read_text().split("---")[1]
    ciliate("sandbox", "apply", "-f", "-", text=manifest.replace("replicas: 1", "replicas: 2"))
    assert len([pod for pod in asked("sandbox", "status")["pods"] if pod["owner"] == "visitor"]) == 2
    ciliate("sandbox", "apply", "-f", "-", text=manifest)
    left = eventually(
        lambda: len([pod for pod in asked("sandbox", "status")["pods"] if pod["owner"] == "visitor"]) == 1
    )
    assert left
    assert len([each for each in asked("endpoint", "list") if not each["host"]]) == 6


def test_a_policy_can_be_deleted_by_its_short_name_and_applied_again() -> None:
    visit = ["sandbox", "exec", "visitor", "--", "curl", "-s", "-m", "1", "http://my-webapp-svc/"]
    told = ciliate("sandbox", "delete", "cnp/deny-all-ingress-to-webapp").stdout
    assert told == "CiliumNetworkPolicy default/deny-all-ingress-to-webapp deleted\n"
    assert eventually(lambda: "Server name" in ciliate(*visit, check=False).stdout)
    ciliate("sandbox", "apply", "-f", str(EXAMPLE / "policy.yaml"))
    assert eventually(lambda: ciliate(*visit, check=False).returncode == 28)
    again = ciliate("sandbox", "delete", "cnp/nope", check=False)
    assert again.returncode == 1
    assert "is not there" in again.stderr


def test_a_process_that_dies_is_started_again() -> None:
    def agent() -> dict[str, Any]:
        return next(each for each in asked("sandbox", "status")["nodes"] if each["name"] == "agent-node1")

    before = agent()
    os.kill(before["pid"], signal.SIGKILL)
    assert eventually(lambda: agent()["pid"] not in (0, before["pid"]), 10.0)
    assert agent()["restarts"] == 1
    assert eventually(lambda: ciliate("status", check=False).returncode == 0, 30.0)
    allowed = ciliate("sandbox", "exec", "frontend", "--", "curl", "-s", "-m", "5", "http://my-webapp-svc/api/v1/users")
    assert "URI: /api/v1/users" in allowed.stdout


def test_a_second_one_of_the_name_is_refused() -> None:
    result = ciliate("sandbox", "up", check=False)
    assert result.returncode == 1
    assert "is running already" in result.stderr


def test_what_a_killed_sandbox_leaves_is_cleared_and_another_one_is_left_alone() -> None:
    name = f"killed-{os.getpid()}"
    paths = state.Paths(name)
    try:
        ciliate("sandbox", "up", "--name", name, "--nodes", "1")
        children = recorded(paths.ledger)
        os.kill(state.load(name).pid, signal.SIGKILL)
        assert eventually(lambda: not state.load(name).alive)
        assert "is not running" in ciliate("sandbox", "status", "--name", name, check=False).stderr
        assert netns.existing(paths.netns_prefix)
        assert "what it left is removed" in ciliate("sandbox", "down", "--name", name).stdout
    finally:
        ciliate("sandbox", "down", "--name", name, check=False)
    assert not netns.existing(paths.netns_prefix)
    assert not paths.root.exists()
    assert not paths.bpffs.exists()
    assert eventually(lambda: not [pid for pid, begun in children if state.start_time(pid) == begun])
    assert asked("status")["ok"] is True


def test_services_are_balanced_at_the_sockets_of_each_node() -> None:
    ciliate("sandbox", "exec", "frontend", "--", "curl", "-s", "http://my-webapp-svc/api/v1/users")
    # Nothing was translated packet by packet, and the flow names the Service all the same.
    text = json.dumps(asked("bpf", "ct", "list"))
    assert '"scope": "service"' not in text
    flows = ciliate("observe", "--from-pod", "frontend", "--to-pod", "my-webapp", "--last", "20", "-o", "json").stdout
    assert "my-webapp-svc" in flows
