"""What was loaded for one node serves a later one: verifying all programs takes a processor 2.4 s, emptying maps 30 ms.

Only what is as it was when it was new goes on: the same pins, nothing linked. The loader then finds that what it would
make stands already. The rest is thrown away, and all of it at the end.
"""

from __future__ import annotations

import atexit
import itertools
import mmap
import os
import struct
from pathlib import Path

from services.agent.abi.events import LANES, lane_heads
from services.agent.datapath.bpffs import remove_pins
from services.agent.datapath.maps import PinnedMap, possible_cpus
from services.agent.datapath.syscall import MapType

_PLACE = Path("/sys/fs/bpf/ciliate")
_serial = itertools.count()
_idle: dict[str, list[Path]] = {}
_new: dict[Path, dict[Path, int]] = {}
"""Pins by root, each with its inode."""


def take(kind: str, root: Path) -> None:
    """Put at `root` what nobody uses any more, if there is any of that kind (map sizes, units), and empty its maps."""
    if found := _idle.get(kind):
        root.parent.mkdir(parents=True, exist_ok=True)
        found.pop().rename(root)
        _empty(root / "maps")


def note(root: Path) -> None:
    """Remember what is pinned now: it has just been loaded."""
    _new[root] = _pins(root)


def give(kind: str, root: Path) -> None:
    """Keep what nobody uses any more, or take it away. Nothing may run its programs."""
    if _new.pop(root, None) != _pins(root):
        remove_pins(root)
        return
    place = _PLACE / f"idle-{os.getpid()}-{next(_serial)}"
    root.rename(place)
    _idle.setdefault(kind, []).append(place)


@atexit.register
def drop() -> None:
    """Nothing stays."""
    for places in _idle.values():
        while places:
            remove_pins(places.pop())


def _pins(root: Path) -> dict[Path, int]:
    return {path.relative_to(root): path.stat().st_ino for path in root.rglob("*")}


def _empty(maps: Path) -> None:
    for pin in maps.iterdir():
        with PinnedMap(pin) as found:
            match found.type:
                case MapType.PROG_ARRAY:
                    continue
                case MapType.RINGBUF:
                    _drain(found)
                case MapType.ARRAY | MapType.PERCPU_ARRAY:
                    found.delete_batch(struct.pack("I", index) for index in range(found.max_entries))
                case _:
                    found.delete_batch([key for key, _ in found.items()])
            if found.name in LANES:
                _set_up_lanes(found)


def _set_up_lanes(lanes: PinnedMap) -> None:
    """As the loader does."""
    cpus = possible_cpus()
    for index, head in lane_heads(lanes.max_entries // cpus - 2, cpus, LANES[lanes.name][0]).items():
        lanes.update(struct.pack("I", index), head)


def _drain(ring: PinnedMap) -> None:
    """Everything counts as read: the kernel's position becomes the reader's."""
    written = mmap.mmap(ring.fd, mmap.PAGESIZE, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)
    taken = mmap.mmap(ring.fd, mmap.PAGESIZE)
    with written, taken:
        taken[:8] = written[:8]
