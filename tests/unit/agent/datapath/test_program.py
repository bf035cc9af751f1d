"""One translation unit: everything once, and compiler messages that name real places."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from services.agent.datapath import objects
from services.agent.datapath.objects import CompiledObject, MapSpec
from services.agent.datapath.program import SOURCE_DIR, amalgamate, fingerprint


def test_headers_come_once_with_their_line_numbers(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a.h").write_text('#pragma once\n#include "b.h"\nint a;\n')
    (tmp_path / "lib" / "b.h").write_text("#pragma once\nint b;\n")
    (tmp_path / "ciliate.c").write_text('#include <x.h>\n#include "lib/b.h"\n#include "lib/a.h"\nint main;\n')
    assert amalgamate(tmp_path).splitlines() == [
        '#line 1 "ciliate.c"',
        "#include <x.h>",
        '#line 1 "lib/b.h"',
        "int b;",
        '#line 3 "ciliate.c"',
        '#line 1 "lib/a.h"',
        '#line 3 "lib/a.h"',
        "int a;",
        '#line 4 "ciliate.c"',
        "int main;",
    ]


def test_line_numbers_are_true_in_the_real_sources() -> None:
    lines: dict[str, list[str]] = {}
    name, number = "", 0
    for line in amalgamate(SOURCE_DIR).splitlines():
        marker = re.match(r'#line (\d+) "(.+)"', line)
        if marker:
            name, number = marker[2], int(marker[1])
            lines.setdefault(name, (SOURCE_DIR / name).read_text().splitlines())
            continue
        # `#pragma once` is left out, which moves a header's text by one line until the next marker.
        assert line in lines[name][number - 1 : number + 1], (name, number)
        number += 1


def test_a_missing_header_is_named(tmp_path: Path) -> None:
    (tmp_path / "ciliate.c").write_text('#include "lib/none.h"\n')
    with pytest.raises(FileNotFoundError, match=r"none\.h"):
        amalgamate(tmp_path)


def test_fingerprint_sees_every_part() -> None:
    assert len({fingerprint("x"), fingerprint("x", ""), fingerprint("x", "-Da"), fingerprint("y", "-Da")}) == 4


def _insn(opcode: int, registers: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", opcode, registers, 0, immediate)


def test_descriptors_become_names_and_descriptors_again() -> None:
    load = _insn(0x18, 0x11, 42) + _insn(0)
    constant = _insn(0x18, 0x01, 42) + _insn(0)  # a 64-bit number that happens to be 42
    program = objects.unlink("p", constant + load + _insn(0x95), {42: "ct"})
    assert program.relocations == ((2, "ct"),)
    linked = program.link({"ct": 7})
    assert struct.unpack_from("<i", linked, 2 * 8 + 4) == (7,)
    assert struct.unpack_from("<i", linked, 4) == (42,)


def test_objects_survive_the_cache() -> None:
    program = objects.unlink("p", _insn(0x18, 0x11, 3) + _insn(0) + _insn(0x95), {3: "ct"})
    compiled = CompiledObject((MapSpec("ct", 9, 40, 128, 1024, 2),), (program,))
    assert objects.loads(objects.dumps(compiled)) == compiled
    for damaged in ("", "{}", '{"format": 1}', '{"format": 99, "maps": [], "programs": []}'):
        with pytest.raises(ValueError, match=r"\w"):
            objects.loads(damaged)
