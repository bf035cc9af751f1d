"""The agent's side of the loader child: start it, feed it, read its answer. LLVM never enters this process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from services.agent.datapath.program import SOURCE_DIR
from services.common.errors import Internal, Unavailable


@dataclass(frozen=True, slots=True)
class LoaderConfig:
    """What the child needs to know."""

    root: str
    """Where to pin: `/sys/fs/bpf/ciliate/<node>`."""
    source_dir: str = str(SOURCE_DIR)
    cache_dir: str = ""
    """Compiled objects by source hash; empty = compile every time (about a second)."""
    units: list[str] = field(default_factory=list)
    """Units that are loaded on demand."""
    max_entries: dict[str, int] = field(default_factory=dict)
    """Map name -> size, where it differs from the header's."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is pinned now."""

    root: str
    programs: list[str]
    maps: list[str]
    reused: list[str]
    """Maps whose contents were kept."""
    refused: dict[str, str]
    """Optional units that could not be loaded, and why."""
    cached: bool
    """Nothing had to be compiled."""
    compile_s: float
    total_s: float

    def program(self, name: str) -> Path:
        """Pin of a program."""
        return Path(self.root) / "progs" / name

    def map(self, name: str) -> Path:
        """Pin of a map."""
        return Path(self.root) / "maps" / name


async def load(config: LoaderConfig, timeout_s: float = 180.0) -> Loaded:
    """Compile, load and pin in a child. Raises Internal with the compiler's or verifier's words, Unavailable when the
    child hangs or dies without an answer. On error everything pinned is as it was."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SOURCE_DIR.parent), os.environ.get("PYTHONPATH", "")]),
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.agent.datapath.loader",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await child.communicate(json.dumps(asdict(config)).encode())
    except TimeoutError as error:
        raise Unavailable(f"the datapath loader did not finish within {timeout_s:g} s") from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    messages = err.decode(errors="replace").strip()
    try:
        answer = json.loads(out)
    except ValueError as error:
        raise Unavailable(f"the datapath loader died (exit {child.returncode}): {messages[-2000:]}") from error
    if "error" in answer:
        raise Internal("\n".join(part for part in (answer["error"], messages[-4000:]) if part))
    return Loaded(**answer)
