"""The compiler: the one module that imports bcc. Runs in children of the loader only: LLVM stays mapped, 125 MB.

    python -m services.agent.datapath.bcc_backend SOURCE_DIR CFLAG...
    stdin: amalgamated source -> stdout: the compiled object as text, exit 0; or the error, exit 1

BCC compiles and creates throw-away maps; we keep the instructions and what the maps are like. Loading is ours.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from services.agent.datapath.objects import CompiledObject, MapSpec, Program, dumps, unlink
from services.agent.datapath.syscall import MapType
from services.common.errors import Internal

STORES_IN_ORDER = frozenset({"x86_64", "i686"})
"""Machines whose CPUs see the stores of another one in the order in which they were made, and load in order: there a
lock is given back without an atomic operation."""


def compile_text(text: str, source_dir: Path, cflags: tuple[str, ...] = ()) -> CompiledObject:
    """Compile an amalgamated source. Compiler messages go to standard error; raises Internal."""
    with tempfile.TemporaryDirectory(prefix="ciliate-bpf-") as tree:
        _kernel_tree(Path(tree), source_dir)
        # BCC reads this at compile time; it spares us the kernel headers.
        os.environ["BCC_KERNEL_SOURCE"] = tree
        from bcc import BPF, lib

        flags = ["-w", "-D__LINUX_BPF_H__", f"-I{tree}/include", "-I/usr/include", f"-I/usr/include/{_triplet()}"]
        if platform.machine() in STORES_IN_ORDER:
            flags.append("-DIN_ORDER")
        try:
            module = BPF(text=text, cflags=[*flags, *cflags])
        except Exception as error:  # BCC raises nothing more specific
            raise Internal(f"the datapath does not compile: {error} (messages above)") from error
        return _extract(lib, module.module)


def _triplet() -> str:
    return f"{platform.machine()}-linux-gnu"


def _kernel_tree(tree: Path, source_dir: Path) -> None:
    """The few files that BCC expects of a kernel source (see bpf/include)."""
    include = tree / "include"
    (include / "uapi").mkdir(parents=True)
    for name in ("linux", "asm"):
        (include / name).symlink_to(source_dir.resolve() / "include" / name)
    (include / "uapi" / "linux").symlink_to("/usr/include/linux")
    (include / "uapi" / "asm").symlink_to(f"/usr/include/{_triplet()}/asm")


def _extract(lib: Any, module: Any) -> CompiledObject:
    # Not declared in BCC's own bindings.
    lib.bpf_table_name.restype = ctypes.c_char_p
    for function in (lib.bpf_table_key_size_id, lib.bpf_table_leaf_size_id):
        function.restype = ctypes.c_size_t
    for function in (lib.bpf_table_name, lib.bpf_table_key_size_id, lib.bpf_table_leaf_size_id):
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    specs, names = [], {}
    for i in range(lib.bpf_num_tables(module)):
        name = lib.bpf_table_name(module, i).decode()
        names[lib.bpf_table_fd(module, name.encode())] = name
        kind = lib.bpf_table_type_id(module, i)
        ring = kind == MapType.RINGBUF
        entries = lib.bpf_table_max_entries_id(module, i)
        specs.append(
            MapSpec(
                name=name,
                type=kind,
                key_size=0 if ring else lib.bpf_table_key_size_id(module, i),
                value_size=0 if ring else lib.bpf_table_leaf_size_id(module, i),
                max_entries=entries,  # of a ring: bytes
                flags=lib.bpf_table_flags_id(module, i),
            )
        )
    programs: list[Program] = []
    for i in range(lib.bpf_num_functions(module)):
        name = lib.bpf_function_name(module, i)
        size = lib.bpf_function_size(module, name)
        code = ctypes.string_at(lib.bpf_function_start(module, name), size)
        programs.append(unlink(name.decode(), code, names))
    return CompiledObject(tuple(specs), tuple(programs))


def main() -> int:
    """Entry point of the child."""
    # The compiler may print to standard output as it likes; the answer goes where it cannot.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        text, status = dumps(compile_text(sys.stdin.read(), Path(sys.argv[1]), tuple(sys.argv[2:]))), 0
    except Internal as error:
        text, status = str(error), 1
    with answer:
        answer.write(text)
    return status


if __name__ == "__main__":
    # BCC's tear-down of maps and LLVM takes longer than everything else: leave at once, the answer is given.
    os._exit(main())
