"""Which identities each peer of a rule matches, kept up to date one identity at a time.

Peers are counted by their users. A peer that can only match pods of certain namespaces is asked about those alone, so
that a new identity meets its own namespace's selectors and the few that are open, not all of the cluster's. Likewise a
prefix is asked about the identities of the prefixes inside it (lists of tens of thousands of prefixes are usual), and a
DNS name about those that stand for names.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeGuard

from services.model.addresses import IPNetwork
from services.model.labels import POD_NAMESPACE, SOURCE_FQDN, SOURCE_K8S
from services.policy.peers import CidrPeer, FqdnPeer, LabelPeer, Party, Peer, cidr_of

_Place = tuple[int, int, int, int]
"""Of a CIDR identity: (IP version, first address, prefix length, identity)."""


@dataclass(slots=True)
class _Watched:
    peer: Peer
    namespaces: tuple[str, ...] | None
    members: set[int] = field(default_factory=set)
    users: int = 0


class PeerIndex:
    """Peer -> identities, both ways incremental."""

    def __init__(self) -> None:
        self._watched: dict[Peer, _Watched] = {}
        self._by_namespace: dict[str, dict[Peer, _Watched]] = {}
        self._open: dict[Peer, _Watched] = {}
        self._by_name: dict[Peer, _Watched] = {}
        self._named: set[int] = set()
        self._parties: dict[int, Party] = {}
        self._namespace_of: dict[int, str] = {}
        self._in_namespace: dict[str, set[int]] = {}
        self._by_prefix: dict[IPNetwork, dict[Peer, _Watched]] = {}
        self._prefix_of: dict[int, IPNetwork] = {}
        self._places: list[_Place] = []

    def __len__(self) -> int:
        return len(self._watched)

    def members(self, peer: Peer) -> Iterable[int]:
        """The identities that the peer matches; it must have been acquired."""
        return self._watched[peer].members

    def has(self, peer: Peer, identity: int) -> bool:
        """Whether the peer matches the identity."""
        return identity in self._watched[peer].members

    def acquire(self, peer: Peer) -> bool:
        """Count a user; whether it is the first."""
        watched = self._watched.get(peer)
        if watched is not None:
            watched.users += 1
            return False
        namespaces = peer.selector.namespaces if isinstance(peer, LabelPeer) else None
        watched = self._watched[peer] = _Watched(peer, namespaces, users=1)
        if _by_prefix(peer):
            self._by_prefix.setdefault(peer.prefix, {})[peer] = watched
            candidates: Iterable[int] = list(self._inside(peer.prefix))
        elif isinstance(peer, FqdnPeer):
            self._by_name[peer] = watched
            candidates = self._named
        elif namespaces is None:
            self._open[peer] = watched
            candidates = self._parties
        else:
            for namespace in namespaces:
                self._by_namespace.setdefault(namespace, {})[peer] = watched
            candidates = [number for name in namespaces for number in self._in_namespace.get(name, ())]
        watched.members = {number for number in candidates if peer.matches(self._parties[number])}
        return True

    def release(self, peer: Peer) -> bool:
        """Count a user less; whether it was the last, and the peer is forgotten."""
        watched = self._watched[peer]
        watched.users -= 1
        if watched.users:
            return False
        del self._watched[peer]
        if _by_prefix(peer):
            self._by_prefix[peer.prefix].pop(peer)
            if not self._by_prefix[peer.prefix]:
                del self._by_prefix[peer.prefix]
        elif isinstance(peer, FqdnPeer):
            del self._by_name[peer]
        elif watched.namespaces is None:
            del self._open[peer]
        for namespace in watched.namespaces or ():
            bucket = self._by_namespace[namespace]
            bucket.pop(peer, None)
            if not bucket:
                del self._by_namespace[namespace]
        return True

    def update(self, number: int, party: Party | None) -> list[Peer]:
        """An identity came, changed or went; the peers whose members include it now or did before."""
        before = self._namespace_of.pop(number, None)
        if before is not None:
            self._in_namespace[before].discard(number)
        asked: dict[Peer, _Watched] = dict(self._by_namespace.get(before or "", {}))
        asked.update(self._move(number, cidr_of(party.view) if party is not None else None))
        if number in self._named:
            asked.update(self._by_name)
            self._named.discard(number)
        if party is not None and party.view.has_source(SOURCE_FQDN):
            asked.update(self._by_name)
            self._named.add(number)
        if party is None:
            self._parties.pop(number, None)
        else:
            self._parties[number] = party
            namespace = party.view.value(SOURCE_K8S, POD_NAMESPACE) or ""
            self._namespace_of[number] = namespace
            self._in_namespace.setdefault(namespace, set()).add(number)
            asked.update(self._by_namespace.get(namespace, {}))
        asked.update(self._open)
        touched = []
        for peer, watched in asked.items():
            member = party is not None and peer.matches(party)
            if member:
                watched.members.add(number)
                touched.append(peer)
            elif number in watched.members:
                watched.members.discard(number)
                touched.append(peer)
        return touched

    def _move(self, number: int, prefix: IPNetwork | None) -> dict[Peer, _Watched]:
        """Keep where an identity's prefix is; the prefix peers that it is or was inside of."""
        before = self._prefix_of.pop(number, None)
        if before is not None:
            del self._places[bisect_left(self._places, _place(before, number))]
        if prefix is not None:
            self._prefix_of[number] = prefix
            insort(self._places, _place(prefix, number))
        found: dict[Peer, _Watched] = {}
        for own in {before, prefix} - {None}:
            for length in range(1, own.prefixlen + 1):  # type: ignore[union-attr]
                found.update(self._by_prefix.get(own.supernet(new_prefix=length), {}))  # type: ignore[union-attr]
        return found

    def _inside(self, prefix: IPNetwork) -> Iterator[int]:
        """The identities of prefixes inside this one."""
        last = int(prefix.broadcast_address)
        start = bisect_left(self._places, (prefix.version, int(prefix.network_address), 0, 0))
        for version, first, length, number in islice(self._places, start, None):
            if version != prefix.version or first > last:
                return
            if length >= prefix.prefixlen:
                yield number

    def sizes(self) -> Mapping[Peer, int]:
        """How many identities each peer matches: what makes a policy map grow."""
        return {peer: len(watched.members) for peer, watched in self._watched.items()}


def _by_prefix(peer: Peer) -> TypeGuard[CidrPeer]:
    """Whether only identities of prefixes inside the peer's can match; length 0 also stands for the world."""
    return isinstance(peer, CidrPeer) and peer.prefix.prefixlen > 0


def _place(prefix: IPNetwork, number: int) -> _Place:
    return prefix.version, int(prefix.network_address), prefix.prefixlen, number
