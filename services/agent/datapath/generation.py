"""Whether the very programs that an agent would load are pinned already: verifying them takes most of its start.

A pinned set has a mark, an empty folder named by the hash of all that it was made of: instructions, map layouts and
sizes, kernel. The mark goes before the first pin of another set comes, and comes after the last one; so what stands
is whole, whenever somebody was killed. After a boot there is neither mark nor pin.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from services.agent.datapath.objects import MapSpec, Program

MARKS = "generation"


class Generation:
    """Of the node whose pins are below `root`. `maps` have their final sizes."""

    def __init__(self, root: Path, maps: Mapping[str, MapSpec], programs: Sequence[tuple[Program, object]]) -> None:
        self._root, self._folder = root, root / MARKS
        self._pins = [root / "maps" / name for name in maps] + [root / "progs" / each.name for each, _ in programs]
        self._mark = self._folder / _fingerprint(maps.values(), programs)

    def stands(self) -> bool:
        """All of it is there."""
        return self._mark.is_dir() and all(pin.exists() for pin in self._pins)

    def finish(self) -> None:
        """Every pin is of this generation."""
        self._mark.mkdir(parents=True, exist_ok=True)


def remove_marks(root: Path) -> None:
    """Forget what stood."""
    folder = root / MARKS
    if folder.is_dir():
        for mark in folder.iterdir():
            mark.rmdir()
        folder.rmdir()


def _fingerprint(maps: Iterable[MapSpec], programs: Iterable[tuple[Program, object]]) -> str:
    found = hashlib.sha256(os.uname().release.encode())
    for spec in sorted(maps, key=lambda spec: spec.name):
        found.update(repr(spec).encode())
    for program, kind in sorted(programs, key=lambda pair: pair[0].name):
        found.update(repr((program.name, kind, program.relocations)).encode())
        found.update(program.instructions)
    return found.hexdigest()
