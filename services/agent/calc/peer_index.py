"""Which identities each peer of a rule matches, kept up to date one identity at a time.

Peers are counted by their users. A peer that can only match pods of certain namespaces is asked about those alone, so
that a new identity meets its own namespace's selectors and the few that are open, not all of the cluster's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from services.model.labels import POD_NAMESPACE, SOURCE_K8S
from services.policy.peers import LabelPeer, Party, Peer


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
        self._parties: dict[int, Party] = {}
        self._namespace_of: dict[int, str] = {}
        self._in_namespace: dict[str, set[int]] = {}

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
        if namespaces is None:
            self._open[peer] = watched
            candidates: Iterable[int] = self._parties
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
        if watched.namespaces is None:
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

    def sizes(self) -> Mapping[Peer, int]:
        """How many identities each peer matches: what makes a policy map grow."""
        return {peer: len(watched.members) for peer, watched in self._watched.items()}
