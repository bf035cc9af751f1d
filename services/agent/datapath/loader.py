"""The loader child: compile (or take from the cache), create or reuse maps, verify, pin, exit.

    stdin: LoaderConfig as JSON -> stdout: Loaded as JSON, exit 0; or {"error": message}, exit 1

Run as `python -m services.agent.datapath.loader`. Nothing that is pinned changes before every program has passed the
verifier. Pins are replaced by rename, so that a reader finds the old object or the new one.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import sys
import time
from dataclasses import asdict
from pathlib import Path

from services.agent.abi.tailcall import TailCall
from services.agent.datapath import objects, program, syscall
from services.agent.datapath.bpffs import ensure_bpffs, repin, retire
from services.agent.datapath.loader_client import Loaded, LoaderConfig
from services.agent.datapath.objects import CompiledObject, MapSpec
from services.common.errors import CiliateError, Internal

TAILCALLS = "tailcalls"
CT_FLAGS = 2
"""BPF_F_NO_COMMON_LRU: every CPU evicts from a list of its own. Inserting into a full map costs 200-430 ns instead of
290-620 (measured); the price is that a CPU can use only its share of the entries."""


def compile_cached(config: LoaderConfig) -> tuple[CompiledObject, bool]:
    """The compiled object and whether it came from the cache."""
    source_dir = Path(config.source_dir)
    text = program.amalgamate(source_dir)
    cflags = (f"-DCT_MAP_FLAGS={CT_FLAGS}",)
    if not config.cache_dir:
        return _compile(text, source_dir, cflags), False
    key = program.fingerprint(text, *cflags, os.uname().machine, str(objects.FORMAT))
    path = Path(config.cache_dir) / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Agents that start together (two nodes of a sandbox) share one compilation: the second waits for the first.
    with open(path.parent / ".lock", "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            try:
                return objects.loads(path.read_text()), True
            except ValueError:
                path.unlink()  # cut short by a crash: compile again
        compiled = _compile(text, source_dir, cflags)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(objects.dumps(compiled))
        temporary.replace(path)
    return compiled, False


def _compile(text: str, source_dir: Path, cflags: tuple[str, ...]) -> CompiledObject:
    from services.agent.datapath.bcc_backend import compile_text

    return compile_text(text, source_dir, cflags)


def open_or_create(spec: MapSpec, pin: Path) -> tuple[int, bool]:
    """A map's descriptor and whether it is the one that was pinned before: same layout and size, contents kept."""
    if spec.name != TAILCALLS and pin.exists():
        fd = syscall.obj_get(pin)
        info = syscall.map_info(fd)
        found = (info.type, info.key_size, info.value_size, info.max_entries, info.flags)
        if found == (spec.type, spec.key_size, spec.value_size, spec.max_entries, spec.flags):
            return fd, True
        os.close(fd)
    fd = syscall.map_create(spec.type, spec.key_size, spec.value_size, spec.max_entries, spec.flags, spec.name)
    return fd, False


def load(config: LoaderConfig) -> Loaded:
    """Everything the child does; raises CiliateError or OSError with nothing replaced."""
    started = time.monotonic()
    compiled, cached = compile_cached(config)
    compile_s = time.monotonic() - started
    root = Path(config.root)
    ensure_bpffs(root)
    maps, progs = root / "maps", root / "progs"
    maps.mkdir(parents=True, exist_ok=True)
    progs.mkdir(parents=True, exist_ok=True)
    descriptors: dict[str, int] = {}
    reused = []
    for spec in compiled.maps:
        sized = MapSpec(**{**asdict(spec), "max_entries": config.max_entries.get(spec.name, spec.max_entries)})
        descriptors[spec.name], same = open_or_create(sized, maps / spec.name)
        if same:
            reused.append(spec.name)
    programs = _verify(compiled, descriptors)
    _fill_tail_calls(descriptors[TAILCALLS], programs)
    # Old programs run until their filters are replaced, and a program array empties itself with its last pin.
    if (maps / TAILCALLS).exists():
        retire(maps / TAILCALLS)
    for name, fd in descriptors.items():
        if name not in reused:
            repin(fd, maps / name)
    for name, fd in programs.items():
        repin(fd, progs / name)
    return Loaded(
        root=config.root,
        programs=sorted(programs),
        maps=sorted(descriptors),
        reused=sorted(reused),
        cached=cached,
        compile_s=round(compile_s, 3),
        total_s=round(time.monotonic() - started, 3),
    )


def _verify(compiled: CompiledObject, descriptors: dict[str, int]) -> dict[str, int]:
    loaded: dict[str, int] = {}
    for prog in compiled.programs:
        code = prog.link(descriptors)
        try:
            loaded[prog.name] = syscall.prog_load(prog.name, code)
        except OSError:
            try:  # again, to have the verifier say why
                syscall.prog_load(prog.name, code, log_size=1 << 24)
            except OSError as error:
                raise Internal(str(error)) from error
            raise
    return loaded


def _fill_tail_calls(array: int, programs: dict[str, int]) -> None:
    for slot in TailCall:
        fd = programs.get(slot.program)
        if fd is not None:
            syscall.map_update(array, struct.pack("I", slot), struct.pack("I", fd))


def main() -> int:
    """Entry point of the child."""
    # The compiler may print to standard output as it likes; the answer goes where it cannot.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        result = asdict(load(LoaderConfig(**json.load(sys.stdin))))
    except (CiliateError, OSError) as error:
        result = {"error": str(error)}
    with answer:
        json.dump(result, answer)
    return 1 if "error" in result else 0


if __name__ == "__main__":
    # BCC's tear-down of maps and LLVM takes longer than everything else: leave at once, the pins are in place.
    os._exit(main())
