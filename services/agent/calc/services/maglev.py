"""Maglev look-up tables (Eisenbud et al., NSDI 2016): every node fills the same table from the same backends and seed,
and a backend that comes or goes moves few connections of others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from services.agent.abi.lb import MAGLEV_PIECE


def fill(names: Sequence[bytes], size: int, seed: int) -> list[int]:
    """For each of `size` entries (a prime) the index of its backend. `names` must come in the same order everywhere."""
    if len(names) < 2:
        return [0] * size
    starts, steps = _permutations(names, size, seed)
    table = [-1] * size
    left = size
    while True:
        for index, step in enumerate(steps):
            at = starts[index]
            while table[at] >= 0:
                at += step
                if at >= size:
                    at -= size
            table[at] = index
            left -= 1
            if not left:
                return table
            at += step
            starts[index] = at if at < size else at - size


def _permutations(names: Sequence[bytes], size: int, seed: int) -> tuple[list[int], list[int]]:
    key = seed.to_bytes(8, "big")
    digests = [hashlib.blake2b(name, digest_size=16, key=key).digest() for name in names]
    starts = [int.from_bytes(digest[:8], "big") % size for digest in digests]
    return starts, [int.from_bytes(digest[8:], "big") % (size - 1) + 1 for digest in digests]


def pieces(table: Sequence[int], slots: Sequence[int]) -> list[bytes]:
    """The kernel's form: slots in pieces of equal length. `slots[i]` is where backend i is."""
    flat = b"".join([slots[index].to_bytes(2, "little") for index in table])
    length = 2 * MAGLEV_PIECE
    return [flat[at : at + length].ljust(length, b"\0") for at in range(0, len(flat), length)]
