"""Services in a sandbox: every way to reach one from inside, nobody behind one, a Deployment changing under load."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.sandbox import netns
from tests.e2e.shell import CILIATE, ROOT, Shell

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

NAME = f"services-{os.getpid()}"
MANIFEST = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 3
      containers: [{name: c, image: "nginx:%(tag)s", ports: [{name: http, containerPort: 80}]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: client}
spec:
  replicas: 1
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec: {containers: [{name: c, image: curlimages/curl}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  externalIPs: [198.51.100.7]
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http, nodePort: 30999}]
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec:
  sessionAffinity: ClientIP
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: nobody}
  ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]
"""

# Connects, asks, reads, closes, as fast as it can, until a file is there; prints how many worked and what did not.
LOAD = r"""
import os, socket, sys
address, stop, done, failed = sys.argv[1], sys.argv[2], 0, []
while not os.path.exists(stop):
    try:
        with socket.create_connection((address, 80), 5) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b""
            while part := connection.recv(4096):
                answer += part
        assert b"Server name: web-" in answer, answer
        done += 1
    except Exception as error:
        failed.append(repr(error))
print(done, len(failed), failed[:3])
"""


ciliate = Shell(NAME)


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> Iterator[None]:
    try:
        ciliate("sandbox", "up")
        ciliate("sandbox", "apply", "-f", "-", text=MANIFEST % {"tag": "1"})
        yield
    finally:
        ciliate("sandbox", "down", check=False)


def status() -> Any:
    return json.loads(ciliate("sandbox", "status", "-o", "json").stdout)


def curl(*arguments: str) -> tuple[int, str]:
    """curl in the client: (its status, its output)."""
    done = ciliate(
        "sandbox", "exec", "client", "--", "sh", "-c", f'curl -gs -m 5 {" ".join(arguments)}; echo " $?"', check=False
    )
    output, _, code = done.stdout.strip().rpartition(" ")
    return int(code), output


def addresses(name: str) -> list[str]:
    detail = next(o["detail"] for o in status()["objects"] if (o["kind"], o["name"]) == ("Service", name))
    return [text for text in detail.split()[0].split(",") if text]


def test_every_way_to_reach_it_from_inside() -> None:
    client = next(pod for pod in status()["pods"] if pod["owner"] == "client")
    nodes = {node.name: node for node in netns.plan("", 2).nodes}
    own = nodes.pop(client["node"])
    (other,) = nodes.values()
    ports = [f"{own.address4}:30999", f"{other.address4}:30999", f"[{other.address6}]:30999"]
    four, six = addresses("web")
    for url in (four, f"[{six}]", "10.111.0.1", "198.51.100.7", *ports, "web.default.svc.cluster.local"):
        code, output = curl(f"http://{url}/")
        assert (code, "Server name: web-" in output) == (0, True), (url, output)


def test_nobody_behind_it_is_told_at_once() -> None:
    for address in addresses("nobody"):
        url = f"http://[{address}]/" if ":" in address else f"http://{address}/"
        code, seconds = curl("--write-out '%{time_total}'", url)
        assert code == 7, "refused, not timed out"
        assert float(seconds) < 0.9, "by the first packet, not by one that came again after a second"
    arguments = ("observe", "--from-pod", "client", "--verdict", "DROPPED", "--last", "5", "-o", "json")
    deadline = time.monotonic() + 10
    while len(lines := ciliate(*arguments).stdout.splitlines()) < 2:
        assert time.monotonic() < deadline, "who is refused leaves a flow"
        time.sleep(0.2)
    for flow in (json.loads(line)["flow"] for line in lines):
        assert flow["drop_reason_desc"] == "SERVICE_BACKEND_NOT_FOUND"
        assert flow["destination_service"]["name"] == "nobody"


def test_other_ports_of_a_service_are_nobody_s() -> None:
    code, _ = curl("--connect-timeout 1", f"http://{addresses('web')[0]}:81/")
    assert code in (7, 28)


def test_affinity() -> None:
    (address,) = addresses("sticky")
    code, output = curl(f"'http://{address}/[1-20]'")
    names = {line for line in output.splitlines() if line.startswith("Server name")}
    assert (code, len(names)) == (0, 1)


def test_a_rolling_update_under_load_fails_no_request(tmp_path: Path) -> None:
    """Short connections from a pod, while every backend is replaced."""
    before = {pod["name"] for pod in status()["pods"] if pod["owner"] == "web"}
    stop = tmp_path / "stop"
    load = subprocess.Popen(
        [*CILIATE, "sandbox", "exec", "client", "--", "python3", "-c", LOAD, addresses("web")[0], str(stop)],
        cwd=ROOT,
        env=ciliate.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        time.sleep(1)
        ciliate("sandbox", "apply", "-f", "-", text=MANIFEST % {"tag": "2"})
        time.sleep(1)
    finally:
        stop.touch()
        output, _ = load.communicate(timeout=60)
    after = {pod["name"] for pod in status()["pods"] if pod["owner"] == "web"}
    assert len(after) == 2
    assert not before & after
    done, failed, *reasons = output.split(maxsplit=2)
    assert (int(failed), "".join(reasons).strip()) == (0, "[]")
    assert int(done) > 100


def test_services_are_shown_with_who_serves_and_what_is_wrong() -> None:
    orphan = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orphan, labels: {kubernetes.io/service-name: missing}}
addressType: IPv4
endpoints: [{addresses: [10.9.9.9]}]
"""
    ciliate("sandbox", "apply", "-f", "-", text=orphan)
    deadline = time.monotonic() + 10
    while True:
        found = {
            (each["node"], each["name"]): each for each in json.loads(ciliate("service", "list", "-o", "json").stdout)
        }
        if ("node1", "missing") in found or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    web = found["node1", "web"]
    assert web["type"] == "LoadBalancer"
    assert {port["kind"] for port in web["ports"]} == {"ClusterIP", "NodePort", "LoadBalancer", "ExternalIP"}
    assert {port["scope"] for port in web["ports"] if port["kind"] == "ClusterIP"} == {"inside"}
    assert {each["state"] for each in web["endpoints"]} == {"active"}
    assert [each["kind"] for each in found["node1", "missing"]["problems"]] == ["slice-without-service"]
    text = ciliate("service", "get", "web").stdout
    assert "NodePort" in text
    assert "outside" in text
    assert "there is no Service 'missing'" in ciliate("status", check=False).stdout


def test_a_load_balancer_s_health_check_tells_where_endpoints_are() -> None:
    local = """
apiVersion: v1
kind: Service
metadata: {name: local}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: 31999
  selector: {app: client}
  ports: [{port: 80}]
"""
    ciliate("sandbox", "apply", "-f", "-", text=local)
    there = next(pod for pod in status()["pods"] if pod["owner"] == "client")["node"]
    codes = {}
    for node in netns.plan("", 2).nodes:
        answer = ""
        for _ in range(30):
            _, answer = curl("-o /dev/null", "-w '%{http_code}'", f"http://{node.address4}:31999/")
            if answer in ("200", "503"):
                break
            time.sleep(0.2)
        codes[node.name] = answer
    assert codes == {name: "200" if name == there else "503" for name in codes}
