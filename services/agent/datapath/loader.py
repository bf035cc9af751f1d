"""The loader child: compile (or take from the cache), create or reuse maps, verify, pin, exit.

    stdin: LoaderConfig as JSON -> stdout: Loaded as JSON, exit 0; or {"error": message}, exit 1

Run as `python -m services.agent.datapath.loader`. Nothing that is pinned changes before every program has passed the
verifier. Pins are replaced by rename, so that a reader finds the old object or the new one.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from services.agent.abi.events import LANES, lane_heads, lane_places
from services.agent.abi.tailcall import TailCall
from services.agent.datapath import syscall, units
from services.agent.datapath.bpffs import ensure_bpffs, repin, retire
from services.agent.datapath.compiled import CompiledUnit, compile_units
from services.agent.datapath.generation import Generation, remove_marks
from services.agent.datapath.loader_client import Loaded, LoaderConfig
from services.agent.datapath.maps import possible_cpus
from services.agent.datapath.objects import MapSpec, Program
from services.agent.datapath.syscall import MapType
from services.common.errors import CiliateError, Internal

TAIL_CALLS: dict[str, type[TailCall]] = {"tailcalls": TailCall}
"""Program arrays, and which program goes where."""


def open_or_create(spec: MapSpec, pin: Path) -> tuple[int, bool]:
    """A map's descriptor and whether it is the one that was pinned before: same layout and size, contents kept."""
    if spec.type != MapType.PROG_ARRAY and pin.exists():
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
    source_dir = Path(config.source_dir)
    cache_dir = Path(config.cache_dir) if config.cache_dir else None
    compiled = compile_units(units.present(source_dir, config.units), source_dir, cache_dir, ())
    compile_s = time.monotonic() - started
    root = Path(config.root)
    ensure_bpffs(root)
    for folder in ("maps", "progs", "links"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    node = _Node(root, config.max_entries)
    generation = node.generation(compiled)
    if generation is not None and generation.stands():
        found = _names(compiled)
        node.reused |= found[0]
    else:
        for each in compiled:
            node.add(each)
        node.publish(generation)
        found = set(node.maps), set(node.programs)
    return Loaded(
        root=config.root,
        programs=sorted(found[1]),
        maps=sorted(found[0]),
        reused=sorted(node.reused),
        refused=node.refused,
        cached=all(each.cached for each in compiled),
        compile_s=round(compile_s, 3),
        total_s=round(time.monotonic() - started, 3),
    )


def _names(compiled: Sequence[CompiledUnit]) -> tuple[set[str], set[str]]:
    """Of all maps and of all programs."""
    found = [each.object for each in compiled if each.object is not None]
    return {spec.name for each in found for spec in each.maps}, {prog.name for each in found for prog in each.programs}


class _Node:
    """What is being loaded for one node: descriptors by name, of which nothing is pinned before `publish`."""

    def __init__(self, root: Path, max_entries: dict[str, int]) -> None:
        self._root = root
        self._max_entries = max_entries
        self._specs: dict[str, MapSpec] = {}
        self.maps: dict[str, int] = {}
        self.programs: dict[str, int] = {}
        self.reused: set[str] = set()
        self.refused: dict[str, str] = {}

    def generation(self, compiled: Sequence[CompiledUnit]) -> Generation | None:
        """What is to stand in the end; None where a unit does not compile, which cannot be told by looking at pins."""
        maps: dict[str, MapSpec] = {}
        programs: list[tuple[Program, units.Kind]] = []
        for each in compiled:
            if each.object is None:
                return None
            maps |= {spec.name: replace(spec, max_entries=self._size(spec)) for spec in each.object.maps}
            programs += [(prog, each.unit.kind(prog.name)) for prog in each.object.programs]
        return Generation(self._root, maps, programs)

    def add(self, compiled: CompiledUnit) -> None:
        """A unit's maps and programs. Raises Internal, unless the unit is optional: then it is refused as a whole."""
        try:
            programs, specs, maps = self._load(compiled)
        except Internal as error:
            if not compiled.unit.optional:
                raise
            self.refused[compiled.unit.entry] = str(error)
            return
        self.programs |= programs
        self._specs |= specs
        self.maps |= {name: fd for name, (fd, _) in maps.items()}
        self.reused |= {name for name, (_, same) in maps.items() if same}

    def _load(self, compiled: CompiledUnit) -> tuple[dict[str, int], dict[str, MapSpec], dict[str, tuple[int, bool]]]:
        if compiled.object is None:
            raise Internal(compiled.error)
        specs, added = {}, {}
        for spec in compiled.object.maps:
            if spec.name in self.maps:
                if spec != self._specs[spec.name]:
                    raise Internal(f"{compiled.unit.entry} declares the map {spec.name} otherwise than others do")
                continue
            specs[spec.name] = spec
            sized = replace(spec, max_entries=self._size(spec))
            added[spec.name] = open_or_create(sized, self._root / "maps" / spec.name)
            if spec.name in LANES and not added[spec.name][1]:
                _set_up_lanes(spec.name, added[spec.name][0], sized.max_entries)
        descriptors = self.maps | {name: fd for name, (fd, _) in added.items()}
        for prog in compiled.object.programs:
            if prog.name in self.programs:
                raise Internal(f"{compiled.unit.entry} has a program {prog.name}, as another unit")

        def verify(prog: Program) -> int:
            return _verify(prog.name, prog.link(descriptors), compiled.unit.kind(prog.name))

        # The kernel verifies on the caller's processor; one after the other they would take twice as long.
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            verified = list(threads.map(verify, compiled.object.programs))
        return {prog.name: fd for prog, fd in zip(compiled.object.programs, verified, strict=True)}, specs, added

    def _size(self, spec: MapSpec) -> int:
        if spec.name not in LANES:
            return self._max_entries.get(spec.name, spec.max_entries)
        cpus, (record, size) = possible_cpus(), LANES[spec.name]
        return cpus * (2 + lane_places(self._max_entries.get(spec.name, size), cpus, record))

    def publish(self, generation: Generation | None) -> None:
        """Everything is verified: fill the program arrays, replace the pins."""
        maps, progs = self._root / "maps", self._root / "progs"
        remove_marks(self._root)
        for name, slots in TAIL_CALLS.items():
            if name not in self.maps:
                continue
            _fill_tail_calls(self.maps[name], slots, self.programs)
            # Old programs run until their filters are replaced, and a program array empties itself with its last pin.
            if (maps / name).exists():
                retire(maps / name)
        for name, fd in self.maps.items():
            if name not in self.reused:
                repin(fd, maps / name)
        for name, fd in self.programs.items():
            repin(fd, progs / name)
        for pin in progs.iterdir():
            if pin.name not in self.programs:
                pin.unlink()  # of an earlier version, or of a unit that this kernel refuses
        if generation is not None and not self.refused:
            generation.finish()


def _set_up_lanes(name: str, fd: int, entries: int) -> None:
    cpus = possible_cpus()
    for index, head in lane_heads(entries // cpus - 2, cpus, LANES[name][0]).items():
        syscall.map_update(fd, struct.pack("I", index), head)


def _verify(name: str, code: bytes, kind: units.Kind) -> int:
    try:
        return syscall.prog_load(name, code, kind)
    except OSError:
        try:  # again, to have the verifier say why
            return syscall.prog_load(name, code, kind, log_size=1 << 24)
        except OSError as error:
            raise Internal(str(error)) from error


def _fill_tail_calls(array: int, slots: type[TailCall], programs: dict[str, int]) -> None:
    for slot in slots:
        fd = programs.get(slot.program)
        if fd is not None:
            syscall.map_update(array, struct.pack("I", slot), struct.pack("I", fd))


def main() -> int:
    """Entry point of the child."""
    try:
        result = asdict(load(LoaderConfig(**json.load(sys.stdin))))
    except (CiliateError, OSError) as error:
        result = {"error": str(error)}
    json.dump(result, sys.stdout)
    return 1 if "error" in result else 0


if __name__ == "__main__":
    raise SystemExit(main())
