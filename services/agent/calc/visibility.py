"""Ports of single pods whose HTTP requests are told without any policy, as annotations ask (`http_visible_pods`)."""

from __future__ import annotations

from services.agent.abi.http import HttpVisibleKey
from services.agent.abi.layout import be16
from services.agent.calc.maps import u32
from services.agent.calc.table import Table
from services.model.objects import LocalEndpoint, Pod
from services.model.visibility import Port, read_visibility

PodName = tuple[str, str]


class Visibility:
    """Keeps the map's desired content; `set_endpoint` makes count what `set_pod` has told."""

    def __init__(self) -> None:
        self.table = Table("http_visible_pods")
        self._wishes: dict[PodName, frozenset[Port]] = {}
        self._problems: dict[PodName, tuple[str, ...]] = {}
        self._keys: dict[int, set[bytes]] = {}
        self._local: dict[int, PodName] = {}

    @property
    def errors(self) -> tuple[str, ...]:
        """What is wrong with annotations of this node's pods, and whose they are."""
        names = sorted(set(self._local.values()) & self._problems.keys())
        return tuple(f"pod {'/'.join(name)}: {text}" for name in names for text in self._problems[name])

    def set_pod(self, name: PodName, pod: Pod | None) -> None:
        """A pod came, changed or went."""
        for known in (self._wishes, self._problems):
            known.pop(name, None)
        if pod is None:
            return
        ports, problems = read_visibility(pod.annotations)
        if ports:
            self._wishes[name] = ports
        if problems:
            self._problems[name] = problems

    def set_endpoint(self, number: int, endpoint: LocalEndpoint | None) -> bool:
        """An endpoint came, changed or went; whether any of its ports is visible."""
        self._local.pop(number, None)
        wanted: frozenset[Port] = frozenset()
        if endpoint is not None:
            self._local[number] = (endpoint.namespace, endpoint.pod)
            wanted = self._wishes.get(self._local[number], wanted)
        keys = {
            HttpVisibleKey(endpoint=number, port=be16(port), direction=direction).pack() for direction, port in wanted
        }
        for key in self._keys.pop(number, set()) - keys:
            self.table.remove(key)
        for key in keys:
            self.table.put(key, u32(1))
        if keys:
            self._keys[number] = keys
        return bool(keys)
