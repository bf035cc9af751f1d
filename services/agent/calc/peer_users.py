"""Who names which peer: groups acquire and release peers, and with the last user goes all that was kept for a peer.

A prefix in a rule needs an identity of its own, a DNS name has to be learnt, a block may divide identities.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.agent.calc.fqdn import FqdnSelectors
from services.agent.calc.group import GroupKey
from services.agent.calc.identities import Identities, PrefixIdentities, prefix_labels
from services.agent.calc.ipcache import Ipcache
from services.agent.calc.peer_index import PeerIndex
from services.model.addresses import IPNetwork
from services.model.labels import Label, Labels
from services.policy.peers import CidrPeer, FqdnPeer, IpBlockPeer, Peer


class PeerUsers:
    """Owns the peer index and the prefixes' identities."""

    def __init__(self, identities: Identities, ipcache: Ipcache) -> None:
        self._identities, self._ipcache = identities, ipcache
        self.index, self.fqdn = PeerIndex(), FqdnSelectors(identities)
        self._prefixes = PrefixIdentities()
        self._users: dict[Peer, set[GroupKey]] = {}
        self._outside: frozenset[IPNetwork] = frozenset()

    def of(self, peer: Peer) -> Iterable[GroupKey]:
        """The groups whose rules name a peer."""
        return self._users.get(peer, ())

    def acquire(self, peer: Peer, key: GroupKey) -> None:
        """A group's rules name a peer now."""
        self._users.setdefault(peer, set()).add(key)
        if not self.index.acquire(peer):
            return
        self._identities.watch(peer, on=True)
        if isinstance(peer, FqdnPeer):
            self.fqdn.acquire(peer.name)
        if isinstance(peer, CidrPeer | IpBlockPeer):
            for prefix in peer.prefixes():
                made = self._prefixes.acquire(prefix)
                if made is not None:
                    self._identities.set_labels(*made)
                    self._ipcache.set_prefix(prefix, made[0])

    def leave(self, peers: Iterable[Peer], key: GroupKey) -> None:
        """A group's rules name these peers no more; `release` them once its new ones are acquired."""
        for peer in peers:
            self._users[peer].discard(key)

    def release(self, peers: Iterable[Peer]) -> None:
        """Each of the peers has one user less."""
        for peer in peers:
            if self.index.release(peer):
                del self._users[peer]
                self._identities.watch(peer, on=False)
                if isinstance(peer, FqdnPeer):
                    self.fqdn.release(peer.name)
                if isinstance(peer, CidrPeer | IpBlockPeer):
                    for prefix in peer.prefixes():
                        gone = self._prefixes.release(prefix)
                        if gone is not None:
                            self._identities.set_labels(gone, None)
                            self._ipcache.set_prefix(prefix, None)

    def set_outside(self, prefixes: frozenset[IPNetwork], label: Label) -> None:
        """These prefixes, and no others, have identities that carry a label besides."""
        before, self._outside = self._outside, prefixes
        for prefix in sorted(prefixes - before, key=str):
            made = self._prefixes.acquire(prefix)
            number = made[0] if made else self._prefixes.number(prefix)
            if number is not None:
                self._identities.set_labels(number, Labels([*prefix_labels(prefix), label]))
                self._ipcache.set_prefix(prefix, number)
        for prefix in sorted(before - prefixes, key=str):
            number = self._prefixes.number(prefix)
            gone = self._prefixes.release(prefix)
            if gone is not None:
                self._identities.set_labels(gone, None)
                self._ipcache.set_prefix(prefix, None)
            elif number is not None:
                self._identities.set_labels(number, prefix_labels(prefix))
