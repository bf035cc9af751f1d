"""A map's desired content that remembers what changed since it was last asked."""

from __future__ import annotations

from collections.abc import Mapping

from services.agent.calc.maps import Change, MapName, Put, Remove


class Table:
    """Desired key -> value bytes of one map."""

    def __init__(self, name: MapName) -> None:
        self._name = name
        self._desired: dict[bytes, bytes] = {}
        self._before: dict[bytes, bytes | None] = {}

    @property
    def desired(self) -> Mapping[bytes, bytes]:
        """Everything that the map should hold."""
        return self._desired

    def put(self, key: bytes, value: bytes) -> None:
        """The map shall hold this."""
        old = self._desired.get(key)
        if old != value:
            self._before.setdefault(key, old)
            self._desired[key] = value

    def remove(self, key: bytes) -> None:
        """The map shall not hold this key; absent is fine."""
        old = self._desired.pop(key, None)
        if old is not None:
            self._before.setdefault(key, old)

    def take(self) -> tuple[list[Change], list[Change]]:
        """(puts, removals) since the last call."""
        puts: list[Change] = []
        removals: list[Change] = []
        for key, old in self._before.items():
            new = self._desired.get(key)
            if new is None:
                if old is not None:
                    removals.append(Remove(self._name, key))
            elif new != old:
                puts.append(Put(self._name, key, new))
        self._before = {}
        return puts, removals
