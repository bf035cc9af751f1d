"""This thread in another network namespace, for as long as it takes to make a socket: a socket stays where it was made,
so the process itself never moves."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterator

from services.common.errors import Invalid

_CLONE_NEWNET = 0x40000000
_SO_NETNS_COOKIE = 71
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


def netns_cookie() -> int:
    """The number of this thread's network namespace, as programs see it; 0 where the kernel does not tell."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
        except OSError:
            return 0


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise Invalid(f"netns: cannot enter: {os.strerror(ctypes.get_errno())}")
