"""This thread in another network namespace, for as long as it takes to make a socket: a socket stays where it was made,
so the process itself never moves."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

from services.common.errors import Invalid

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def inside(descriptor: int) -> Iterator[None]:
    """`descriptor`: an open namespace file. Nothing may be awaited meanwhile. Raises `Invalid`."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(descriptor)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """The descriptor of a namespace file. Raises `Invalid` where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Invalid(f"netns: cannot open {path}: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise Invalid(f"netns: cannot enter: {os.strerror(ctypes.get_errno())}")
