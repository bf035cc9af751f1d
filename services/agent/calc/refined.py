"""Parts of identities: pods with equal labels that some rule tells apart all the same.

Policy is about identities, but an ipBlock can have the addresses of some replicas only, and a port name can mean other
numbers in each. Then the addresses of the identity fall into classes, by the blocks that cut it and by the numbers of
the ports that rules name. Each class gets a number that only policy look-ups see. The identity's own number is then
left for addresses that nobody has told about yet: none of the blocks has them, and they have the ports that all have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.agent.calc.maps import refined_key, u32
from services.agent.calc.numbers import StableNumbers
from services.agent.calc.table import Table
from services.model.addresses import IPAddress
from services.model.identity import REFINED_MAX, REFINED_MIN
from services.policy.peers import IpBlockPeer, Party, PortNames
from services.policy.selectors import LabelView

PortName = tuple[str, int]
Ports = frozenset[tuple[str, int, int]]
"""(name, protocol, number)"""
Signature = tuple[tuple[str, ...], tuple[tuple[str, int, int], ...]]


@dataclass(frozen=True, slots=True)
class _Extent:
    """Where an identity's addresses are: enough to know that a block cannot cut it."""

    bounds: Mapping[int, tuple[int, int]]
    """IP version -> (lowest, highest) address."""
    several_ports: bool

    def may_be_cut(self, block: IpBlockPeer) -> bool:
        low, high = self.bounds.get(block.prefix.version, (1, 0))
        if low > high or (low == high and len(self.bounds) == 1):
            return False
        return int(block.prefix.network_address) <= high and int(block.prefix.broadcast_address) >= low

    def within(self, block: IpBlockPeer) -> bool:
        """Whether the block surely has every address of its family."""
        low, high = self.bounds[block.prefix.version]
        if int(block.prefix.network_address) > low or int(block.prefix.broadcast_address) < high:
            return False
        return all(int(hole.network_address) > high or int(hole.broadcast_address) < low for hole in block.excepts)


class Refinements:
    """Divides identities by what is watched, and keeps the `refined` map's desired content."""

    def __init__(self) -> None:
        self.table = Table("refined")
        self._numbers = StableNumbers(REFINED_MIN, REFINED_MAX)
        self._blocks: set[IpBlockPeer] = set()
        self._names: dict[PortName, int] = {}
        self._extents: dict[int, _Extent] = {}
        self._parts: dict[int, dict[int, str]] = {}
        self._rows: dict[int, dict[IPAddress, int]] = {}

    def watch(self, block: IpBlockPeer) -> list[int]:
        """A rule names a block now; the identities that it may cut."""
        self._blocks.add(block)
        return [number for number, extent in self._extents.items() if extent.may_be_cut(block)]

    def unwatch(self, block: IpBlockPeer) -> list[int]:
        """No rule names a block any more; the identities that it may have cut."""
        self._blocks.discard(block)
        return [number for number, extent in self._extents.items() if extent.may_be_cut(block)]

    def watch_names(self, names: Iterable[PortName]) -> list[int]:
        """Rules for destinations use these port names; the identities that may be divided by them."""
        return self._count(names, 1)

    def unwatch_names(self, names: Iterable[PortName]) -> list[int]:
        """As many users less."""
        return self._count(names, -1)

    def _count(self, names: Iterable[PortName], by: int) -> list[int]:
        before = set(self._names)
        for name in names:
            self._names[name] = self._names.get(name, 0) + by
            if not self._names[name]:
                del self._names[name]
        if before == set(self._names):
            return []
        return [number for number, extent in self._extents.items() if extent.several_ports]

    def forget(self, number: int) -> None:
        """An identity went."""
        self._extents.pop(number, None)
        self._settle(number, {}, {})

    def divide(self, number: int, view: LabelView, ports: Mapping[IPAddress, Ports]) -> dict[int, Party]:
        """The parties of an identity with these addresses: the identity itself, and the parts it falls into."""
        addresses = sorted(ports, key=str)
        self._extents[number] = _extent(addresses, ports)
        classes: dict[Signature, list[IPAddress]] = {}
        cuts = self._cuts(self._extents[number], addresses)
        common = frozenset.intersection(*ports.values()) if ports else frozenset()
        for address in addresses:
            classes.setdefault(self._signature(address, ports[address] - common, cuts), []).append(address)
        parties = {number: Party(number, view, tuple(addresses), _port_names(common))}
        names: dict[int, str] = {}
        rows: dict[IPAddress, int] = {}
        for signature, members in sorted(classes.items()) if len(classes) > 1 else ():
            name = f"{number} {signature}"
            part = self._numbers.take(name)
            assert part is not None
            names[part] = name
            rows.update(dict.fromkeys(members, part))
            own = frozenset.intersection(*(ports[member] for member in members))
            parties[part] = Party(part, view, tuple(members), _port_names(own))
        self._settle(number, names, rows)
        return parties

    def part_of(self, number: int, address: IPAddress) -> int:
        """What policy knows an address of an identity by."""
        return self._rows.get(number, {}).get(address, number)

    def _cuts(self, extent: _Extent, addresses: list[IPAddress]) -> list[IpBlockPeer]:
        """The watched blocks that have some of the addresses and not others."""
        found = []
        for block in self._blocks:
            if not extent.may_be_cut(block):
                continue
            if extent.within(block):
                inside = sum(address.version == block.prefix.version for address in addresses)
            else:
                inside = sum(block.covers(address) for address in addresses)
            if 0 < inside < len(addresses):
                found.append(block)
        return found

    def _signature(self, address: IPAddress, own: Ports, cuts: list[IpBlockPeer]) -> Signature:
        blocks = sorted(str(block) for block in cuts if block.covers(address))
        return tuple(blocks), tuple(sorted(port for port in own if port[:2] in self._names))

    def _settle(self, number: int, names: dict[int, str], rows: dict[IPAddress, int]) -> None:
        for part, name in self._parts.pop(number, {}).items():
            if part not in names:
                self._numbers.give_back(name)
        if names:
            self._parts[number] = names
        before = self._rows.pop(number, {})
        if rows:
            self._rows[number] = rows
        for address in before.keys() - rows.keys():
            self.table.remove(refined_key(address, number))
        for address, part in rows.items():
            self.table.put(refined_key(address, number), u32(part))


def _extent(addresses: list[IPAddress], ports: Mapping[IPAddress, Ports]) -> _Extent:
    found: dict[int, list[int]] = {}
    for address in addresses:
        found.setdefault(address.version, []).append(int(address))
    bounds = {version: (min(numbers), max(numbers)) for version, numbers in found.items()}
    return _Extent(bounds, len(set(ports.values())) > 1)


def _port_names(ports: Ports) -> PortNames:
    found: dict[PortName, set[int]] = {}
    for name, protocol, number in ports:
        found.setdefault((name, protocol), set()).add(number)
    return {key: frozenset(numbers) for key, numbers in found.items()}
