"""One translation unit out of `bpf/`: BCC rewrites map accesses in the main file only, so our own headers are put in
place, once each, with `#line` so that the compiler still names the real file and line.

Pure but for reading the sources.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

ENTRY = "ciliate.c"
SOURCE_DIR = Path(__file__).resolve().parents[3] / "bpf"

_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
_PRAGMA_ONCE = re.compile(r"^\s*#\s*pragma\s+once")


def amalgamate(source_dir: Path, entry: str = ENTRY) -> str:
    """The text to compile. Raises FileNotFoundError for an include that is not there."""
    lines: list[str] = []
    _append(source_dir, (source_dir / entry).resolve(), set(), lines)
    return "\n".join(lines) + "\n"


def _append(root: Path, path: Path, seen: set[Path], lines: list[str]) -> None:
    if path in seen:
        return
    seen.add(path)
    name = path.relative_to(root.resolve())
    lines.append(f'#line 1 "{name}"')
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        include = _INCLUDE.match(line)
        if include:
            _append(root, (path.parent / include[1]).resolve(), seen, lines)
            lines.append(f'#line {number + 1} "{name}"')
        elif not _PRAGMA_ONCE.match(line):
            lines.append(line)


def fingerprint(text: str, *parts: str) -> str:
    """What a compiled object is filed under."""
    digest = hashlib.sha256(text.encode())
    for part in parts:
        digest.update(b"\0" + part.encode())
    return digest.hexdigest()[:32]
