"""Compiled units, from the cache or from the compiler: a child process for each, side by side.

The cache is a folder of objects named by the hash of all that went into them. Agents that start together (two nodes of
a sandbox) share one compilation: the second waits for the first.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from services.agent.datapath import objects, program
from services.agent.datapath.objects import CompiledObject
from services.agent.datapath.units import Unit
from services.common.errors import Internal


@dataclass(frozen=True, slots=True)
class CompiledUnit:
    """A unit, its object or why there is none, and whether nothing had to be compiled."""

    unit: Unit
    object: CompiledObject | None
    cached: bool = False
    error: str = ""


def compile_units(
    units: Sequence[Unit], source_dir: Path, cache_dir: Path | None, cflags: tuple[str, ...]
) -> list[CompiledUnit]:
    """All units, in their order. The compiler's messages go to standard error."""
    with ThreadPoolExecutor(max_workers=len(units)) as threads:
        return list(threads.map(lambda unit: _compile_unit(unit, source_dir, cache_dir, cflags), units))


def _compile_unit(unit: Unit, source_dir: Path, cache_dir: Path | None, cflags: tuple[str, ...]) -> CompiledUnit:
    try:
        compiled, cached = _cached(unit, source_dir, cache_dir, cflags)
    except (Internal, OSError) as error:
        return CompiledUnit(unit, None, error=str(error))
    return CompiledUnit(unit, compiled, cached)


def _cached(
    unit: Unit, source_dir: Path, cache_dir: Path | None, cflags: tuple[str, ...]
) -> tuple[CompiledObject, bool]:
    text = program.amalgamate(source_dir, unit.entry)
    if cache_dir is None:
        return objects.loads(_compile(text, source_dir, cflags)), False
    key = program.fingerprint(text, *cflags, os.uname().machine, str(objects.FORMAT))
    path = cache_dir / f"{key}.json"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with open(cache_dir / f".lock-{unit.entry}", "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            try:
                return objects.loads(path.read_text()), True
            except ValueError:
                path.unlink()  # cut short by a crash: compile again
        compiled = _compile(text, source_dir, cflags)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(compiled)
        temporary.replace(path)
    return objects.loads(compiled), False


def _compile(text: str, source_dir: Path, cflags: tuple[str, ...]) -> str:
    """The object's text form, by a child: LLVM is large, and a crash of the compiler is an error like others."""
    command = [sys.executable, "-m", "services.agent.datapath.bcc_backend", str(source_dir), *cflags]
    child = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=False)
    if child.returncode:
        raise Internal(child.stdout.strip() or f"the compiler died (exit {child.returncode})")
    return child.stdout
