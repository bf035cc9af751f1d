"""Short connections and requests through a Service between two pods, flows on, against kube-proxy's rules.

    ratio_1 ratio_1k ratio_10k ratio_30k   short connections per second, over kube-proxy's iptables rules for as many
                                 Services on the same pods with plain routing; the rule of the Service in use is the
                                 last of the chain. `_middle`: half-way, where a Service is on average
    ratio_1_processes            the same for one Service, each connection's process told as well (`flow_processes`)
    limit_ratio_1                the same for pods that are neither policed nor balanced nor watched (clients know the
                                 server's address, plain routing): what ours would come to if it cost nothing
    of_limit_1                   ours over those
    nft_ratio_*                  the same over kube-proxy's nftables mode
    kept_ratio_* kept_nft_*      requests per second on one connection
    p99_us_* iptables_p99_us_*   of a short connection
    update_p50_ms_* update_p99_ms_*   one endpoint of one Service changes -> the maps have it, by the agent's engine
    iptables_update_ms_* nft_update_ms_*   the same by iptables-restore --noflush and nft -f, median
    service_bytes backend_bytes  kernel memory; agent_service_bytes: the agent's, of a Service with two endpoints

Every Service has two endpoints. Ours are balanced at the socket; the pods are policed and every connection is a flow.
Client and server share one core; on the other the ring is read as fast as an agent reads it. Ratios are medians over
interleaved rounds. The last line is one JSON object. `--quick`: up to 1,000 Services, for trying the bench itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import _service_traffic as traffic
from bench._kube_proxy import Iptables, Nftables, Service
from bench._pair import advance, bare, reading
from bench._service_updates import Agent
from bench._two_nodes import EVENTS
from bench.datapath import prepare
from services.agent.abi.config import ConfigFlags
from services.agent.abi.process import PROCESS
from services.agent.datapath.cgroup import SocketHooks
from services.agent.datapath.units import PROCESS_HOOKS
from services.model.verdict import Direction
from tests.datapath.socketed import hooked
from tests.datapath.wire import WiredNode

SIZES = {1: "1", 1_000: "1k", 10_000: "10k", 30_000: "30k"}
PORTS = (8080, 8081)
ADDRESS, PORT = "10.96.0.10", 80
PEER_UPDATES = 5
NFT_SECONDS = 100


@dataclass(frozen=True, slots=True)
class Contestant:
    """A pair of pods and what balances between them."""

    name: str
    node: WiredNode
    cgroup: Path | None = None
    target: tuple[str, int] = (ADDRESS, PORT)

    def measure(self, kind: str, seconds: float) -> traffic.Sample:
        """The client's side of one round."""
        netns = self.node.pod_ns(self.node.pods[1])
        return traffic.measure(kind, netns, *self.target, seconds, self.cgroup)


def make_node(cache: Path, number: int, policed: bool) -> WiredNode:
    """A node with a client and a server; without policy nothing of ours touches a packet."""
    sizes = {"ct": 262_144, "ct_queue": 32_768, "services": 65_536, "backends": 262_144, "events": EVENTS}
    node = WiredNode(cache, number, **sizes)
    try:
        node.settings(flags=ConfigFlags.SOCKET_LB, ct_queue_places=32_768)
        client, server = node.add_pod(1, 1001), node.add_pod(2, 1002)
        for pod in (client, server):
            prepare(node.pod_ns(pod))
        for identity in range(2000, 2100):  # a policy of some size around the rules that matter
            node.rule(server, Direction.INGRESS, identity, 6, 80)
        for port in PORTS:
            node.rule(client, Direction.EGRESS, 1002, 6, port, rule_id=12)
            node.rule(server, Direction.INGRESS, 1001, 6, port, rule_id=11)
        (advance if policed else bare)(node)
    except BaseException:
        node.close()
        raise
    return node


def filler(index: int) -> Service:
    """A Service that nobody uses."""
    endpoints = (f"10.{128 + (index >> 15)}.{(index >> 7) & 255}.{2 * (index & 127) + k}:8080" for k in (0, 1))
    return Service(
        f"bench/svc-{index}:http", f"10.{97 + (index >> 16)}.{(index >> 8) & 255}.{index & 255}", 80, tuple(endpoints)
    )


def services_of(node: WiredNode, size: int, middle: bool = False) -> list[Service]:
    """`size` Services; the one in use is the last, or in the middle."""
    server = node.pods[2].ipv4
    used = Service("bench/used:http", ADDRESS, PORT, tuple(f"{server}:{port}" for port in PORTS))
    before = size // 2 if middle else size - 1
    return [*(filler(i) for i in range(before)), used, *(filler(i) for i in range(before, size - 1))]


@contextlib.contextmanager
def told_processes(player: Contestant) -> Iterator[None]:
    """The agent's hooks for processes behind sockets, beside those for Services."""
    assert player.cgroup is not None
    hooks = SocketHooks(player.node.root, player.cgroup, PROCESS_HOOKS)
    try:
        hooks.attach()
        yield
    finally:
        hooks.detach()


@contextlib.contextmanager
def contestants(cache: Path) -> Iterator[dict[str, Contestant]]:
    """ours, iptables, nftables, limit: each with its servers running."""
    with contextlib.ExitStack() as stack:
        found = {}
        for number, name in enumerate(("ours", "iptables", "nftables", "limit"), start=1):
            node = make_node(cache, number, policed=name == "ours")
            stack.callback(node.close)
            cgroup = None
            if name == "ours":
                cgroup = stack.enter_context(hooked(node.root, node.name))[0].path
            server = node.pods[2]
            stack.enter_context(traffic.servers(node.pod_ns(server), server.ipv4, PORTS, cgroup))
            target = (server.ipv4, PORTS[0]) if name == "limit" else (ADDRESS, PORT)
            found[name] = Contestant(name, node, cgroup, target)
        yield found


def play(players: list[Contestant], rounds: int, seconds: float) -> dict[tuple[str, str], list[traffic.Sample]]:
    """Interleaved rounds, each starting with another one."""
    samples: dict[tuple[str, str], list[traffic.Sample]] = {}
    for number in range(rounds):
        for kind in ("short", "kept"):
            for player in players[number % len(players) :] + players[: number % len(players)]:
                taken = player.measure(kind, seconds if kind == "short" else seconds / 2)
                samples.setdefault((player.name, kind), []).append(taken)
    return samples


def compare(samples: dict[tuple[str, str], list[traffic.Sample]], suffix: str) -> dict[str, float]:
    """Medians of rounds' ratios; p99 is the rounds' median, too."""

    def ratio(kind: str, peer: str, player: str = "ours") -> float:
        pairs = zip(samples[player, kind], samples[peer, kind], strict=True)
        return statistics.median(one.rate / other.rate for one, other in pairs)

    def median(name: str, what: str) -> float:
        return statistics.median(getattr(sample, what) for sample in samples[name, "short"])

    figures = {f"ratio_{suffix}": ratio("short", "iptables"), f"kept_ratio_{suffix}": ratio("kept", "iptables")}
    for name, prefix in (("ours", ""), ("iptables", "iptables_"), ("nftables", "nft_")):
        if (name, "short") in samples:
            figures[f"{prefix}per_s_{suffix}"] = median(name, "rate")
            figures[f"{prefix}p99_us_{suffix}"] = median(name, "p99_us")
    if ("nftables", "short") in samples:
        figures[f"nft_ratio_{suffix}"] = ratio("short", "nftables")
        figures[f"kept_nft_{suffix}"] = ratio("kept", "nftables")
    if ("limit", "short") in samples:
        figures[f"limit_ratio_{suffix}"] = ratio("short", "iptables", "limit")
        figures[f"of_limit_{suffix}"] = ratio("short", "limit")
    return figures


def updates(peers: Mapping[str, Iptables | Nftables], agent: Agent, chosen: Service, suffix: str) -> dict[str, float]:
    """One endpoint changes, again and again."""
    figures = {}
    for name, peer in peers.items():
        taken = [peer.update(chosen) for _ in range(PEER_UPDATES)]
        figures[f"{name}_update_ms_{suffix}"] = statistics.median(taken) * 1000
    p50, p99 = agent.update_ms()
    return figures | {f"update_p50_ms_{suffix}": p50, f"update_p99_ms_{suffix}": p99}


def run(players: dict[str, Contestant], sizes: list[int], rounds: int, seconds: float) -> dict[str, float]:
    """All sizes, growing."""
    ours, other = players["ours"], players["nftables"]
    iptables, nftables = Iptables(players["iptables"].node.name), Nftables(other.node.name)
    nftables.install()
    agent = Agent(ours.node)
    figures: dict[str, float] = {}
    known: set[str] = set()
    nft_s = 0.0
    for size in sizes:
        suffix = SIZES[size]
        iptables.install(services_of(players["iptables"].node, size))
        wanted = services_of(other.node, size)
        playing = [player for player in players.values() if size == 1 or player.name != "limit"]
        # nft takes the square of the number: the bench has to end.
        if len(known) >= 1_000 and nft_s * (size / len(known)) ** 2 > NFT_SECONDS:
            playing.remove(other)
            print(f"{suffix}: left out nftables, which would take too long to set up", file=sys.stderr)
        else:
            started = time.monotonic()
            nftables.add([service for service in wanted if service.name not in known])
            nft_s = time.monotonic() - started
            known |= {service.name for service in wanted}
        agent.set_services(services_of(ours.node, size))
        figures |= compare(play(playing, rounds, seconds), suffix)
        if size == 1:
            two = [players["ours"], players["iptables"]]
            with told_processes(players["ours"]):
                key = f"{suffix}_processes"
                figures[f"ratio_{key}"] = compare(play(two, max(rounds // 2, 1), seconds), key)[f"ratio_{key}"]
        peers = {"iptables": iptables, "nft": nftables} if other in playing else {"iptables": iptables}
        figures |= updates(peers, agent, filler(0) if size > 1 else wanted[0], suffix)
        if size >= 10_000:
            iptables.install(services_of(players["iptables"].node, size, middle=True))
            two = [players["ours"], players["iptables"]]
            key = f"{suffix}_middle"
            figures[f"ratio_{key}"] = compare(play(two, max(rounds // 2, 1), seconds), key)[f"ratio_{key}"]
        print(suffix, {k: round(v, 2) for k, v in figures.items() if k.endswith(suffix)}, file=sys.stderr)
    return figures | agent.memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 1,000 Services, for trying the bench itself")
    quick = parser.parse_args().quick
    sizes, rounds, seconds = ([1, 1_000], 3, 0.3) if quick else (list(SIZES), 7, 0.7)
    with (
        tempfile.TemporaryDirectory() as folder,
        contestants(Path(folder)) as players,
        reading(players["ours"].node, process_events=PROCESS),
    ):
        figures = run(players, sizes, rounds, seconds)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
