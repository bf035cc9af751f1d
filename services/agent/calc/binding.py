"""Binds rules to one group of endpoints: rule numbers, the subject's named ports, and what the datapath can enforce.

What it cannot enforce (Kafka, TLS termination, mutual authentication) is refused rather than let pass:
a policy that asks for more than there is must not give less than it says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from services.model.verdict import Direction
from services.policy.compile import Piece
from services.policy.l7 import HTTP, L7, ORIGINATING, TLS
from services.policy.peers import ANYONE, FqdnPeer, IpBlockPeer, Peer, PortHolder, PortNames, reserved
from services.policy.problems import Problem
from services.policy.rules import Policy, Rule, Traffic
from services.policy.server_names import asking_everywhere


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the datapath enforces beyond addresses and ports."""

    http: bool = True
    names: bool = True
    """DNS rules, on egress, and TLS server names."""
    other_l7: bool = False
    authentication: bool = False
    host_policies: bool = True

    def of_nodes(self) -> Capabilities:
        """What of it there is for a node's own traffic: nothing looks into its packets."""
        return dataclasses.replace(self, http=False, names=False, other_l7=False)

    def narrow(self, traffic: Traffic, direction: Direction) -> tuple[Traffic, bool]:
        """(traffic with L7 rules as far as they narrow anything, whether the rest must be refused)."""
        l7 = traffic.l7
        if l7 is None:
            return traffic, False
        if l7.kind == HTTP and self.http:
            return traffic, False
        if self.other_l7 or (self.names and l7.by_names and (direction == Direction.EGRESS or l7.kind == TLS)):
            return traffic, False
        if any(rule.kind == ORIGINATING for rule in l7.other):
            return dataclasses.replace(traffic, l7=None), True  # it would go on in plain text
        if l7.everything and not l7.other:
            return dataclasses.replace(traffic, l7=None), False
        if self.http and l7.http:
            return dataclasses.replace(traffic, l7=L7(HTTP, http=l7.http)), False
        return dataclasses.replace(traffic, l7=None), True


ANY_RULE = Piece(0, Traffic())
"""What holds where no rule has a say: rule 0, everything passes."""
HOST_RULE = Piece(0, Traffic(), authentication="disabled")
REQUIRING = frozenset({"required", "test-always-fail"})
LOCAL_HOST = (reserved("host"),)
ALL_CAPABILITIES = Capabilities(other_l7=True, authentication=True)


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """One rule, ready to be compiled for the identities that its peers match. Compared by identity: a key for caches.

    `named` waits for the destination's port numbers; the pieces' traffic has the name.
    """

    peers: tuple[Peer, ...]
    pieces: tuple[Piece, ...]
    named: tuple[Piece, ...] = ()

    def resolved(self, ports: PortNames) -> tuple[Piece, ...]:
        """The named pieces for a destination with these named ports."""
        return resolve_names(self.named, ports) if self.named else ()


@dataclass(frozen=True, slots=True)
class Program:
    """All rules of a group in one direction: those for everyone apart from those for some."""

    anyone: tuple[Piece, ...] = ()
    bound: tuple[Bound, ...] = ()

    def peers(self) -> Iterable[Peer]:
        """Every distinct peer."""
        return dict.fromkeys(peer for bound in self.bound for peer in bound.peers)

    def names(self) -> frozenset[tuple[str, int]]:
        """(name, protocol) of ports whose numbers are the destination's."""
        return frozenset((p.traffic.name, int(p.traffic.protocol)) for bound in self.bound for p in bound.named)

    @property
    def by_name(self) -> bool:
        """Whether some rule allows destinations by DNS name."""
        return any(isinstance(peer, FqdnPeer) for bound in self.bound for peer in bound.peers)

    @property
    def refines(self) -> bool:
        """Whether some rule may tell pods of one identity apart."""
        return any(bound.named or any(isinstance(peer, IpBlockPeer) for peer in bound.peers) for bound in self.bound)


def unenforceable(policy: Policy, capabilities: Capabilities) -> tuple[Problem, ...]:
    """What of an accepted policy is not done as written, for its status."""
    found: list[Problem] = []
    for spec in policy.specs:
        if spec.host and not capabilities.host_policies:
            found += [
                Problem(rule.path, "policies for nodes are not enforced here: host_firewall is off")
                for rule in spec.rules
            ]
            continue
        able = capabilities.of_nodes() if spec.host else capabilities
        for rule in spec.rules:
            kinds = {item.l7.kind for item in rule.traffic if item.l7 and able.narrow(item, rule.direction)[1]}
            for kind in sorted(kinds):
                place = f"{rule.direction.name.lower()}{' of nodes' if spec.host else ''}"
                found.append(
                    Problem(rule.path, f"{kind} rules on {place} are not enforced yet: the traffic is refused")
                )
            if rule.authentication in REQUIRING and not capabilities.authentication:
                found.append(Problem(rule.path, "authentication is not done yet: the traffic is refused"))
    return tuple(found)


def bind(
    rules: Iterable[tuple[Policy, Rule, int]], direction: Direction, ports: PortNames, capabilities: Capabilities
) -> Program:
    """Bind the rules of one direction, given with their numbers and in a fixed order, to a subject with these ports."""
    anyone: list[Piece] = []
    bound: list[Bound] = []
    for number, rule in asking_everywhere((number, rule) for _, rule, number in rules):
        pieces, named = _pieces(rule, number, capabilities)
        if direction == Direction.INGRESS:
            pieces, named = (*pieces, *resolve_names(named, ports)), ()
        if ANYONE not in rule.peers:
            if rule.peers:
                bound.append(Bound(rule.peers, pieces, named))
            continue
        anyone += pieces
        if named:
            # "Anyone" on a named port is every destination that has a port of that name.
            names = dict.fromkeys((piece.traffic.name, piece.traffic.protocol) for piece in named)
            bound.append(Bound((PortHolder(tuple(names)),), (), named))
    return Program(tuple(anyone), tuple(bound))


def with_local_host(program: Program, direction: Direction) -> Program:
    """The node must reach its pods (health checks); only a deny rule can stop it (policy-semantics 3.1)."""
    if direction != Direction.INGRESS:
        return program
    return Program(program.anyone, (*program.bound, Bound(LOCAL_HOST, (HOST_RULE,))))


def resolve_names(named: Iterable[Piece], ports: PortNames) -> tuple[Piece, ...]:
    """Pieces with port numbers for names; a name that the destination does not have gives none."""
    return tuple(
        dataclasses.replace(piece, traffic=dataclasses.replace(piece.traffic, low=number, high=number, name=""))
        for piece in named
        for number in sorted(ports.get((piece.traffic.name, piece.traffic.protocol), ()))
    )


def _pieces(rule: Rule, number: int, capabilities: Capabilities) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """(pieces with numeric ports, pieces with named ports)."""
    unauthenticated = not capabilities.authentication and rule.authentication in REQUIRING
    plain: list[Piece] = []
    named: list[Piece] = []
    for item in rule.traffic:
        traffic, refuse = capabilities.narrow(item, rule.direction)
        piece = Piece(number, traffic, rule.deny, refuse or unauthenticated, rule.authentication)
        (named if traffic.name else plain).append(piece)
    return tuple(plain), tuple(named)
