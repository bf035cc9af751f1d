"""What the kernel has learned of names, read from its maps; and addresses explained by their names."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from services.agent.abi.names import CONCERNS, FqdnIp, FqdnName, name_hash
from services.agent.calc.names import compile_selectors
from services.agent.learned import LearnedNames
from services.agent.server.questions import named
from services.model.addresses import to_bytes
from services.model.labels import SOURCE_RESERVED, Label, Labels
from services.policy.peers import FqdnPeer, Party
from services.policy.selectors import LabelView

SITE = ipaddress.ip_address("203.0.113.9")


class FakeMap(dict[bytes, bytes]):
    def lookup(self, key: bytes) -> bytes | None:
        return self.get(key)

    def items(self) -> Iterable[tuple[bytes, bytes]]:  # type: ignore[override]
        return list(super().items())


def learned(*names: tuple[str, int]) -> LearnedNames:
    """One address with these names and when they end."""
    ip, maps = FqdnIp(), {"fqdn_ips": FakeMap(), "fqdn_names": FakeMap()}
    for place, (name, expires) in enumerate(names):
        raw = name.encode("latin-1")
        number = name_hash(raw, 7)
        ip.slots[place].name, ip.slots[place].expires_ns = number, expires | CONCERNS
        entry = FqdnName(ttl=30, length=len(raw), identity=5, name=raw.ljust(256, b"\0"))
        maps["fqdn_names"][number.to_bytes(8, "little")] = entry.pack()
    maps["fqdn_ips"][to_bytes(SITE)] = ip.pack()
    return LearnedNames(maps)


def test_names_of_an_address() -> None:
    found = learned(("b.test.", 10), ("a.test.", 30), ("evil\x1b.test.", 30))
    assert found.names_of(to_bytes(SITE)) == ("a.test", "b.test", "evil%1B.test")
    assert found.open_names(to_bytes(SITE), 20) == ("a.test.", "evil%1B.test.")
    assert found.names_of(bytes(16)) == found.open_names(bytes(16)) == ()
    assert [(each.name, each.address, each.ttl, each.left) for each in found.all(20)][:2] == [
        ("a.test.", SITE, 30, 1e-8),
        ("b.test.", SITE, 30, -1e-8),
    ]


def test_an_address_is_explained_by_its_names() -> None:
    world = Party(-1, LabelView(Labels([Label(SOURCE_RESERVED, "world-ipv4")])))
    rules = SimpleNamespace(fqdn=compile_selectors(["*.test", "other"]))
    known: Any = SimpleNamespace(
        learned=learned(("a.test.", 1 << 62)), engine=SimpleNamespace(name_rules=lambda: rules)
    )
    party = named(known, world, ipaddress.ip_network("203.0.113.9/32"))
    assert FqdnPeer("*.test").matches(party)
    assert not FqdnPeer("other").matches(party)
    assert party.view.value(SOURCE_RESERVED, "world-ipv4") is not None
    for prefix in ("203.0.113.0/24", "203.0.113.10/32"):
        assert named(known, world, ipaddress.ip_network(prefix)) == world
