"""Policy commands: files read offline, words read, answers and recorded flows turned into text and questions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from services.cli import asked, policy, policy_text
from services.cli.policy_files import check, parts
from services.cli.recorded import distinct, observed_at
from services.common.errors import Invalid
from services.common.pb.flow import flow_pb2
from services.model.objects import ObjectKey
from services.model.verdict import Direction
from services.policy.l7 import Request

ROOT = Path(__file__).parents[3]
GOOD = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: good}
spec:
  endpointSelector: {}
  ingress: [{}]
"""
BAD = """
apiVersion: v1
kind: List
items:
- apiVersion: cilium.io/v2
  kind: CiliumNetworkPolicy
  metadata: {name: bad}
  spec:
    endpointSelector: {}
    ingress:
    - fromEndpoint: []
    - toPorts:
      - ports:
        - port: "99999"
          protocol: TCP
---
apiVersion: v1
kind: ConfigMap
metadata: {name: no-policy}
"""


GROUP = """
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: g}
spec:
  externalCIDRs:
  - 10.0.0.0/8
  - 10.0.0.0/80
  extra: 1
"""


def test_cidr_groups_are_read_like_policies() -> None:
    found = check([("g.yaml", GROUP)])
    assert [(each.line, each.field) for each in found.mistakes] == [(9, "spec.extra"), (8, "spec.externalCIDRs[1]")]
    good = check([("g.yaml", GROUP.replace("  - 10.0.0.0/80\n  extra: 1\n", "")), ("p.yaml", GOOD)])
    assert policy_text.counted(good) == "1 policy and 1 CIDR group accepted, 0 mistakes"
    assert [str(source.key) for source in good.sources] == ["CiliumCIDRGroup g", "CiliumNetworkPolicy default/good"]


def test_every_mistake_has_its_file_line_and_field() -> None:
    found = check([("good.yaml", GOOD), ("bad.yaml", BAD)])
    assert [str(each.key) for each in found.policies] == ["CiliumNetworkPolicy default/good"]
    assert found.others == 1
    told = [(each.file, each.line, each.field) for each in found.mistakes]
    assert ("bad.yaml", 11, "spec.ingress[0].fromEndpoint") in told
    assert ("bad.yaml", 14, "spec.ingress[1].toPorts[0].ports[0].port") in told
    assert all(each.policy == "CiliumNetworkPolicy default/bad" for each in found.mistakes)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: [", 2, "not YAML"),
        ("spec:\n  ingress: [{}]\n  ingress: []", 3, "the key 'ingress' stands here twice; keep one"),
        ("[]", 1, "kind: is missing"),
        ("kind: CiliumNetworkPolicie", 1, "is not a kind of policy"),
        ("kind: NetworkPolicy\nmetadata: 3\nspec: {podSelector: {}}", 2, "metadata"),
        (GOOD + "---" + GOOD, 11, "keep one"),
        ("&a [*a]", 1, "kind: is missing"),
        ("!!python/object:x {}", 1, "not YAML"),
        ("# deep\n" + "[" * 100_000, 2, "nested more than"),
        ("a: \x1b", 1, "not YAML"),
        ('kind: "NetworkPolicy\\e"', 1, "'NetworkPolicy\\x1b' is not a kind of policy"),
        ('kind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}, "in\\egress": []}', 3, "spec.in\\x1bgress"),
    ],
)
def test_what_is_no_policy(text: str, line: int, words: str) -> None:
    found = check([("f", text)])
    assert any(each.line == line and words in str(each) for each in found.mistakes), found.findings


def test_paths() -> None:
    assert parts("spec.ingress[12].x['a.b/c'][0]") == ("spec", "ingress", 12, "x", "a.b/c", 0)
    assert parts("") == ()


def test_validate_is_offline_and_says_so_with_its_exit_status(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BAD)
    command = [sys.executable, "-m", "services.cli", "policy", "validate", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert result.returncode == 1
    assert f"{tmp_path}/bad.yaml:11: spec.ingress[0].fromEndpoint: unknown field" in result.stdout
    assert "did you mean 'fromEndpoints'" in result.stdout
    assert "0 policies accepted" in result.stdout
    result = subprocess.run([*command, "-o", "json"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert result.returncode == 1
    assert {each["severity"] for each in json.loads(result.stdout)["findings"]} == {"error"}
    (tmp_path / "bad.yaml").write_text(GOOD)
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=30).returncode == 0


def test_words() -> None:
    assert policy.read_port("80") == (80, 6)
    assert policy.read_port("53/UDP") == (53, 17)
    assert policy.read_port("8/icmp") == (8, 1)
    assert asked.read_request("GET /x?y") == ("GET", "/x?y")
    assert policy.read_selector("app=web, k8s:tier=front") == {"app": "web", "tier": "front"}
    assert policy.policy_key("cnp/web", "team") == ObjectKey("CiliumNetworkPolicy", "team", "web")
    assert policy.policy_key("netpol/a/b", "team") == ObjectKey("NetworkPolicy", "a", "b")
    assert policy.policy_key("ccnp/x", "team") == ObjectKey("CiliumClusterwideNetworkPolicy", "", "x")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (policy.read_port, "http"),
        (policy.read_port, "80/quic"),
        (policy.read_port, "65536"),
        (policy.read_port, "256/icmp"),
        (policy.read_port, "-1"),
        (asked.read_request, "GET"),
        (asked.read_request, "GET x"),
        (policy.read_selector, "app"),
        (lambda text: policy.policy_key(text, "n"), "pod/x"),
        (lambda text: policy.policy_key(text, "n"), "cnp"),
        (lambda text: policy.policy_key(text, "n"), "cnp/a/b/c"),
    ],
)
def test_words_that_are_none(call: Any, text: str) -> None:
    with pytest.raises(Invalid):
        call(text)


def test_requests_in_parts() -> None:
    assert asked.request_of("", "", "", "", []) == Request("", "")
    assert asked.request_of("PUT /x", "", "", "a", []) == Request("PUT", "/x", "a")
    assert asked.request_of("", "", "/x", "", ["X-A:  b "]) == Request("GET", "/x", "", (("X-A", "b"),))


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (("GET /x", "GET", "", "", []), "give one of them"),
        (("", "GET", "", "", []), "--path is needed"),
        (("", "", "", "", ["A: b"]), "--path is needed"),
        (("", "GET", "x", "", []), "it begins with '/'"),
        (("", "GET", "/x y", "", []), "--path: '/x y' has characters"),
        (("", "GET\n", "/", "", []), "--method"),
        (("", "GET", "/", "höst", []), "--host"),
        (("", "GET", "/", "", ["nonsense"]), "write it as 'Name: value'"),
    ],
)
def test_requests_that_are_none(parts: tuple[str, str, str, str, list[str]], told: str) -> None:
    with pytest.raises(Invalid, match=re.escape(told)):
        asked.request_of(*parts)


def flow(**changes: Any) -> flow_pb2.Flow:
    fields: dict[str, Any] = {
        "verdict": "FORWARDED",
        "IP": {"source": "10.0.0.1", "destination": "10.0.0.2", "ipVersion": "IPv4"},
        "l4": {"TCP": {"source_port": 4000, "destination_port": 80}},
        "source": {"identity": 301, "labels": ["k8s:role=frontend"], "namespace": "ns", "pod_name": "front"},
        "destination": {"identity": 300, "labels": ["k8s:app=web"], "namespace": "ns", "pod_name": "web"},
        "traffic_direction": "INGRESS",
        "event_type": {"type": 4},
        "trace_reason": "NEW",
    }
    return ParseDict({**fields, **changes}, flow_pb2.Flow())


def test_flows_that_say_the_same_are_one() -> None:
    later = {"TCP": {"source_port": 4001, "destination_port": 80}}
    found = distinct([flow(), flow(l4=later), flow(traffic_direction="EGRESS")])
    assert list(found.values()) == [2, 1]
    one = next(iter(found))
    assert (one.direction, one.protocol, one.port, one.forwarded) == (Direction.INGRESS, 6, 80, True)
    assert one.message().connection.source.pod == "ns/front"
    assert one.source.name == "ns/front"


def test_no_more_flows_than_a_message_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = distinct(flow(l4={"TCP": {"destination_port": port}}) for port in range(1, 11))
    assert len(policy.newest(found)) == 10
    size = max(one.message().ByteSize() for one in found) + policy.FRAMING
    monkeypatch.setattr(policy, "RECORDED_BYTES", 3 * size)
    assert [one.port for one in policy.newest(found)] == [10, 9, 8]


@pytest.mark.parametrize(
    "changes",
    [
        {"is_reply": True},
        {"trace_reason": "ESTABLISHED"},
        {"traffic_direction": "TRAFFIC_DIRECTION_UNKNOWN"},
        {"verdict": "DROPPED", "event_type": {"type": 1}, "drop_reason_desc": 0},
        {"verdict": "AUDIT"},
        {"l4": {}},
        {"event_type": {"type": 129}},
        {"event_type": {"type": 129}, "l7": {"http": {"method": "GET", "url": "http://x/" + "a" * 140}}},
    ],
)
def test_flows_that_say_nothing_about_policy(changes: dict[str, Any]) -> None:
    assert not distinct([flow(**changes)])


def test_what_was_seen_at_pods() -> None:
    request = {"event_type": {"type": 129}, "l7": {"http": {"method": "GET", "url": "http://10.0.0.2/a?b=c"}}}
    dropped = {"verdict": "DROPPED", "event_type": {"type": 1}, "drop_reason": 133}
    found = distinct([flow(), flow(**request), flow(**dropped)])
    assert [one.request for one in found if one.request] == [Request("GET", "/a?b=c")]
    assert sorted(one.forwarded for one in found) == [False, True, True]
    assert sum(observed_at(found, {"app": "web"}, "ns").values()) == 2
    assert not observed_at(found, {"app": "web"}, "other")
    assert not observed_at(found, {"role": "frontend"}, "ns")


RULE = {
    "kind": "CiliumNetworkPolicy",
    "namespace": "ns",
    "name": "p",
    "direction": "ingress",
    "path": "spec.ingress[0]",
    "revision": "7",
}
PEERS = "role=frontend, k8s:io.cilium.k8s.policy.cluster=default, k8s:io.kubernetes.pod.namespace=ns"
MISSED = {"rule": RULE, "deny": False, "peers": PEERS, "traffic": "80/TCP", "failed": ["peer", "port"]}
NO = {"fate": "dropped by default", "passes": False, "requests": []}
YES = {"fate": "allowed", "passes": True, "requests": []}


def test_an_explanation_in_words() -> None:
    ingress = {
        "direction": "ingress",
        "subject": "ns/web",
        "has_policy": True,
        "answer": NO,
        "considered": [MISSED],
        "nearest": MISSED,
        "isolating": [{**RULE, "path": ""}],
        "conflicts": ["a and b: two modes"],
        "audited": True,
    }
    egress = {"direction": "egress", "subject": "world", "has_policy": False}
    item = {
        "source": "world\x1b[2J",
        "destination": "ns/web",
        "source_identity": 2,
        "destination_identity": 300,
        "passes": False,
        "enforcement": "always",
        "directions": [egress, ingress],
    }
    text = policy_text.explained(item, "81", "")
    assert "port 81: not allowed" in text
    assert "no pod and no known node" in text
    assert "policy is enforced always" in text
    assert "audited: whatever is refused here passes all the same" in text
    assert "conflict: a and b: two modes" in text
    assert "closed by CiliumNetworkPolicy ns/p (revision 7)" in text
    assert "nearest rule: CiliumNetworkPolicy ns/p spec.ingress[0] (revision 7), other peer and port" in text
    assert "from role=frontend, namespace=ns; 80/TCP" in text
    assert "\x1b" not in text


def test_a_simulation_in_words() -> None:
    recorded = list(distinct([flow(), flow()]).items())
    flip = {"source": ["a", "b", "c", "d"], "destination": ["w"], "ports": "80/TCP", "before": YES, "after": NO}
    answer = {
        "flips": [flip, {**flip, "ports": "81/TCP"}],
        "flows": [{"flow": 0, "after": NO}],
        "complete": False,
        "enforcement": "never",
        "audit": "everywhere",
    }
    item = policy_text.simulation(answer, recorded, "1h")
    assert (item["flows_looked_at"], item["flows"][0]["count"], item["flows"][0]["port"]) == (2, 2, "80/TCP")
    text = policy_text.simulated(item)
    assert "1 changes between pairs (cut short: too many pairs):" in text
    assert "a, b, c and 1 more" in text
    assert "80/TCP, 81/TCP" in text
    assert "2 of 2 recorded flows of the last 1h would meet another verdict:" in text
    assert text.startswith("policy is enforced never\naudit everywhere: there everything passes")
    empty = {"flips": [], "flows": [], "complete": True, "enforcement": "default", "audit": ""}
    nothing = policy_text.simulated(policy_text.simulation(empty, [], "5m"))
    assert "no pair of pods would meet another verdict" in nothing
