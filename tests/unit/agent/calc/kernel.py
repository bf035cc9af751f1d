"""The kernel's maps in a dozen lines: tests ask what happens to a packet, not which entries were written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.agent.abi.endpoints import HOST_ENDPOINT, EndpointFlags, EndpointInfo
from services.agent.abi.ipcache import IpcacheKey, RemoteEndpointInfo
from services.agent.abi.layout import be16
from services.agent.abi.lb import Backend, BackendKey, ServiceInfo, ServiceKey
from services.agent.abi.policy import FIXED_BITS, PolicyEntry, PolicyFlags, PolicyKey
from services.agent.calc.engine import Engine
from services.agent.calc.maps import MAP_NAMES, Change, HttpRulesets, MapName, Put, Remove, refined_key
from services.model.addresses import IPAddress, to_bytes
from services.model.verdict import Direction
from services.policy.l7 import HttpRule

Verdict = tuple[str, tuple[HttpRule, ...], int]
"""('allow' | 'deny' | 'drop', HTTP rules that requests must meet, rule id)"""


class Kernel:
    """Applies changes one by one and answers like `bpf/lib/policy.h`."""

    def __init__(self) -> None:
        self.maps: dict[MapName, dict[bytes, bytes]] = {name: {} for name in MAP_NAMES}
        self.rulesets: Mapping[int, tuple[HttpRule, ...]] = {}
        self._tries: dict[tuple[int, int, int], list[tuple[PolicyKey, PolicyEntry]]] | None = None

    def apply(self, changes: Iterable[Change]) -> None:
        for change in changes:
            match change:
                case Put(map=name, key=key, value=value):
                    self.maps[name][key] = value
                case Remove(map=name, key=key):
                    self.maps[name].pop(key, None)
                case HttpRulesets(rulesets=rulesets):
                    self.rulesets = rulesets
        self._tries = None

    @classmethod
    def of(cls, engine: Engine) -> Kernel:
        """The maps as the engine wants them to be."""
        kernel = cls()
        kernel.maps = {name: dict(content) for name, content in engine.desired().items()}
        kernel.rulesets = engine.rulesets()
        return kernel

    def endpoint(self, number: int) -> EndpointInfo | None:
        raw = self.maps["endpoints"].get(number.to_bytes(4, "little"))
        return EndpointInfo.unpack(raw) if raw is not None else None

    def identity(self, address: IPAddress) -> int:
        packed = int.from_bytes(to_bytes(address), "big")
        best, found = -1, 0
        for raw, value in self.maps["ipcache"].items():
            key = IpcacheKey.unpack(raw)
            length = int(key.prefixlen)
            if length > best and (packed ^ int.from_bytes(bytes(key.address), "big")) >> (128 - length) == 0:
                best, found = length, int(RemoteEndpointInfo.unpack(value).identity)
        return found

    def refine(self, info: EndpointInfo, direction: Direction, identity: int, address: IPAddress | None) -> int:
        """What an endpoint's policy knows an address by."""
        flag = EndpointFlags.REFINE_INGRESS if direction == Direction.INGRESS else EndpointFlags.REFINE_EGRESS
        if address is None or not info.flags & flag:
            return identity
        part = self.maps["refined"].get(refined_key(address, identity))
        return identity if part is None else int.from_bytes(part, "little")

    def verdict(
        self,
        endpoint: int,
        direction: Direction,
        peer: int,
        protocol: int,
        port: int,
        address: IPAddress | None = None,
    ) -> Verdict:
        """What the endpoint's policy says about a packet from or to an identity, and the address that has it."""
        info = self.endpoint(endpoint)
        if info is None:
            # The node is an endpoint while policies select it; a pod without an entry speaks to nobody.
            return "allow" if endpoint == HOST_ENDPOINT else "drop", (), 0
        peer = self.refine(info, direction, peer, address)
        mine = self._longest(int(info.policy_id), direction, peer, protocol, port)
        common = self._longest(int(info.policy_id), direction, 0, protocol, port)
        if mine is None or (common is not None and _rank(common, False) > _rank(mine, True)):
            mine = common
        if mine is None:
            return "drop", (), 0
        rule_id = int(mine.rule_id)
        if mine.flags & PolicyFlags.DENY:
            return "deny", (), rule_id
        # A rule set that is not in the tables would refuse everything: a KeyError here is a bug in the sequence.
        return "allow", self.rulesets[mine.l7_ruleset] if mine.l7_ruleset else (), rule_id

    def backends(self, address: IPAddress, port: int, protocol: int) -> list[tuple[bytes, int]] | None:
        """The backends of a frontend, None where there is no such frontend."""
        raw = self.maps["services"].get(
            ServiceKey(address=to_bytes(address), port=be16(port), protocol=protocol, scope=0).pack()
        )
        if raw is None:
            return None
        info = ServiceInfo.unpack(raw)
        slots = [
            Backend.unpack(self.maps["backends"][BackendKey(service_id=info.service_id, slot=slot).pack()])
            for slot in range(info.backend_count)
        ]
        return [(bytes(backend.address), be16(backend.port)) for backend in slots]

    def _longest(self, policy_id: int, direction: int, peer: int, protocol: int, port: int) -> PolicyEntry | None:
        if self._tries is None:
            self._tries = {}
            for raw, value in self.maps["policy"].items():
                key = PolicyKey.unpack(raw)
                fixed = (int(key.policy_id), int(key.direction), int(key.identity))
                self._tries.setdefault(fixed, []).append((key, PolicyEntry.unpack(value)))
        wanted = protocol << 16 | port
        fitting = [
            (int(key.prefixlen), entry)
            for key, entry in self._tries.get((policy_id, int(direction), peer), ())
            if (wanted ^ (key.protocol << 16 | be16(key.port))) >> (24 - (int(key.prefixlen) - FIXED_BITS)) == 0
        ]
        return max(fitting, key=lambda pair: pair[0], default=(0, None))[1]


def _rank(entry: PolicyEntry, names_peer: bool) -> tuple[int, int, bool]:
    return int(entry.precedence), int(entry.prefix_bits), names_peer
