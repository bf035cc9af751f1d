"""Egress gateways: which pods' packets leave the cluster by which node, and with which address.

In: policies, Node objects, the address table (pods, and which nodes are alive), identities' labels, own addresses.
Out: the `egress_gateway` map: entries of this node's pods, and of every pod whose gateway this node is. Everything is
recomputed when something changed that it depends on; without a policy that is nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from services.agent.abi.egress import SOURCE_BITS, EgressEntry, EgressFlags, EgressKey
from services.agent.calc.table import Table
from services.model.addresses import IPAddress, IPNetwork, prefix_to_key, to_bytes
from services.model.labels import SOURCE_K8S, Label, Labels
from services.model.objects import IpEntry, KubeNode, LocalEndpoint, NodeAddresses, PolicyObject
from services.policy.egress_gateway import EgressGatewayPolicy, Gateway, read_egress_gateway_policy
from services.policy.problems import PolicyInvalid
from services.policy.selectors import LabelView

Views = Callable[[int], LabelView | None]
"""The labels of an identity."""


@dataclass(frozen=True, slots=True)
class EgressStatus:
    """A policy, for people: what came of it on this node."""

    name: str
    problems: tuple[str, ...]
    gateways: tuple[str, ...]
    """Nodes that its pods use, '' for pods that have none."""
    pods: int
    """Addresses of pods that it selects in the whole cluster."""
    address: str
    """The egress address, where this node is the gateway."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A pod's address: its labels, its node, and what it is spread over several gateways by."""

    address: IPAddress
    identity: int
    node: str
    name: str


@dataclass(frozen=True, slots=True)
class NodeRole:
    """This node: its name, and how packets get to gateways: over the overlay, or by this device."""

    name: str
    native: bool = False
    uplink: int = 0


class EgressGateways:
    """Keeps the `egress_gateway` map's desired content."""

    def __init__(self, node: NodeRole, views: Views, rows: Mapping[IPNetwork, IpEntry]) -> None:
        self._node, self._views, self._rows = node, views, rows
        self.table = Table("egress_gateway")
        self._policies: dict[str, EgressGatewayPolicy] = {}
        self._problems: dict[str, tuple[str, ...]] = {}
        self._nodes: dict[str, tuple[KubeNode, LabelView]] = {}
        self._endpoints: dict[int, LocalEndpoint] = {}
        self._addresses = NodeAddresses({})
        self._status: dict[str, EgressStatus] = {}
        self._dirty = False

    def set_policy(self, name: str, document: PolicyObject | None) -> None:
        """A policy came, changed or went. One that cannot be read counts as it was last, if it ever could be."""
        self._dirty = True
        self._problems.pop(name, None)
        if document is None:
            self._policies.pop(name, None)
            return
        try:
            self._policies[name] = read_egress_gateway_policy(document)
        except PolicyInvalid as error:
            self._problems[name] = tuple(str(problem) for problem in error.problems)

    def set_node(self, name: str, node: KubeNode | None) -> None:
        """A node came, changed or went."""
        self._touch()
        if node is None:
            self._nodes.pop(name, None)
        else:
            labels = Labels(Label(SOURCE_K8S, key, value) for key, value in node.labels.items())
            self._nodes[name] = (node, LabelView(labels))

    def row_changed(self) -> None:
        """A row of the address table came, changed or went."""
        self._touch()

    def set_endpoint(self, number: int, endpoint: LocalEndpoint | None) -> None:
        """A local endpoint came, changed or went: it may be sooner than its row."""
        self._touch()
        if endpoint is None:
            self._endpoints.pop(number, None)
        else:
            self._endpoints[number] = endpoint

    def set_addresses(self, addresses: NodeAddresses) -> None:
        """This node's own addresses."""
        if addresses != self._addresses:
            self._addresses = addresses
            self._touch()

    def labels_changed(self) -> None:
        """Some identity has other labels than before, or is known now."""
        self._touch()

    def _touch(self) -> None:
        self._dirty |= bool(self._policies)

    def status(self) -> list[EgressStatus]:
        """Every policy, by name."""
        names = sorted(self._policies.keys() | self._problems.keys())
        return [self._status.get(name) or EgressStatus(name, self._problems.get(name, ()), (), 0, "") for name in names]

    # -- computing -------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Bring the table up to date."""
        if not self._dirty:
            return
        self._dirty = False
        alive = self._alive()
        wanted: dict[bytes, bytes] = {}
        chosen: dict[str, set[str]] = {name: set() for name in self._policies}
        counts = dict.fromkeys(self._policies, 0)
        merged: dict[tuple[str, ...], dict[IPNetwork, str]] = {}
        for source in self._sources():
            names = self._policies_of(source)
            if not names:
                continue
            gateways = {name: self._gateway(self._policies[name], source, alive) for name in names}
            for name, (node, _gateway) in gateways.items():
                counts[name] += 1
                chosen[name].add(node)
            if names not in merged:
                merged[names] = merge([self._policies[name] for name in names])
            for prefix, name in merged[names].items():
                if prefix.version == source.address.version:
                    self._entry(wanted, source, prefix, gateways.get(name), alive)
        for key in list(self.table.desired):
            if key not in wanted:
                self.table.remove(key)
        for key, value in wanted.items():
            self.table.put(key, value)
        self._status = {name: self._tell(name, chosen[name], counts[name]) for name in self._policies}

    def _alive(self) -> dict[str, list[IPAddress]]:
        """Nodes whose agents keep their rows, with their addresses: the overlay's first."""
        found: dict[str, list[IPAddress]] = {}
        for prefix, entry in self._rows.items():
            if entry.pod or entry.node not in self._nodes:
                continue
            addresses = found.setdefault(entry.node, [])
            addresses.append(prefix.network_address)
            addresses.sort(key=lambda address, entry=entry: (address != entry.tunnel, str(address)))  # type: ignore[misc]
        if self._node.name in self._nodes:
            found.setdefault(self._node.name, [])
        return found

    def _sources(self) -> Iterable[_Source]:
        here = self._node.name
        local = {
            address: _Source(address, endpoint.identity, here, f"{endpoint.namespace}/{endpoint.pod}")
            for endpoint in self._endpoints.values()
            for address in endpoint.addresses
        }
        yield from local.values()
        for prefix, entry in self._rows.items():
            address = prefix.network_address
            if entry.pod and entry.node and address not in local:
                yield _Source(address, entry.identity, entry.node, f"{entry.namespace}/{entry.pod}")

    def _policies_of(self, source: _Source) -> tuple[str, ...]:
        view = self._views(source.identity)
        if view is None:
            return ()
        node = self._nodes.get(source.node)
        return tuple(
            name
            for name, policy in sorted(self._policies.items())
            if any(
                subject.pods.matches(view)
                and (not subject.nodes.requirements or (node is not None and subject.nodes.matches(node[1])))
                for subject in policy.subjects
            )
        )

    def _gateway(
        self, policy: EgressGatewayPolicy, source: _Source, alive: Mapping[str, object]
    ) -> tuple[str, Gateway]:
        """The pod's gateway and its node, '' where there is none: of several gateways one by the pod's name."""
        gateway = policy.gateways[zlib.crc32(source.name.encode()) % len(policy.gateways)]
        names = (name for name, (_node, view) in sorted(self._nodes.items()) if gateway.nodes.matches(view))
        return next((name for name in names if name in alive), ""), gateway

    def _entry(
        self,
        wanted: dict[bytes, bytes],
        source: _Source,
        prefix: IPNetwork,
        chosen: tuple[str, Gateway] | None,
        alive: Mapping[str, list[IPAddress]],
    ) -> None:
        """What this node has to know of one pod and one prefix."""
        node, gateway = chosen if chosen is not None else ("", None)
        here = node == self._node.name and bool(node)
        if source.node != self._node.name and not here:
            return
        entry = EgressEntry()
        if gateway is None:
            entry.flags = EgressFlags.EXCLUDED
        elif here:
            entry.flags = EgressFlags.HERE
            address = self._address(gateway, prefix.version)
            entry.address = type(entry.address)(*to_bytes(address)) if address else entry.address
        elif node:
            hops = [a for a in alive[node] if not self._node.native or a.version == prefix.version]
            entry.gateway = type(entry.gateway)(*to_bytes(hops[0])) if hops else entry.gateway
            entry.ifindex = self._node.uplink if self._node.native else 0
        length, raw = prefix_to_key(prefix)
        key = EgressKey(prefixlen=SOURCE_BITS + length, source=to_bytes(source.address), destination=raw)
        wanted[key.pack()] = entry.pack()

    def _address(self, gateway: Gateway, version: int) -> IPAddress | None:
        """The egress address on this node, None where it has no such one."""
        has = self._addresses.interfaces
        if gateway.address is not None:
            mine = any(gateway.address in addresses for addresses in has.values())
            return gateway.address if mine and gateway.address.version == version else None
        found = has.get(gateway.interface or self._addresses.default, ())
        return next((address for address in found if address.version == version), None)

    def _tell(self, name: str, chosen: set[str], pods: int) -> EgressStatus:
        policy, problems = self._policies[name], list(self._problems.get(name, ()))
        addresses: list[str] = []
        for index, gateway in enumerate(policy.gateways):
            if self._node.name in chosen and gateway.nodes.matches(self._nodes[self._node.name][1]):
                versions = sorted({prefix.version for prefix in policy.destinations})
                found = [self._address(gateway, version) for version in versions]
                addresses += [str(address) for address in found if address is not None]
                if None in found:
                    problems.append(self._missing(gateway, versions[found.index(None)], index))
        if "" in chosen:
            problems.append("no node that is selected as gateway is there: the pods' packets are dropped")
        return EgressStatus(name, tuple(problems), tuple(sorted(chosen)), pods, ", ".join(dict.fromkeys(addresses)))

    def _missing(self, gateway: Gateway, version: int, index: int) -> str:
        what = (
            gateway.address or f"an IPv{version} address on {gateway.interface or 'the interface of the default route'}"
        )
        return f"gateway {index + 1}: this node does not have {what}: packets are dropped; configure it on the node"


def merge(policies: Iterable[EgressGatewayPolicy]) -> dict[IPNetwork, str]:
    """Prefix -> the policy that counts for it, '' = none (the normal way), so that the longest prefix decides.

    A policy counts for what its destinations cover and its exclusions do not. Of several the one with the longest
    covering destination counts, and among equals the first by name.
    """
    policies = list(policies)
    found: dict[IPNetwork, str] = {}
    for prefix in {p for policy in policies for p in (*policy.destinations, *policy.excluded)}:
        best: tuple[int, str] | None = None
        for policy in policies:
            if any(_covers(hole, prefix) for hole in policy.excluded):
                continue
            lengths = [d.prefixlen for d in policy.destinations if _covers(d, prefix)]
            if lengths and (best is None or (-max(lengths), policy.name) < best):
                best = (-max(lengths), policy.name)
        found[prefix] = best[1] if best else ""
    return found


def _covers(wide: IPNetwork, narrow: IPNetwork) -> bool:
    return wide.version == narrow.version and narrow.subnet_of(wide)  # type: ignore[arg-type]
