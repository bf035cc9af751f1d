"""What DNS rules cost: a resolver, asked directly, under DNS rules and toFQDNs in the kernel, and through a proxy.

    added_p50_us, added_p99_us               latency of a question that the kernel's rules add to the direct way
    proxy_added_p50_us, proxy_added_p99_us   that a proxy in user space adds (dnsmasq without a cache, in the path)
    direct_qps, kernel_qps, proxy_qps        questions/s, 32 at a time

The rules have a hundred patterns and a hundred selectors; every answer is learned before it is delivered, and an event
tells of each question and answer. Medians over interleaved rounds. Client and servers share one core, so that the
figures measure work and not wake-ups; the other core reads the events. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench._pair import CORE, pair, reading
from services.agent.abi.endpoints import EndpointFlags
from services.agent.abi.events import NAME_EVENT
from services.agent.abi.names import L7Kind
from services.model.verdict import Direction
from tests.datapath.dns_node import Names, question
from tests.datapath.node import inside
from tests.datapath.wire import WiredNode

RULESET = 1
PORT, PROXY_PORT = 53, 5353
NAME = "api7.example.com"
WINDOW = 32
START_SECONDS = 10.0


@dataclass(frozen=True)
class Target:
    """Where questions go from."""

    client: str
    address: str
    port: int


def resolver(namespace: str, *options: str) -> subprocess.Popen[bytes]:
    """A pinned dnsmasq in a namespace."""
    command = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--no-hosts", "--no-resolv"]
    pinned = ["nsenter", f"--net=/run/netns/{namespace}", "taskset", "-c", str(CORE)]
    return subprocess.Popen([*pinned, *command, "--cache-size=0", "--pid-file", *options], stdout=subprocess.DEVNULL)


def police(node: WiredNode) -> None:
    """A hundred patterns and a hundred selectors."""
    client = node.pods[1]
    client.flags = EndpointFlags.FQDN
    node.put_pod(client)
    node.settings()
    selectors = [f"api{i}.example.com" for i in range(50)] + [f"*.zone{i}.test" for i in range(50)]
    Names(node).write({RULESET: [*selectors, "*.example.com"]}, selectors)
    node.rule(client, Direction.EGRESS, 1002, 17, PORT, rule_id=12, l7=L7Kind.DNS.ruleset(RULESET))
    node.open(node.pods[2])


@contextlib.contextmanager
def targets(folder: Path) -> Iterator[dict[str, Target]]:
    """Two nodes with the same two pods; on one of them the hooks are taken off again."""
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(pair(folder / "cache"))
        plain, policed = made
        police(policed)
        stack.enter_context(reading(policed, name_events=NAME_EVENT))
        servers = [(node, ("--address=/example.com/203.0.113.7",)) for node in made]
        for node, options in [*servers, (plain, (f"--port={PROXY_PORT}", "--server=127.0.0.1"))]:
            server = resolver(node.pod_ns(node.pods[2]), *options)
            stack.callback(server.wait)
            stack.callback(server.kill)
        yield {
            "direct": Target(plain.pod_ns(plain.pods[1]), plain.pods[2].ipv4, PORT),
            "kernel": Target(policed.pod_ns(policed.pods[1]), policed.pods[2].ipv4, PORT),
            "proxy": Target(plain.pod_ns(plain.pods[1]), plain.pods[2].ipv4, PROXY_PORT),
        }


@contextlib.contextmanager
def asking(target: Target) -> Iterator[socket.socket]:
    """A connected socket in the client's namespace."""
    with inside(target.client), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((target.address, target.port))
        sock.settimeout(1)
        yield sock


def latencies(target: Target, count: int) -> list[float]:
    """Microseconds of one question after the other."""
    messages = [question(NAME, number=number) for number in range(256)]
    found = []
    with asking(target) as sock:
        for number in range(count):
            begin = time.perf_counter_ns()
            sock.send(messages[number & 255])
            sock.recv(512)
            found.append((time.perf_counter_ns() - begin) / 1000)
    return found


def per_second(target: Target, seconds: float) -> float:
    """Answers per second with several questions on their way."""
    # Different names: a proxy asks for the same name once.
    messages = [question(f"api{number % 50}.example.com", number=number) for number in range(1000)]
    answered = sent = 0
    with asking(target) as sock:
        for _ in range(WINDOW):
            sock.send(messages[sent % len(messages)])
            sent += 1
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            sock.recv(512)
            sock.send(messages[sent % len(messages)])
            sent += 1
            answered += 1
    return answered / seconds


def await_answers(where: dict[str, Target]) -> None:
    """All resolve, and only the kernel refuses: what is measured is the job."""
    for name, target in where.items():
        end = time.monotonic() + START_SECONDS
        with asking(target) as sock:
            while True:
                with contextlib.suppress(OSError):
                    sock.send(question(NAME))
                    if struct.unpack_from(">4H", sock.recv(512))[3]:
                        break
                if time.monotonic() > end:
                    raise SystemExit(f"{name}: {target.address} port {target.port} does not answer")
                time.sleep(0.05)
            while True:  # late answers to the first questions
                sock.settimeout(0.2)
                try:
                    sock.recv(512)
                except TimeoutError:
                    break
            sock.send(question("forbidden.test"))
            refused = struct.unpack_from(">2H", sock.recv(512))[1] & 15 == 5
        if name == "kernel" and not refused:
            raise SystemExit("the kernel lets a forbidden name be asked for")


def measure(where: dict[str, Target], rounds: int, count: int, seconds: float) -> dict[str, float]:
    """Interleaved rounds over all targets."""
    figures: dict[str, list[float]] = {}
    for number in range(rounds):
        order = list(where) if number % 2 else list(reversed(where))
        cuts = {name: statistics.quantiles(latencies(where[name], count), n=100) for name in order}
        for name, prefix in (("kernel", ""), ("proxy", "proxy_")):
            for percent in (50, 99):
                added = cuts[name][percent - 1] - cuts["direct"][percent - 1]
                figures.setdefault(f"{prefix}added_p{percent}_us", []).append(added)
        for name in order:
            figures.setdefault(f"{name}_p50_us", []).append(cuts[name][49])
            figures.setdefault(f"{name}_qps", []).append(per_second(where[name], seconds))
        print(f"round {number + 1}/{rounds}:", {k: round(v[-1], 1) for k, v in figures.items()}, file=sys.stderr)
    return {name: round(statistics.median(values), 1) for name, values in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, for trying the bench itself")
    options = parser.parse_args()
    for program in ("dnsmasq", "taskset"):
        if not shutil.which(program):
            raise SystemExit(f"{program} is not installed: ./dev install")
    os.sched_setaffinity(0, {CORE})
    with tempfile.TemporaryDirectory() as folder, targets(Path(folder)) as where:
        await_answers(where)
        figures = measure(where, 3 if options.quick else 15, 2000 if options.quick else 5000, 0.5)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
