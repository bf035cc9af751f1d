"""A real Prometheus scrapes a sandbox: targets are up, the field's metrics count what happened, every query of every
dashboard is understood and asks for metrics that exist. And an OTLP receiver gets its requests as spans."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.sandbox import state
from services.sandbox.scrape import free_address
from tests.e2e.shell import ROOT, Shell

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

NAME = f"prom-{os.getpid()}"
EXAMPLE = ROOT / "deploy/examples/my-webapp"
DASHBOARDS = sorted((ROOT / "deploy/grafana").glob("*.json"))
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: frontend-egress}
spec:
  endpointSelector: {matchLabels: {app: frontend}}
  egress:
    - toEndpoints: [{matchLabels: {"k8s:io.kubernetes.pod.namespace": kube-system}}]
      toPorts: [{ports: [{port: "53", protocol: ANY}], rules: {dns: [{matchPattern: "*"}]}}]
    - toEndpoints: [{matchLabels: {app: my-webapp}}]
"""
WEBAPP = "CiliumNetworkPolicy default/deny-all-ingress-to-webapp"
ciliate = Shell(NAME)


class Prometheus:
    """A running server's API."""

    def __init__(self, address: str) -> None:
        self._url, self._ready = f"http://{address}/api/v1/", f"http://{address}/-/ready"

    def ask(self, path: str, **parameters: str) -> Any:
        """The answer's data; the server's own words where it refuses."""
        url = f"{self._url}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{parameters}: {error.read().decode()}")

    def up(self) -> bool:
        """It answers 503 while it starts."""
        try:
            with urllib.request.urlopen(self._ready, timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def value(self, query: str) -> float:
        """The sum of an instant query; 0 where nothing is found."""
        found = self.ask("query", query=f"sum({query})")["result"]
        return float(found[0]["value"][1]) if found else 0.0

    def families(self) -> set[str]:
        """Names of all metrics that any target declares, whether they have samples or not."""
        return {re.sub(r"_total$", "", name) for name in self.ask("metadata")}


def eventually(condition: Any, seconds: float = 40.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def traffic() -> None:
    """What every metric needs to have something to count."""
    ciliate("sandbox", "exec", "frontend", "--", "curl", "-sf", "http://my-webapp-svc/api/v1/users")
    ciliate("sandbox", "exec", "frontend", "--", "curl", "-s", "http://my-webapp-svc/")
    ciliate("sandbox", "exec", "visitor", "--", "curl", "-sm", "0.5", "http://my-webapp-svc/", check=False)
    ciliate("sandbox", "exec", "frontend", "--", "curl", "-sm", "0.5", "http://198.51.100.7/", check=False)


class Receiver:
    """A running OTLP receiver; what it got is in a file."""

    def __init__(self, folder: Path) -> None:
        self.address, self._output = free_address(), folder / "received"
        command = [sys.executable, "-m", "tests.integration.relay.collector", self.address]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=output)

    def spans(self, trace_id: str) -> list[dict[str, Any]]:
        """Those of a trace."""
        whole = self._output.read_text(encoding="utf-8").rpartition("\n")[0]
        found = [
            span
            for line in whole.splitlines()
            for resource in json.loads(line).get("resourceSpans", [])
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]
        return [span for span in found if base64.b64decode(span["traceId"]).hex() == trace_id]


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    found = Receiver(tmp_path_factory.mktemp("receiver"))
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Prometheus]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("needs prometheus (Debian package)")
    data, address = tmp_path_factory.mktemp("prometheus"), free_address()
    server: subprocess.Popen[bytes] | None = None
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("CILIATE_RELAY_OTLP_ENDPOINT", f"http://{receiver.address}")
            environment.setenv("CILIATE_RELAY_OTLP_TRACES", "1")
            ciliate("sandbox", "up", "--nodes", "1")
        ciliate("sandbox", "apply", "-f", str(EXAMPLE))
        ciliate("sandbox", "apply", "-f", "-", text=POLICY)
        traffic()
        flags = (f"--config.file={state.load(NAME).prometheus}", f"--storage.tsdb.path={data}",
                 f"--web.listen-address={address}", "--log.level=error")  # fmt: skip
        server = subprocess.Popen([program, *flags])
        found = Prometheus(address)
        assert eventually(found.up)
        targets = eventually(lambda: _all_up(found))
        assert targets, found.ask("targets")["activeTargets"]
        traffic()  # between two scrapes, so that there are rates
        yield found
    finally:
        if server is not None:
            server.terminate()
            server.wait(20)
        ciliate("sandbox", "down", check=False)


def _all_up(found: Prometheus) -> bool:
    targets = found.ask("targets")["activeTargets"]
    return len(targets) == 3 and all(each["health"] == "up" for each in targets)


def test_what_happened_is_counted_under_the_fields_names(prometheus: Prometheus) -> None:
    expected = (
        'hubble_flows_processed_total{verdict="FORWARDED"}',
        'hubble_flows_processed_total{verdict="DROPPED"}',
        'hubble_drop_total{reason="POLICY_DENIED"}',
        'hubble_http_requests_total{method="GET", reporter="server"}',
        'hubble_http_responses_total{status="200"}',
        "hubble_http_request_duration_seconds_count",
        "hubble_dns_queries_total",
        'hubble_dns_responses_total{rcode="No Error"}',
        "hubble_dns_response_types_total",
        'hubble_tcp_flags_total{flag="SYN"}',
        'hubble_port_distribution_total{port="80", protocol="TCP"}',
        'hubble_flows_to_world_total{verdict="DROPPED"}',
        'hubble_policy_verdicts_total{match="l7/http", action="dropped"}',
        f'ciliate_policy_decisions_total{{policy="{WEBAPP}", action="dropped"}}',
        'ciliate_policy_decisions_total{policy="CiliumNetworkPolicy default/frontend-egress", rule="default deny"}',
        "ciliate_agent_ready == 1",
        "ciliate_identity_identities",
        'ciliate_map_pressure{map="policy"}',
        "ciliate_policy_implementation_delay_seconds_count",
        "ciliate_relay_agents_connected == 1",
    )

    def missing() -> list[str]:
        return [query for query in expected if prometheus.value(query) <= 0]

    assert eventually(lambda: not missing()), missing()
    assert "hubble_lost_events" in prometheus.families(), "declared, and hopefully without a sample"
    assert prometheus.value("ciliate_agent_ready") == 1
    delay = prometheus.value(
        "histogram_quantile(0.99, sum by (le) (ciliate_policy_implementation_delay_seconds_bucket))"
    )
    assert 0 < delay < 10


TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.usefixtures("prometheus")
def test_requests_are_spans_of_their_callers_trace(receiver: Receiver) -> None:
    """A pod sends a traceparent to a web server under HTTP policy: an answer and a refusal join that trace."""
    for path in ("/api/v1/users", "/nobody"):
        header = f"traceparent: 00-{TRACE}-{PARENT}-01"
        ciliate("sandbox", "exec", "frontend", "--", "curl", "-s", "-H", header, f"http://my-webapp-svc{path}")
    found = eventually(lambda: spans if len(spans := receiver.spans(TRACE)) == 2 else None)
    assert found, receiver.spans(TRACE)
    assert {base64.b64decode(span["parentSpanId"]).hex() for span in found} == {PARENT}
    assert {span["kind"] for span in found} == {"SPAN_KIND_SERVER"}
    told = [{each["key"]: next(iter(each["value"].values())) for each in span["attributes"]} for span in found]
    assert {(each["url.path"], each["http.response.status_code"]) for each in told} == {
        ("/api/v1/users", "200"),
        ("/nobody", "403"),
    }
    lines = ciliate("observe", "--trace-id", TRACE, "--last", "100", "-o", "json").stdout.splitlines()
    flows = [json.loads(line)["flow"] for line in lines]
    assert {flow["trace_context"]["parent"]["trace_id"] for flow in flows} == {TRACE}
    shown = sorted((flow["l7"]["http"]["url"].rpartition("/")[2], flow["l7"]["type"]) for flow in flows)
    assert shown == [("nobody", "REQUEST"), ("users", "REQUEST"), ("users", "RESPONSE")]
    assert {each["ciliate.flow.uuid"] for each in told} <= {flow["uuid"] for flow in flows}
    assert not ciliate("observe", "--trace-id", TRACE[::-1], "--last", "100", "-o", "json").stdout
    ask = f"SELECT DISTINCT http_path, parent_span_id FROM flows WHERE trace_id = '{TRACE}' ORDER BY ALL"
    expected = [
        {"http_path": "/api/v1/users", "parent_span_id": PARENT},
        {"http_path": "/nobody", "parent_span_id": PARENT},
    ]

    def recorded() -> list[Any]:
        return [json.loads(line) for line in ciliate("flows", "query", ask, "-o", "json").stdout.splitlines()]

    assert eventually(lambda: recorded() == expected), recorded()


def _queries(dashboard: Path) -> Iterator[tuple[str, str]]:
    document = json.loads(dashboard.read_text(encoding="utf-8"))
    for panel in document["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "20s")


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_ask_for_what_there_is(prometheus: Prometheus, dashboard: Path) -> None:
    known = prometheus.families()
    empty = []
    for title, query in _queries(dashboard):
        names = set(re.findall(r"\b(?:hubble|ciliate)_[a-z0-9_]+", re.sub(r"\{[^}]*\}|\([a-z, ]+\)(?= \()", "", query)))
        assert names, f"{title}: {query}"
        for name in names:
            base = re.sub(r"_(total|bucket|sum|count)$", "", name)
            assert {base, name} & known, f"{title}: no target has {name}"
        if not prometheus.ask("query", query=query)["result"]:
            empty.append((title, query))
    # What nobody lost, folded or complained about has no samples; that much may be empty, and no more.
    quiet = {"Lost events", "Folded series", "Complaints", "CNI calls"}
    assert {title for title, _ in empty} <= quiet, empty


def test_dashboards_are_those_that_are_made() -> None:
    made = subprocess.run(
        ["/usr/bin/python3", "-c", "import json, make; print(json.dumps(make.documents()))"],
        cwd=ROOT / "deploy/grafana", env={"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(made.stdout) == {path.name: path.read_text(encoding="utf-8") for path in DASHBOARDS}
    uids = [json.loads(path.read_text(encoding="utf-8"))["uid"] for path in DASHBOARDS]
    assert len(set(uids)) == len(uids) == 5
