"""Native routing: which routes lead to other nodes' pods.

In: Node objects (pod ranges, addresses) and the address table (pods that no known range holds, nodes' addresses).
Out: routes over the uplink, wanted of the `RouteTable`. A node that is gone from both loses its routes. The node's own
ranges are unreachable but for the pods that it has: otherwise packets for a pod that ended would travel to and fro
between this node and the network.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from services.agent.endpoints.routes import Route, RouteTable
from services.model.addresses import IPAddress, IPNetwork
from services.model.objects import (
    Deleted,
    IpDeleted,
    IpEntry,
    IpUpserted,
    KubeNode,
    ObjectKey,
    Update,
    Upserted,
)


class NativeRoutes:
    """`direct`: install routes to the nodes of this link; else the network's own routes lead to them."""

    def __init__(
        self,
        table: RouteTable,
        node: str,
        uplink: int,
        addresses: Iterable[IPAddress],
        own_ranges: Iterable[IPNetwork],
        *,
        direct: bool,
    ) -> None:
        self._table, self._node, self._uplink, self._direct = table, node, uplink, direct
        self._source: dict[int, IPAddress] = {address.version: address for address in reversed(list(addresses))}
        self._own = tuple(own_ranges)
        self._nodes: dict[str, KubeNode] = {}
        self._rows: dict[IPNetwork, IpEntry] = {}
        self._of_node: dict[str, set[IPNetwork]] = {}
        self._routed: dict[str, set[IPNetwork]] = {}
        self._errors: dict[str, str] = {}
        for prefix in self._own:
            table.put(prefix, Route())

    @property
    def errors(self) -> Mapping[str, str]:
        """Node and range -> why it is not routed."""
        return self._errors

    def observe(self, update: Update) -> None:
        """Follow nodes and the address table; cheap."""
        if not self._direct:
            return
        match update:
            case Upserted(object=KubeNode() as node) if node.name != self._node:
                self._nodes[node.name] = node
                self._settle(node.name)
            case Deleted(key=ObjectKey(kind="Node") as key):
                self._nodes.pop(key.name, None)
                self._settle(key.name)
            case IpUpserted(entry=entry):
                self._set_row(entry.prefix, entry if entry.node and entry.node != self._node else None)
            case IpDeleted(prefix=prefix):
                self._set_row(prefix, None)
            case _:
                pass

    def _set_row(self, prefix: IPNetwork, entry: IpEntry | None) -> None:
        before = self._rows.pop(prefix, None)
        if before == entry:
            if entry is not None:
                self._rows[prefix] = entry
            return
        if before is not None:
            self._of_node[before.node].discard(prefix)
        if entry is not None:
            self._rows[prefix] = entry
            self._of_node.setdefault(entry.node, set()).add(prefix)
        for row in (before, entry):
            if row is not None:
                self._changed(row)

    def _changed(self, row: IpEntry) -> None:
        """A row came or went. Most are pods within a range that is routed: nothing follows from them."""
        node = self._nodes.get(row.node)
        if row.pod and node is not None and _covered(row.prefix, node.pod_ranges):
            return
        self._settle(row.node)

    def _settle(self, name: str) -> None:
        """Compute a node's routes anew."""
        wanted = self._wanted(name)
        for prefix in self._routed.get(name, set()) - wanted.keys():
            self._table.remove(prefix)
        for prefix, hop in wanted.items():
            self._table.put(prefix, Route(self._uplink, hop, self._source.get(prefix.version)))
        self._routed[name] = set(wanted)
        if not wanted:
            del self._routed[name]

    def _wanted(self, name: str) -> dict[IPNetwork, IPAddress]:
        node, rows = self._nodes.get(name), [self._rows[prefix] for prefix in self._of_node.get(name, ())]
        hops: dict[int, IPAddress] = {}
        for address in [*(node.addresses if node else ()), *_node_addresses(rows)]:
            hops.setdefault(address.version, address)
        ranges = [prefix for prefix in (node.pod_ranges if node else ()) if self._sound(name, prefix, hops)]
        pods = [row.prefix for row in rows if row.pod and not _covered(row.prefix, ranges)]
        return {prefix: hops[prefix.version] for prefix in [*ranges, *pods] if prefix.version in hops}

    def _sound(self, name: str, prefix: IPNetwork, hops: Mapping[int, IPAddress]) -> bool:
        """A range that would cut off this node or the way to the other one is a mistake somewhere else."""
        where = f"node {name}"
        taken = [address for address in (*self._source.values(), *hops.values()) if address in prefix]
        problem = ""
        if taken:
            problem = f"pod range {prefix} has {taken[0]} in it, which is a node's address: not routed"
        elif any(own.version == prefix.version and own.overlaps(prefix) for own in self._own):
            problem = f"pod range {prefix} overlaps this node's own: not routed"
        if problem:
            self._errors[where] = problem
        else:
            self._errors.pop(where, None)
        return not problem


def _node_addresses(rows: Iterable[IpEntry]) -> list[IPAddress]:
    """The addresses of a node as its rows tell: those of its own first, then what its pods' rows name."""
    own = sorted({row.prefix.network_address for row in rows if not row.pod}, key=str)
    tunnels = [row.tunnel for row in rows if row.tunnel is not None]
    # Of a node's addresses on several devices those that it calls its own lead.
    return [*(address for address in tunnels if address in own), *own, *tunnels]


def _covered(prefix: IPNetwork, ranges: Collection[IPNetwork]) -> bool:
    return any(prefix.version == known.version and prefix.subnet_of(known) for known in ranges)  # type: ignore[arg-type]
