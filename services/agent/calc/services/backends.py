"""Which endpoints a new connection may get (policy-semantics 8.2 - 8.4). Pure functions of slices and node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from services.agent.calc.services.options import NodeFacts
from services.agent.calc.services.problems import Problem, ProblemKind
from services.model.addresses import IPAddress, to_bytes
from services.model.services import EndpointSlice, ServicePort, SliceEndpoint


class State(StrEnum):
    """An endpoint's conditions in one word."""

    ACTIVE = "active"
    TERMINATING = "terminating"
    """Still serves: used only where nobody is active."""
    LEAVING = "leaving"
    """Terminates and serves nobody new."""
    MAINTENANCE = "maintenance"


_RANK = {State.ACTIVE: 0, State.TERMINATING: 1, State.MAINTENANCE: 2, State.LEAVING: 3}


@dataclass(frozen=True, slots=True)
class Backend:
    """One address and port behind a Service's port."""

    address: IPAddress
    port: int
    state: State
    node: str = ""
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[bytes, int]:
        """The same on every node."""
        return to_bytes(self.address), self.port

    @property
    def place(self) -> bytes:
        """The same, packed: what the maps' entries for it begin with."""
        return to_bytes(self.address) + self.port.to_bytes(2, "big")


def state_of(endpoint: SliceEndpoint) -> State:
    """The conditions' meaning."""
    if endpoint.ready:
        return State.ACTIVE
    if not endpoint.terminating:
        return State.MAINTENANCE
    return State.TERMINATING if endpoint.serving else State.LEAVING


def gather(slices: Iterable[EndpointSlice], port: ServicePort, version: int) -> list[Backend]:
    """Every endpoint of one family behind a Service's port, whatever its state; in several slices the best counts."""
    found: dict[tuple[IPAddress, int], Backend] = {}
    for part in slices:
        if part.family not in (0, version):
            continue
        numbers = [n for name, n, protocol in part.ports if name == port.name and protocol == port.protocol]
        if not numbers:
            continue
        for endpoint in part.endpoints:
            state = state_of(endpoint)
            for address in endpoint.addresses:
                if address.version != version:
                    continue
                for number in numbers:
                    known = found.get((address, number))
                    if known is None or _RANK[state] < _RANK[known.state]:
                        found[address, number] = Backend(
                            address, number, state, endpoint.node, endpoint.zone_hints, endpoint.node_hints
                        )
    return sorted(found.values(), key=lambda backend: backend.order)


def misplaced(slices: Iterable[EndpointSlice]) -> list[Problem]:
    """Addresses that are not of the family that their slice says."""
    problems = []
    for part in slices:
        wrong = [a for e in part.endpoints for a in e.addresses if part.family and a.version != part.family]
        if wrong:
            text = f"EndpointSlice {part.name} is for IPv{part.family}, {wrong[0]} is not"
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            problems.append(Problem(ProblemKind.WRONG_FAMILY, f"{text}{more}; left out, it needs a slice of its own"))
    return problems


def choose(backends: Sequence[Backend], node: NodeFacts, *, local: bool, topology: bool) -> list[Backend]:
    """Those that new connections may get. Where nobody is active those that still serve while they terminate; this is
    decided for the node's own and for all separately. Hints narrow all, never the node's own."""
    candidates = [b for b in backends if b.node == node.name] if local else list(backends)
    active = [b for b in candidates if b.state is State.ACTIVE]
    if active:
        return active if local or not topology else nearest(active, node)
    return [b for b in candidates if b.state is State.TERMINATING]


def nearest(active: list[Backend], node: NodeFacts) -> list[Backend]:
    """Follow hints, first for nodes, then for zones; only if every active endpoint has one of the kind and at least one
    is meant for us. Otherwise they are being rewritten, or would leave us with nobody."""
    hints: tuple[tuple[str, Callable[[Backend], tuple[str, ...]]], ...] = (
        (node.name, lambda b: b.node_hints),
        (node.zone, lambda b: b.zone_hints),
    )
    for us, hinted in hints:
        if us and all(hinted(b) for b in active):
            ours = [b for b in active if us in hinted(b)]
            if ours:
                return ours
    return active
