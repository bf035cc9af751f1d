"""Which addresses are the API server's, and that policies may call them `kube-apiserver` (policy-semantics 5.2).

They are the endpoints of the Service default/kubernetes. Where one is a node's, the address gets the reserved identity
kube-apiserver, which is a remote node as well; the node itself stays host and has the label besides. Where it is
nobody's, it is outside of the cluster: an identity of this node alone, world and prefix as before, and that label.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import replace

from services.agent.calc.identities import Identities
from services.agent.calc.peer_users import PeerUsers
from services.model.addresses import IPNetwork
from services.model.identity import RESERVED_LABELS, NumericIdentity, Reserved
from services.model.keys import ObjectKey
from services.model.labels import SOURCE_RESERVED, Label, Labels
from services.model.objects import IpEntry
from services.model.services import EndpointSlice

LABEL = Label(SOURCE_RESERVED, "kube-apiserver")
SERVICE = ("default", "kubernetes")
HOST, REMOTE_NODE = NumericIdentity(Reserved.HOST), NumericIdentity(Reserved.REMOTE_NODE)

SetRow = Callable[[IPNetwork, IpEntry | None], None]


class ApiServers:
    """Stands before the address table: rows of API servers' addresses pass as another identity's.

    `set_row` is told what is to be known of a prefix, `row_of` what is known now.
    """

    def __init__(
        self,
        identities: Identities,
        peers: PeerUsers,
        set_row: SetRow,
        row_of: Callable[[IPNetwork], IpEntry | None],
    ) -> None:
        self._identities, self._peers, self._set_row, self._row_of = identities, peers, set_row, row_of
        self._slices: dict[ObjectKey, frozenset[IPNetwork]] = {}
        self._rows: dict[IPNetwork, IpEntry | None] = {}
        self._is_host = False

    def set_slice(self, key: ObjectKey, found: EndpointSlice | None) -> None:
        """An EndpointSlice came, changed or went; most are of other Services."""
        ours = found is not None and (found.namespace, found.service) == SERVICE
        if not ours and key not in self._slices:
            return
        before = frozenset(self._rows)
        if found is not None and ours:
            hosts = (address for each in found.endpoints for address in each.addresses)
            self._slices[key] = frozenset(ipaddress.ip_network(address) for address in hosts)
        else:
            self._slices.pop(key, None)
        after = frozenset().union(*self._slices.values())
        for prefix in after - before:
            self._rows[prefix] = self._row_of(prefix)
            self._set_row(prefix, self._seen(prefix))
        for prefix in before - after:
            self._set_row(prefix, self._rows.pop(prefix))
        self._settle()

    def set_row(self, prefix: IPNetwork, entry: IpEntry | None) -> None:
        """A row of the address table came, changed or went."""
        if prefix not in self._rows:
            self._set_row(prefix, entry)
            return
        self._rows[prefix] = entry
        self._set_row(prefix, self._seen(prefix))
        self._settle()

    def _seen(self, prefix: IPNetwork) -> IpEntry | None:
        entry = self._rows[prefix]
        if entry is not None and entry.identity == REMOTE_NODE:
            return replace(entry, identity=NumericIdentity(Reserved.KUBE_APISERVER))
        return entry

    def _settle(self) -> None:
        self._peers.set_outside(frozenset(prefix for prefix, row in self._rows.items() if row is None), LABEL)
        is_host = any(row is not None and row.identity == HOST for row in self._rows.values())
        if is_host != self._is_host:
            self._is_host = is_host
            labels = RESERVED_LABELS[HOST]
            self._identities.set_labels(HOST, Labels([*labels, LABEL]) if is_host else labels)
