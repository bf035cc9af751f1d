"""Maps by bpf(2), and what the loader does when it runs again."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.agent.abi.config import DatapathConfig
from services.agent.abi.conntrack import CtEntry, CtKey
from services.agent.abi.tailcall import TailCall
from services.agent.datapath import syscall
from services.agent.datapath.bpffs import drop_retired, remove_pins
from services.agent.datapath.gc import ConntrackCollector
from services.agent.datapath.generation import remove_marks
from services.agent.datapath.loader_client import LoaderConfig, load
from services.agent.datapath.maps import BPF_NOEXIST, PinnedMap
from services.agent.datapath.program import SOURCE_DIR
from services.common.errors import CiliateError, Exhausted, Internal, NotFound
from services.model.verdict import Direction
from tests.datapath.node import Node, u32

pytestmark = pytest.mark.root


def test_single_operations(node: Node) -> None:
    revnat = node.map("revnat")
    revnat.update(u32(1), bytes(20))
    assert revnat.lookup(u32(1)) == bytes(20)
    with pytest.raises(CiliateError):
        revnat.update(u32(1), bytes(20), BPF_NOEXIST)
    assert revnat.take(u32(1)) == bytes(20)
    revnat.delete(u32(1))  # absent is a success
    assert revnat.lookup(u32(1)) is None
    with pytest.raises(Internal, match="keys have 4 bytes"):
        revnat.lookup(b"x")
    with pytest.raises(Internal, match="values have 20 bytes"):
        revnat.update(u32(1), b"x")


@pytest.mark.parametrize("name", ["revnat", "policy", "ct"], ids=["hash", "lpm", "lru"])
def test_batches(node: Node, name: str) -> None:
    target = node.map(name)

    def key(number: int) -> bytes:
        if name == "policy":  # full-length prefixes
            return (96).to_bytes(4, "little") + number.to_bytes(4, "little") + bytes(target.key_size - 8)
        return number.to_bytes(4, "little") + bytes(target.key_size - 4)

    entries = {key(n): u32(n) + bytes(target.value_size - 4) for n in range(1500)}
    target.update_batch(entries)
    assert dict(target.items()) == entries
    assert target.count() == len(entries)
    # Absent keys anywhere in a batch are passed over.
    doomed = [key(n) for n in (5000, 0, 1, 5001, 2, 1499, 5002)]
    target.delete_batch(doomed)
    assert dict(target.items()) == {k: v for k, v in entries.items() if k not in doomed}
    target.delete_batch(list(entries))
    assert target.count() == 0


def test_a_full_map_says_so(node: Node) -> None:
    policy = node.map("policy")
    entries = {(96).to_bytes(4, "little") + u32(n) + bytes(8): bytes(16) for n in range(policy.max_entries + 1)}
    with pytest.raises(Exhausted, match="policy: full"):
        policy.update_batch(entries)


def test_arrays_and_per_cpu_maps(node: Node) -> None:
    endpoints = node.map("endpoints")
    endpoints.update(u32(7), b"\1" * 64)
    endpoints.delete_batch([u32(7)])
    assert endpoints.lookup(u32(7)) == bytes(64)
    values = node.map("metrics").lookup_percpu(u32(0))
    assert {len(value) for value in values} == {16}


def test_a_missing_pin_is_named() -> None:
    with pytest.raises(NotFound, match="no/such"):
        PinnedMap("/sys/fs/bpf/no/such")


def test_loading_again_keeps_contents_and_is_quick(node: Node, object_cache: Path) -> None:
    node.map("revnat").update(u32(9), b"\1" * 20)
    sizes = {"ct": 4096, "events": 1 << 20, "http_events": 1 << 18, "policy": 4096, "ipcache": 4096}
    config = LoaderConfig(root=str(node.root), cache_dir=str(object_cache), max_entries=sizes)
    loaded = asyncio.run(load(config))
    assert loaded.cached
    assert {"ct", "policy", "revnat"} <= set(loaded.reused)
    assert node.map("revnat").lookup(u32(9)) == b"\1" * 20
    assert {"from_endpoint", "to_endpoint", "from_overlay", "to_overlay", "ingress"} <= set(loaded.programs)
    # Another size is another map: it starts empty.
    sizes["revnat"] = 128
    assert "revnat" not in asyncio.run(load(config)).reused
    with PinnedMap(node.root / "maps" / "revnat") as fresh:
        assert (fresh.max_entries, fresh.count()) == (128, 0)


SMALL = """
#include "lib/config.h"
#include "lib/tailcall.h"

HASH_MAP(revnat, u32, u64, 64);

int ingress(struct __sk_buff *skb)
{
	return datapath_config() ? 0 : 2;
}

int from_endpoint(struct __sk_buff *skb)
{
	u32 key = skb->mark;

	if (revnat.lookup(&key))
		tailcalls.call(skb, TAIL_INGRESS);
	return 0;
}
"""
NONE = """
int dns_records(struct __sk_buff *skb)
{
	return 0;
}
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A datapath of two programs: what the loader does with it, it does with ours, for which the verifier takes 2 s."""
    folder = tmp_path / "bpf"
    for part in ("lib", "include"):
        shutil.copytree(SOURCE_DIR / part, folder / part)
    (folder / "ciliate.c").write_text(SMALL)
    (folder / "names.c").write_text(NONE)
    return folder


@pytest.fixture
def small(sources: Path, object_cache: Path) -> Iterator[LoaderConfig]:
    """To load it at a place of its own."""
    root = Path("/sys/fs/bpf/ciliate") / f"clt{os.getpid()}small"
    yield LoaderConfig(root=str(root), source_dir=str(sources), cache_dir=str(object_cache))
    drop_retired(root / "maps")
    remove_pins(root)


def map_id(pin: Path) -> int:
    fd = syscall.obj_get(pin)
    try:
        return syscall.map_info(fd).id
    finally:
        os.close(fd)


def test_loads_that_were_never_attached_leave_running_programs_their_tail_calls(small: LoaderConfig) -> None:
    def again(size: int) -> None:
        asyncio.run(load(replace(small, max_entries={"revnat": size})))  # another size makes another generation

    maps = Path(small.root) / "maps"
    again(130)
    drop_retired(maps)
    generations = [map_id(maps / "tailcalls")]
    for size in (131, 132):  # killed between loading and attaching, twice
        again(size)
        generations.append(map_id(maps / "tailcalls"))
    kept = {map_id(pin): PinnedMap(pin).lookup(u32(TailCall.TAIL_INGRESS)) for pin in maps.glob("tailcalls_old*")}
    assert sorted(kept) == sorted(generations[:-1])
    assert all(kept.values()), "an array that lost its last pin is empty: every packet would be dropped"
    drop_retired(maps)
    assert not list(maps.glob("tailcalls_old*"))
    assert PinnedMap(maps / "tailcalls").lookup(u32(TailCall.TAIL_INGRESS))


def test_what_stands_already_is_not_verified_again(small: LoaderConfig) -> None:
    root, config = Path(small.root), replace(small, max_entries={"revnat": 140})
    first = asyncio.run(load(config))
    pins = [*(root / "progs").iterdir(), *(root / "maps").iterdir()]
    inodes = {pin: pin.stat().st_ino for pin in pins}
    again = asyncio.run(load(config))
    assert {pin: pin.stat().st_ino for pin in pins} == inodes
    assert (again.programs, again.maps, again.reused) == (first.programs, first.maps, first.maps)
    # Killed in the middle: a pin is missing, or the mark is. Then everything is made anew.
    (root / "progs" / "ingress").unlink()
    asyncio.run(load(config))
    assert (root / "progs" / "ingress").exists()
    assert (root / "progs" / "from_endpoint").stat().st_ino != inodes[root / "progs" / "from_endpoint"]
    remove_marks(root)
    before = map_id(root / "maps" / "tailcalls")
    asyncio.run(load(config))
    assert map_id(root / "maps" / "tailcalls") != before
    assert asyncio.run(load(replace(config, max_entries={"revnat": 141}))).reused != first.maps
    drop_retired(root / "maps")


def test_a_source_that_does_not_compile_changes_nothing(node: Node, tmp_path: Path) -> None:
    before = {path.name: path.stat().st_ino for path in (node.root / "progs").iterdir()}
    shutil.copytree(SOURCE_DIR / "include", tmp_path / "include")
    (tmp_path / "ciliate.c").write_text("int from_endpoint(struct __sk_buff *skb) { return nonsense; }\n")
    with pytest.raises(Internal, match=r"does not compile(.|\n)*nonsense"):
        asyncio.run(load(LoaderConfig(root=str(node.root), source_dir=str(tmp_path))))
    assert {path.name: path.stat().st_ino for path in (node.root / "progs").iterdir()} == before


XDP = """
#include "lib/types.h"
{table}
int from_wire(struct xdp_md *ctx)
{{
	u32 zero = 0;
	struct thing *thing = config.lookup(&zero);

	return thing ? {verdict} : XDP_ABORTED;
}}
"""
THINGS = f"struct thing {{ u64 x[{ctypes.sizeof(DatapathConfig) // 8}]; }};"
SAME = THINGS + '\nBPF_F_TABLE("array", u32, struct thing, config, 1, 0);'


def test_units_of_other_kinds_share_maps_by_name(small: LoaderConfig, sources: Path) -> None:
    config_pin = Path(asyncio.run(load(small)).root) / "maps" / "config"
    config_map = map_id(config_pin)
    (sources / "xdp.c").write_text(XDP.format(table=SAME, verdict="XDP_PASS"))
    loaded = asyncio.run(load(small))
    assert not loaded.refused
    assert map_id(config_pin) == config_map
    fd = syscall.obj_get(loaded.program("from_wire"))
    assert syscall.prog_test_run(fd, bytes(64)).verdict == 2, "XDP_PASS: it is the map of the others, with an entry"
    os.close(fd)
    (sources / "xdp.c").unlink()
    asyncio.run(load(small))
    assert not loaded.program("from_wire").exists(), "programs that are gone are not left to be attached"


@pytest.mark.parametrize(
    ("table", "verdict", "message"),
    [
        (SAME.replace("u64 x[", "u64 x[1 + "), "0", "declares the map config otherwise"),
        (SAME, "nonsense", r"does not compile"),
        (SAME, "*(int *)(long)ctx->data", r"verifier refused from_wire"),
    ],
)
def test_an_optional_unit_that_is_refused_leaves_the_others(
    small: LoaderConfig, sources: Path, table: str, verdict: str, message: str
) -> None:
    (sources / "xdp.c").write_text(XDP.format(table=table, verdict=verdict))
    loaded = asyncio.run(load(small))
    assert list(loaded.refused) == ["xdp.c"]
    assert re.search(message, loaded.refused["xdp.c"])
    assert "from_wire" not in loaded.programs
    assert "from_endpoint" in loaded.programs


async def test_the_collector_sweeps_the_real_map(node: Node) -> None:
    now = time.monotonic_ns()
    conntrack = node.map("ct")
    for number in range(1000):
        key = CtKey(local=bytes(16), remote=number.to_bytes(16, "big"), protocol=17)
        value = CtEntry(expires_ns=now - 1 if number % 2 else now + 10**12, direction=Direction.EGRESS)
        conntrack.update(key.pack(), value.pack())
    records = []
    result = await ConntrackCollector(conntrack, records.append).sweep(now)
    assert (result.entries, result.removed) == (1000, 500)
    assert sum(len(batch) for batch in records) == 500
    assert conntrack.count() == 500
