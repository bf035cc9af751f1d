"""What HTTP policy costs: one web server, direct, behind policy in the kernel, and behind haproxy and nginx with the
same rules.

    ratio_direct_cN            requests/s with policy in the kernel over plain veth routing, N connections kept alive
    ratio_haproxy_cN, ratio_nginx_cN   ... over a proxy in front of the server
    head4k_ratio_..._c16       the same with request heads of 4 KiB
    rules100_..., rules1000_...        with so many rules, of which the last one allows
    short_...                  a connection per request
    varied_...                 every request has a number of its own, so that no head comes twice
    up_..., down_...           bodies of 1 MiB, read to their end before they are answered
    direct_cN, kernel_cN, ...  requests/s
    p99_us_direct_cN, ...      latency that one request in a hundred exceeds

Medians over interleaved rounds; each round compares neighbours in time. Client and servers share one core, so that the
figures measure work and not wake-ups; the other core reads the events, as an agent does. The last line is one JSON
object. `--quick` for trying the bench itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench._http_servers import BODY, HAPROXY, NGINX, PATH, SIZES, WEB, rules, write_configurations
from bench._pair import CORE, pair, reading
from services.agent.abi.events import HTTP_EVENT
from services.agent.calc.http import compile_rulesets
from services.agent.datapath.http_tables import HttpTableWriter
from services.model.verdict import Direction
from services.policy.l7 import HttpRule
from tests.datapath.node import inside, sh
from tests.datapath.wire import WiredNode

START_SECONDS = 10.0


@dataclass(frozen=True)
class Case:
    """What wrk asks for, and how. Keys of the figures begin with `name`."""

    name: str
    connections: int
    rules: int = 1
    options: tuple[str, ...] = ()
    path: str = PATH
    script: str = ""


VARIED = """
local number = 0
request = function()
  number = number + 1
  return wrk.format("GET", nil, {["X-Request-Id"] = string.format("%016x", number)})
end
"""
UPLOAD = f'wrk.method = "POST"\nwrk.body = string.rep("x", {BODY})\n'
CASES = (
    Case("", 1),
    Case("", 16),
    Case("", 64),
    Case("head4k_", 16, options=("-H", f"X-Padding: {'x' * 4000}")),
    Case("varied_", 16, script=VARIED),
    Case("rules100_", 16, rules=100),
    Case("rules1000_", 16, rules=1000),
    Case("short_", 16, options=("-H", "Connection: close")),
    Case("up_", 4, path="/up", script=UPLOAD),
    Case("down_", 4, path="/down"),
)


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


def police(node: WiredNode) -> None:
    """The rules that the proxies have as well, in the kernel."""
    maps = {name: node.map(name) for name in ("http_grammar", "http_tables", "http_config")}
    sets = {i + 1: [HttpRule(method=m, path=path) for m, path in rules(count)] for i, count in enumerate(SIZES)}
    tables = compile_rulesets(sets)
    if tables.errors:
        raise SystemExit(f"rules that do not fit: {tables.errors}")
    HttpTableWriter(maps).write(tables)
    node.settings()
    for i in range(len(SIZES)):
        node.rule(node.pods[1], Direction.EGRESS, 1002, 6, WEB + i, rule_id=12)
        node.rule(node.pods[2], Direction.INGRESS, 1001, 6, WEB + i, rule_id=11, l7=i + 1)


@contextlib.contextmanager
def targets(folder: Path) -> Iterator[dict[str, Target]]:
    """Two nodes with the same two pods; on one of them the hooks are taken off again."""
    write_configurations(folder)
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(pair(folder / "cache"))
        plain, policed = made
        police(policed)
        stack.enter_context(reading(policed, http_events=HTTP_EVENT))
        servers = [(node, WEB, ("nginx", "-c", str(folder / "web.conf"))) for node in made]
        servers.append((plain, HAPROXY, ("haproxy", "-db", "-f", str(folder / "haproxy.cfg"))))
        servers.append((plain, NGINX, ("nginx", "-c", str(folder / "proxy.conf"))))
        for node, port, command in servers:
            process = start(node.pod_ns(node.pods[2]), port, *command)
            stack.callback(process.wait)
            stack.callback(process.kill)
        client, address = plain.pod_ns(plain.pods[1]), plain.pods[2].ipv4
        yield {
            "direct": Target(client, address, WEB),
            "kernel": Target(policed.pod_ns(policed.pods[1]), policed.pods[2].ipv4, WEB),
            "haproxy": Target(client, address, HAPROXY),
            "nginx": Target(client, address, NGINX),
        }


MICROSECONDS = {"us": 1.0, "ms": 1e3, "s": 1e6}


def run(target: Target, case: Case, folder: Path, seconds: int) -> tuple[float, float]:
    """One run of wrk: (requests/s, p99 in microseconds); fails on answers other than 200."""
    port = target.port + SIZES.index(case.rules)
    command = ["wrk", "--latency", "-t", "1", "-c", str(case.connections), "-d", f"{seconds}s", *case.options]
    if case.script:
        (folder / "case.lua").write_text(case.script)
        command += ["-s", str(folder / "case.lua")]
    url = f"http://{target.address}:{port}{case.path}"
    out = sh("taskset", "-c", str(CORE), *command, url, netns=target.client)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    # A server's close counts as a read error in wrk, also where it follows a whole answer.
    if "Non-2xx" in out or (errors and (errors[1] != "0" or errors[4] != "0")):
        raise SystemExit(f"not every answer was 200:\n{out}")
    found, slow = re.search(r"Requests/sec:\s*([\d.]+)", out), re.search(r"99%\s+([\d.]+)(us|ms|s)\b", out)
    if not found or not slow:
        raise SystemExit(f"wrk says nothing:\n{out}")
    return float(found[1]), float(slow[1]) * MICROSECONDS[slow[2]]


def check_policy(where: dict[str, Target]) -> None:
    """All enforce: what is measured is the same job."""
    for name, target in where.items():
        for i in range(len(SIZES)):
            with inside(target.client), socket.create_connection((target.address, target.port + i), 5) as sock:
                sock.sendall(b"GET /forbidden HTTP/1.1\r\nHost: x\r\n\r\n")
                status = sock.recv(64).split()[1]
            if status != (b"200" if name == "direct" else b"403"):
                raise SystemExit(f"{name} answers {status.decode()} to a forbidden request")


def measure(where: dict[str, Target], folder: Path, rounds: int, seconds: int) -> dict[str, float]:
    """Interleaved rounds over all targets and cases."""
    figures: dict[str, list[float]] = {}
    for number in range(rounds):
        for case in CASES:
            order = list(where) if number % 2 else list(reversed(where))
            done = {name: run(where[name], case, folder, seconds) for name in order}
            rate = {name: per_second for name, (per_second, _) in done.items()}
            for name in order:
                figures.setdefault(f"{case.name}{name}_c{case.connections}", []).append(rate[name])
                figures.setdefault(f"{case.name}p99_us_{name}_c{case.connections}", []).append(done[name][1])
                if name != "kernel":
                    ratio = rate["kernel"] / rate[name]
                    figures.setdefault(f"{case.name}ratio_{name}_c{case.connections}", []).append(ratio)
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
        figures = measure(where, Path(folder), 1 if options.quick else 6, 1)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
