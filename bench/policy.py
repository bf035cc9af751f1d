"""How long the engine takes from a change to the maps, at the size of a large cluster, and what it weighs.

30,000 policies in 300 namespaces, 6,000 identities, 30,000 remote addresses on 1,000 nodes, 100 local endpoints; real
kernel maps, written as the agent writes them. Prints one JSON object last:

    initial_s                    everything applied, computed and in the maps, from nothing
    change_p50_ms change_p99_ms  from handing in one change until the maps have it, over all three kinds below
    policy_* relabel_* identity_*  the same per kind: a policy changed, a local pod relabelled, an identity added
    rss_mb                       resident memory of this process after all that
    replicas_rss_mb, replicas_entries   more memory, and policy entries, for 10,000 endpoints sharing 50 label sets (an
                                 endpoints map larger than a node's: this is about what sharing saves)
    wide_s wide_closed           a policy for all endpoints and peers that needs more entries than the map has: until
                                 the maps have it, and how many policy ids are closed for want of room

`--quick` takes a tenth of the policies: for trying the bench itself. Needs root.
"""

from __future__ import annotations

import argparse
import gc
import ipaddress
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from services.agent.abi.endpoints import HOST_ENDPOINT, MAX_ENDPOINTS
from services.agent.calc.engine import Engine
from services.agent.calc.maps import MAP_NAMES, HttpRulesets, MapName
from services.agent.datapath import syscall
from services.agent.datapath.bpffs import ensure_bpffs
from services.agent.datapath.fake_map import FakeMap
from services.agent.datapath.maps import PinnedMap
from services.agent.datapath.reconcile import MapAccess
from services.agent.datapath.sink import DatapathSink
from services.agent.datapath.syscall import MapType
from services.model.identity import Identity, NumericIdentity
from services.model.labels import Labels, pod_identity_labels
from services.model.objects import (
    EndpointUpserted,
    IdentityUpserted,
    IpEntry,
    IpUpserted,
    LocalEndpoint,
    ObjectKey,
    PolicyObject,
    Update,
    Upserted,
)

NAMESPACES, APPS, PER_NAMESPACE, ENDPOINTS, ADDRESSES, NODES = 300, 20, 100, 100, 30_000, 1_000
ROUNDS = 300
NO_PREALLOC = 1
# (type, key size, value size, entries, flags), as in bpf/lib. There are no Services here: the other maps are stand-ins.
MAPS: dict[MapName, tuple[int, int, int, int, int]] = {
    "policy": (MapType.LPM_TRIE, 16, 16, 262_144, NO_PREALLOC),
    "ipcache": (MapType.LPM_TRIE, 20, 24, 524_288, NO_PREALLOC),
    "refined": (MapType.HASH, 20, 4, 262_144, NO_PREALLOC),
    "endpoints": (MapType.ARRAY, 4, 64, 4 * MAX_ENDPOINTS, 0),
    "endpoint_addrs": (MapType.HASH, 16, 4, 8 * MAX_ENDPOINTS, NO_PREALLOC),
    "endpoint_ifs": (MapType.HASH, 4, 4, 4 * MAX_ENDPOINTS, NO_PREALLOC),
}


@contextmanager
def kernel_maps(folder: Path) -> Iterator[dict[str, MapAccess]]:
    """The agent's maps, pinned for as long as the bench runs."""
    ensure_bpffs(folder)
    folder.mkdir()
    with ExitStack() as stack:
        stack.callback(folder.rmdir)
        found: dict[str, MapAccess] = {name: FakeMap(name) for name in MAP_NAMES if name not in MAPS}
        for name, (kind, key, value, entries, flags) in MAPS.items():
            descriptor = syscall.map_create(kind, key, value, entries, flags, name)
            syscall.obj_pin(descriptor, folder / name)
            stack.callback((folder / name).unlink)
            os.close(descriptor)
            found[name] = stack.enter_context(PinnedMap(folder / name))
        yield found


def labels(namespace: int, app: int, **more: str) -> Labels:
    name = f"ns{namespace}"
    return pod_identity_labels({"app": f"a{app}", **more}, name, {"kubernetes.io/metadata.name": name})


def identity(namespace: int, app: int) -> NumericIdentity:
    return NumericIdentity(256 + namespace * APPS + app)


def policy(namespace: int, index: int, port: int) -> Update:
    """One app's rules: two peers of its namespace may come in on a port, it may go out to an app of another one."""
    app, name = index % APPS, f"p{index}"
    sources = [{"matchLabels": {"app": f"a{(index * 7 + k) % APPS}"}} for k in range(2)]
    target = {"k8s:io.kubernetes.pod.namespace": f"ns{(index * 13) % NAMESPACES}", "app": f"a{app}"}
    spec = {
        "endpointSelector": {"matchLabels": {"app": f"a{app}"}},
        "ingress": [{"fromEndpoints": sources, "toPorts": [{"ports": [{"port": str(port), "protocol": "TCP"}]}]}],
        "egress": [{"toEndpoints": [{"matchLabels": target}]}],
    }
    metadata = {"name": name, "namespace": f"ns{namespace}"}
    document = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec}
    return Upserted(PolicyObject(ObjectKey("CiliumNetworkPolicy", f"ns{namespace}", name), document))


def endpoint(number: int, owner: NumericIdentity) -> Update:
    address = ipaddress.IPv4Address(0x0AF00000 + number)
    mac = number.to_bytes(6, "big")
    return EndpointUpserted(
        LocalEndpoint(number, "default", f"pod{number}", "", number, "", mac, mac, (address,), owner)
    )


def cluster(policies: int) -> Iterator[Update]:
    """Everything that exists."""
    for namespace in range(NAMESPACES):
        for app in range(APPS):
            yield IdentityUpserted(Identity(identity(namespace, app), labels(namespace, app)))
    for index in range(ADDRESSES):
        prefix = ipaddress.IPv4Network((0x0A000000 + index, 32))
        tunnel = ipaddress.IPv4Address(0xAC100000 + index % NODES)
        owner = NumericIdentity(256 + index % (NAMESPACES * APPS))
        yield IpUpserted(IpEntry(prefix, owner, f"node{index % NODES}", tunnel, "default", f"pod-{index}"))
    for namespace in range(NAMESPACES):
        for index in range(policies):
            yield policy(namespace, index, 8000 + index % 10)
    for number in range(1, ENDPOINTS + 1):
        yield endpoint(number, identity(number, number % APPS))


def policy_change(turn: int) -> Update:
    return policy(1 + turn % ENDPOINTS, turn % APPS, 20000 + turn)


def relabel(turn: int) -> Update:
    number = 1 + turn % ENDPOINTS
    return endpoint(number, identity(number, (number + turn) % APPS))


def new_identity(turn: int) -> Update:
    """A new label set of an app that local endpoints let in."""
    namespace = 1 + turn % ENDPOINTS
    more = labels(namespace, (namespace % APPS * 7) % APPS, version=str(turn))
    return IdentityUpserted(Identity(NumericIdentity(100_000 + turn), more))


def measure(engine: Engine, sink: DatapathSink, change: Callable[[int], Update]) -> list[float]:
    """Milliseconds from one change until the maps have it, sorted."""
    taken = []
    for turn in range(ROUNDS):
        update = change(turn)
        started = time.perf_counter()
        engine.apply(update)
        if not sink.apply(engine.flush()):
            raise RuntimeError(f"the maps refused entries: {sink.errors}")
        taken.append((time.perf_counter() - started) * 1000)
    return sorted(taken)


def at(values: Sequence[float], share: float) -> float:
    return round(values[min(len(values) - 1, int(len(values) * share))], 3)


def rss_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def replicas(engine: Engine, sink: DatapathSink) -> dict[str, float]:
    """10,000 more endpoints of 50 label sets: entries are shared, so only the endpoints themselves cost."""
    before, entries = rss_mb(), engine.counts()["policy"]
    numbers = [number for number in range(ENDPOINTS + 1, ENDPOINTS + 10_002) if number != HOST_ENDPOINT]
    for number in numbers:
        engine.apply(endpoint(number, identity(number % 50, 3)))
    if not sink.apply(engine.flush()):
        raise RuntimeError(f"the maps refused entries: {sink.errors}")
    assert len(numbers) == 10_000
    return {"replicas_rss_mb": round(rss_mb() - before, 1), "replicas_entries": engine.counts()["policy"] - entries}


def wide(engine: Engine, sink: DatapathSink) -> dict[str, float]:
    """Everybody may be reached by everybody of the cluster on one port: hundreds of thousands of entries too many."""
    spec = {
        "endpointSelector": {},
        "ingress": [{"fromEntities": ["cluster"], "toPorts": [{"ports": [{"port": "81", "protocol": "TCP"}]}]}],
    }
    kind = "CiliumClusterwideNetworkPolicy"
    document = {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": {"name": "wide"}, "spec": spec}
    started = time.perf_counter()
    engine.apply(Upserted(PolicyObject(ObjectKey(kind, "", "wide"), document)))
    if not sink.apply(engine.flush()):
        raise RuntimeError(f"the maps refused entries: {sink.errors}")
    taken = round(time.perf_counter() - started, 2)
    return {"wide_s": taken, "wide_closed": len(engine.pressure()), "wide_entries": engine.counts()["policy"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the policies")
    quick = parser.parse_args().quick
    with kernel_maps(Path(f"/sys/fs/bpf/ciliate-bench-{os.getpid()}")) as maps:
        engine, sink = Engine("node-here", sources=()), DatapathSink(maps)
        started = time.perf_counter()
        for update in cluster(PER_NAMESPACE // 10 if quick else PER_NAMESPACE):
            engine.apply(update)
        engine.flush()
        sink.resync(engine.desired(), HttpRulesets(engine.rulesets()))
        result: dict[str, float] = {"initial_s": round(time.perf_counter() - started, 2)}
        everything: list[float] = []
        for name, change in (("policy", policy_change), ("relabel", relabel), ("identity", new_identity)):
            taken = measure(engine, sink, change)
            everything += taken
            result |= {f"{name}_p50_ms": round(statistics.median(taken), 3), f"{name}_p99_ms": at(taken, 0.99)}
        everything.sort()
        result |= {"change_p50_ms": at(everything, 0.5), "change_p99_ms": at(everything, 0.99), "rss_mb": rss_mb()}
        result |= {"policy_entries": engine.counts()["policy"], **replicas(engine, sink), **wide(engine, sink)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
