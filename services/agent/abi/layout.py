"""Base class of map keys and values: a packed ctypes structure that is hashable and comparable by its bytes."""

from __future__ import annotations

import ctypes
from typing import Any, Self

Address = ctypes.c_uint8 * 16


class Struct(ctypes.Structure):
    """A C struct. Every byte is a named field: padding is explicit, as in the C headers."""

    _pack_ = 1

    def __init__(self, **fields: Any) -> None:
        """Bytes are accepted for byte arrays (`address=b"..."`)."""
        kinds = dict(self._fields_)  # type: ignore[arg-type]
        for name, value in fields.items():
            fields[name] = kinds[name](*value) if isinstance(value, bytes) else value
        super().__init__(**fields)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read a struct from exactly as many bytes as it has."""
        if len(raw) != ctypes.sizeof(cls):
            raise ValueError(f"{cls.__name__} has {ctypes.sizeof(cls)} bytes, not {len(raw)}")
        return cls.from_buffer_copy(raw)

    def pack(self) -> bytes:
        """The struct as the kernel sees it."""
        return bytes(self)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and bytes(self) == bytes(other)

    def __hash__(self) -> int:
        return hash((type(self), bytes(self)))

    def __repr__(self) -> str:
        parts = []
        for name, *_ in self._fields_:
            value = getattr(self, name)
            parts.append(f"{name}={bytes(value).hex() if isinstance(value, ctypes.Array) else value}")
        return f"{type(self).__name__}({', '.join(parts)})"


def be16(value: int) -> int:
    """A 16-bit number as a little-endian host must store it to read as network order in memory."""
    return ((value & 0xFF) << 8) | (value >> 8)
