"""DNS rules and toFQDNs with a real resolver: names open addresses, also while the agent is away."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.sandbox import netns, state
from tests.e2e.shell import Shell

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

NAME = f"names-{os.getpid()}"
OBJECTS = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: client}
spec:
  replicas: 1
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec: {containers: [{name: shell, image: "curlimages/curl:8.10.1", command: [sleep, infinity]}]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: names}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egress:
    - toEndpoints: [{matchLabels: {"k8s:io.kubernetes.pod.namespace": kube-system, k8s-app: kube-dns}}]
      toPorts:
        - ports: [{port: "53", protocol: ANY}]
          rules: {dns: [{matchPattern: "*.world.test"}, {matchPattern: "*.alias.test"}]}
    - toFQDNs: [{matchName: api.world.test}, {matchPattern: "www.*.test"}]
      toPorts: [{ports: [{port: "80", protocol: TCP}]}]
"""


ciliate = Shell(NAME)


def get(host: str, seconds: float = 2) -> str:
    """What the client pod gets from http://host/: a status code, or curl's exit status."""
    url = ("curl", "-4", "-s", "-o", "/dev/null", "-m", f"{seconds:g}", "-w", "%{http_code}", f"http://{host}/")
    done = ciliate("sandbox", "exec", "client", "--", *url, check=False)
    return done.stdout if done.returncode == 0 else f"exit {done.returncode}"


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    """One sandbox with the client; a web server plays the outside."""
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: ciliate("sandbox", "down", check=False))
        ciliate("sandbox", "up", "--nodes", "1")
        paths = state.Paths(NAME)
        switch = next(each for each in netns.existing(paths.netns_prefix) if "switch" in each or each.endswith("-sw"))
        server = subprocess.Popen(
            [
                "nsenter",
                f"--net=/run/netns/{switch}",
                sys.executable,
                "-m",
                "http.server",
                "80",
                "--bind",
                netns.WORLD4,
            ],
            cwd="/usr/share/doc",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(server.wait)
        stack.callback(server.kill)
        ciliate("sandbox", "apply", "-f", "-", text=OBJECTS)
        yield


def agents() -> list[int]:
    """The sandbox's agents."""
    found = []
    for each in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (each / "cmdline").read_bytes().split(b"\0") if each.name.isdigit() else []
            if b"services.agent" in words and any(NAME.encode() in word for word in words):
                found.append(int(each.name))
    return found


def flows(*arguments: str) -> list[Any]:
    lines = ciliate("observe", "--last", "100", *arguments, "-o", "json").stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_names_open_addresses() -> None:
    assert get(netns.WORLD4) == "exit 28"  # nobody has asked for its name
    assert get("api.world.test") == "200"
    assert get(netns.WORLD4) == "200"
    assert get("www.alias.test") == "200"  # through an alias
    known = json.loads(ciliate("fqdn", "list", "*.world.test", "-o", "json").stdout)
    (api,) = [each for each in known if each["address"] == netns.WORLD4]
    assert (api["name"], api["selectors"], api["ttl"]) == ("api.world.test", ["api.world.test"], 5)
    assert len(api["endpoints"]) == 1
    assert get("forbidden.example").startswith("exit 6")  # could not resolve


def test_while_the_agent_is_away() -> None:
    away = agents()
    assert away
    for pid in away:
        os.kill(pid, signal.SIGSTOP)
    try:
        # What was learned before is over after its time to live, up to five seconds, and ten of grace.
        deadline = time.monotonic() + 30
        while get(netns.WORLD4) != "exit 28":
            assert time.monotonic() < deadline, "the address stayed open although its names are over"
            time.sleep(0.5)
        assert get("www.alias.test") == "200"
        assert get("forbidden.example").startswith("exit 6")
    finally:
        for pid in away:
            os.kill(pid, signal.SIGKILL)


def test_flows_say_what_was_asked() -> None:
    assert get("api.world.test") == "200"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = [each.get("flow", each) for each in flows("--type", "l7")]
        texts = [flow.get("Summary", "") for flow in found]
        if any("DNS Answer" in text and "api.world.test" in text for text in texts):
            break
        time.sleep(0.3)
    assert any(f'"{netns.WORLD4}' in text for text in texts), texts
    named = [each.get("flow", each) for each in flows("--to-fqdn", "api.world.test")]
    assert named
