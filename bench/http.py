"""What HTTP policy costs: one web server, direct, behind policy in the kernel, and behind haproxy with the same ACL.

    ratio_direct_cN         requests/s with policy in the kernel over plain veth routing, N connections kept alive
    ratio_haproxy_cN        ... over haproxy in front of the server
    head4k_ratio_..._cN     the same with request heads of 4 KiB
    direct_cN, kernel_cN, haproxy_cN   requests/s

Medians over interleaved rounds; each round compares neighbours in time. Client and servers share one core, so that the
figures measure work and not wake-ups; the other core reads the events, as an agent does. The last line is one JSON
object. `--quick` for trying the bench itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.agent.abi.events import FLOW_EVENT, HTTP_EVENT
from services.agent.calc.http import compile_rulesets
from services.agent.datapath.http_tables import HttpTableWriter
from services.agent.events.reader import RingReader
from services.model.verdict import Direction
from services.policy.l7 import HttpRule
from tests.datapath.node import inside, sh
from tests.datapath.wire import WiredNode

CORE, READER_CORE = 0, 1
READ_SECONDS = 0.005
PATH = "/api/v1/users"
RULESET = 1
CONNECTIONS = (1, 16, 64)
HEADS = {"": "", "head4k_": "x" * 4000}
WEB_PORT, PROXY_PORT = 80, 8080
START_SECONDS = 10.0

NGINX = """
worker_processes 1; daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 300; large_client_header_buffers 4 32k;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{ listen 80; location / {{ return 200 "hello from the web app\\n"; }} }}
}}
"""
HAPROXY = """
global
  nbthread 1
  tune.bufsize 32768
defaults
  mode http
  http-reuse always
  timeout connect 5s
  timeout client 300s
  timeout server 300s
frontend web
  bind :8080
  http-request deny unless METH_GET {{ path {path} }}
  default_backend app
backend app
  server app 127.0.0.1:80
"""


@dataclass(frozen=True)
class Target:
    """Where requests go from."""

    client: str
    address: str
    port: int


def start(namespace: str, port: int, *command: str) -> subprocess.Popen[bytes]:
    """A pinned server in a namespace; returns when it listens."""
    full = ["nsenter", f"--net=/run/netns/{namespace}", "taskset", "-c", str(CORE), *command]
    process = subprocess.Popen(full, stdout=subprocess.DEVNULL)
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with inside(namespace), contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return process
        time.sleep(0.02)
    process.kill()
    process.wait()
    raise SystemExit(f"{command[0]} does not listen on port {port}")


def read_events(node: WiredNode) -> int:
    """Start a reader of both rings on the other core; its pid. Ends by SIGTERM."""
    rings = [(node.map("events").fd, FLOW_EVENT), (node.map("http_events").fd, HTTP_EVENT)]
    pid = os.fork()
    if pid:
        return pid
    os.sched_setaffinity(0, {READER_CORE % (os.cpu_count() or 1)})
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    readers = [RingReader.open(fd, dtype) for fd, dtype in rings]
    while True:
        if not sum(len(reader.read(16384)) for reader in readers):
            time.sleep(READ_SECONDS)


def police(node: WiredNode) -> None:
    """The rule that haproxy has as well, in the kernel."""
    maps = {name: node.map(name) for name in ("http_grammar", "http_tables", "http_config")}
    HttpTableWriter(maps).write(compile_rulesets({RULESET: (HttpRule(method="GET", path=PATH),)}))
    node.settings()
    node.rule(node.pods[1], Direction.EGRESS, 1002, 6, WEB_PORT, rule_id=12)
    node.rule(node.pods[2], Direction.INGRESS, 1001, 6, WEB_PORT, rule_id=11, l7=RULESET)


@contextlib.contextmanager
def targets(folder: Path) -> Iterator[dict[str, Target]]:
    """Two nodes with the same two pods; on one of them the hooks are taken off again."""
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder))
    (folder / "haproxy.cfg").write_text(HAPROXY.format(path=PATH))
    with contextlib.ExitStack() as stack:
        made = []
        for number in (1, 2):
            node = WiredNode(folder / "cache", number)
            stack.callback(node.close)
            node.add_pod(1, 1001)
            node.add_pod(2, 1002)
            made.append(node)
        plain, policed = made
        for pod in plain.pods.values():
            sh("tc", "qdisc", "del", "dev", f"lxc{pod.id}", "clsact", netns=plain.name)
        police(policed)
        reader = read_events(policed)
        stack.callback(os.waitpid, reader, 0)
        stack.callback(os.kill, reader, signal.SIGTERM)
        for node in made:
            web = start(node.pod_ns(node.pods[2]), WEB_PORT, "nginx", "-c", str(folder / "nginx.conf"))
            stack.callback(web.wait)
            stack.callback(web.kill)
        proxy = start(plain.pod_ns(plain.pods[2]), PROXY_PORT, "haproxy", "-db", "-f", str(folder / "haproxy.cfg"))
        stack.callback(proxy.wait)
        stack.callback(proxy.kill)
        yield {
            "direct": Target(plain.pod_ns(plain.pods[1]), plain.pods[2].ipv4, WEB_PORT),
            "kernel": Target(policed.pod_ns(policed.pods[1]), policed.pods[2].ipv4, WEB_PORT),
            "haproxy": Target(plain.pod_ns(plain.pods[1]), plain.pods[2].ipv4, PROXY_PORT),
        }


def requests_per_second(target: Target, connections: int, padding: str, seconds: int) -> float:
    """One run of wrk; fails on answers other than 200."""
    url = f"http://{target.address}:{target.port}{PATH}"
    command = [
        "wrk",
        "-t",
        "1",
        "-c",
        str(connections),
        "-d",
        f"{seconds}s",
        *(["-H", f"X-Padding: {padding}"] if padding else []),
        url,
    ]
    out = sh("taskset", "-c", str(CORE), *command, netns=target.client)
    if "Non-2xx" in out or "Socket errors" in out:
        raise SystemExit(f"not every answer was 200:\n{out}")
    found = re.search(r"Requests/sec:\s*([\d.]+)", out)
    if not found:
        raise SystemExit(f"wrk says nothing:\n{out}")
    return float(found[1])


def check_policy(where: dict[str, Target]) -> None:
    """Both enforce: what is measured is the same job."""
    for name, expected in (("direct", b"200"), ("kernel", b"403"), ("haproxy", b"403")):
        target = where[name]
        with inside(target.client), socket.create_connection((target.address, target.port), 5) as sock:
            sock.sendall(b"GET /forbidden HTTP/1.1\r\nHost: x\r\n\r\n")
            status = sock.recv(64).split()[1]
        if status != expected:
            raise SystemExit(f"{name} answers {status.decode()} to a forbidden request, not {expected.decode()}")


def measure(where: dict[str, Target], rounds: int, seconds: int) -> dict[str, float]:
    """Interleaved rounds over all targets, connections and heads."""
    figures: dict[str, list[float]] = {}
    for number in range(rounds):
        for prefix, padding in HEADS.items():
            for connections in CONNECTIONS:
                order = list(where) if number % 2 else list(reversed(where))
                rate = {name: requests_per_second(where[name], connections, padding, seconds) for name in order}
                for name in order:
                    figures.setdefault(f"{prefix}{name}_c{connections}", []).append(rate[name])
                for other in ("direct", "haproxy"):
                    ratio = rate["kernel"] / rate[other]
                    figures.setdefault(f"{prefix}ratio_{other}_c{connections}", []).append(ratio)
        last = {k: round(v[-1], 2) for k, v in figures.items() if "ratio" in k}
        print(f"round {number + 1}/{rounds}:", last, file=sys.stderr)
    return {name: round(statistics.median(values), 3) for name, values in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, for trying the bench itself")
    options = parser.parse_args()
    for program in ("wrk", "nginx", "haproxy", "taskset"):
        if not shutil.which(program):
            raise SystemExit(f"{program} is not installed: ./dev install")
    with tempfile.TemporaryDirectory() as folder, targets(Path(folder)) as where:
        check_policy(where)
        figures = measure(where, 2 if options.quick else 10, 1)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
