"""A compiled object: instructions that name their maps, and what those maps are. Written once, loaded many times.

Because nothing in it depends on a node or on a descriptor, one object serves every node and every restart.
"""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import asdict, dataclass
from typing import Any

_LD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1
FORMAT = 1


@dataclass(frozen=True, slots=True)
class MapSpec:
    """How to create a map."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Program:
    """Instructions with holes: (instruction index, map name) for every map descriptor."""

    name: str
    instructions: bytes
    relocations: tuple[tuple[int, str], ...]

    def link(self, descriptors: dict[str, int]) -> bytes:
        """The instructions with descriptors filled in."""
        code = bytearray(self.instructions)
        for index, name in self.relocations:
            struct.pack_into("i", code, index * 8 + 4, descriptors[name])
        return bytes(code)


@dataclass(frozen=True, slots=True)
class CompiledObject:
    """All maps and programs of one compile."""

    maps: tuple[MapSpec, ...]
    programs: tuple[Program, ...]


def unlink(name: str, instructions: bytes, map_names: dict[int, str]) -> Program:
    """Find the map descriptors in a compiler's output and replace them by names."""
    relocations = []
    code = bytearray(instructions)
    index = 0
    while index * 8 < len(code):
        opcode, registers, _, immediate = struct.unpack_from("BBhi", code, index * 8)
        if opcode == _LD_IMM64:
            if registers >> 4 == _PSEUDO_MAP_FD:
                relocations.append((index, map_names[immediate]))
                struct.pack_into("i", code, index * 8 + 4, 0)
            index += 1
        index += 1
    return Program(name, bytes(code), tuple(relocations))


def dumps(compiled: CompiledObject) -> str:
    """Text form, for the cache."""
    return json.dumps(
        {
            "format": FORMAT,
            "maps": [asdict(spec) for spec in compiled.maps],
            "programs": [
                {"name": p.name, "code": base64.b64encode(p.instructions).decode(), "relocations": p.relocations}
                for p in compiled.programs
            ],
        }
    )


def loads(text: str) -> CompiledObject:
    """Inverse of `dumps`; raises ValueError for anything else."""
    try:
        raw: dict[str, Any] = json.loads(text)
        if raw["format"] != FORMAT:
            raise ValueError("another format")
        return CompiledObject(
            tuple(MapSpec(**spec) for spec in raw["maps"]),
            tuple(
                Program(p["name"], base64.b64decode(p["code"]), tuple((int(i), str(n)) for i, n in p["relocations"]))
                for p in raw["programs"]
            ),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a compiled object: {error}") from error
