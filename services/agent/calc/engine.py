"""The engine: what is known about cluster and node in, what the kernel's maps should hold out.

Input: `Update`s from any source in any order; the result depends on the current state only, never on the order in
which it came about. Output: `Change`s, ordered for safe application. `apply` stores, `flush` computes what is dirty.
Nothing comes out before every expected source has told all that exists: a half-known cluster must not open anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from services.agent.abi.endpoints import HOST_ENDPOINT, EndpointFlags
from services.agent.calc.answers import Answers
from services.agent.calc.apiserver import ApiServers
from services.agent.calc.binding import Capabilities
from services.agent.calc.egress import NodeRole
from services.agent.calc.endpoints import Audit, EndpointTables
from services.agent.calc.group import HOST_KEY, GroupKey
from services.agent.calc.ipcache import Ipcache
from services.agent.calc.maps import Change
from services.agent.calc.pressure import POLICY_CAPACITY
from services.agent.calc.sequencer import sequence
from services.agent.calc.services import LbOptions, NodeFacts, Services
from services.model.addresses import IPAddress, IPNetwork
from services.model.objects import (
    Deleted,
    EndpointDeleted,
    EndpointSlice,
    EndpointUpserted,
    IdentityDeleted,
    IdentityUpserted,
    IpDeleted,
    IpEntry,
    IpUpserted,
    KubeNode,
    KubeObject,
    LocalEndpoint,
    Namespace,
    NodeAddresses,
    ObjectKey,
    Pod,
    PolicyObject,
    Service,
    Synced,
    Update,
    Upserted,
)
from services.policy.nodes import is_about_nodes, node_view
from services.policy.options import PolicyOptions
from services.policy.verdict import Mode

DEFAULT_SOURCES = frozenset({"objects", "identities"})


class Engine(Answers):
    """One node's calculation. `revision`: the highest that the pinned endpoints map has, as connections remember it."""

    def __init__(
        self,
        node: str,
        cluster: str = "default",
        *,
        sources: Iterable[str] = DEFAULT_SOURCES,
        revision: int = 0,
        mode: Mode = Mode.DEFAULT,
        audit: Audit | None = None,
        options: PolicyOptions | None = None,
        capabilities: Capabilities | None = None,
        capacity: int = POLICY_CAPACITY,
        addresses: tuple[IPAddress, ...] = (),
        lb: LbOptions | None = None,
        native_routing: bool = False,
        uplink: int = 0,
    ) -> None:
        super().__init__(
            node,
            Ipcache(node, native=native_routing),
            EndpointTables(audit or Audit()),
            Services(NodeFacts(node, addresses), lb),
            options or PolicyOptions(cluster),
            mode,
            capabilities or Capabilities(),
            capacity,
            NodeRole(node, native_routing, uplink),
        )
        self._api_servers = ApiServers(self._identities, self._maps.peers, self._set_row, self._ipcache.row)
        self._official = addresses
        self._waiting = set(sources)
        self.revision = revision
        self._of_pod: dict[tuple[str, str], set[int]] = {}
        self._dirty: set[int] = set()
        self._host_moved = False

    @property
    def in_sync(self) -> bool:
        """Whether every expected source has told all that existed."""
        return not self._waiting

    @property
    def waiting_for(self) -> frozenset[str]:
        """The sources that have not."""
        return frozenset(self._waiting)

    def apply(self, update: Update) -> None:
        """Take in one update. Cheap: what follows from it is computed by `flush`."""
        match update:
            case Upserted(object=thing):
                self._set_object(thing.key, thing)
            case Deleted(key=key):
                self._set_object(key, None)
            case IdentityUpserted(identity=identity):
                self._identities.set_labels(identity.id, identity.labels)
            case IdentityDeleted(id=number):
                self._identities.set_labels(number, None)
            case IpUpserted(entry=entry):
                self._api_servers.set_row(entry.prefix, entry)
            case IpDeleted(prefix=prefix):
                self._api_servers.set_row(prefix, None)
            case EndpointUpserted(endpoint=endpoint):
                self._set_endpoint(endpoint.id, endpoint)
            case EndpointDeleted(id=number):
                self._set_endpoint(number, None)
            case NodeAddresses():
                self._egress.set_addresses(update)
                self._services.set_addresses((*self._official, *update.on_devices()))
            case Synced(source=source):
                self._waiting.discard(source)
            case _:
                assert_never(update)

    def flush(self) -> list[Change]:
        """Everything that follows from what was applied since the last call, in order; nothing until in sync."""
        if not self.in_sync:
            return []
        revision = self.revision + 1
        dirty, self._dirty = self._dirty, set()
        for endpoint in sorted(dirty):
            self._regroup(endpoint)
        for number, known, party in self._identities.refresh():
            self._maps.identity_changed(number, party)
            if known is None or party is None or known.view != party.view:
                self._maps.subject_changed(number)
                self._egress.labels_changed()
        self._egress.settle()
        references_moved = self._services.settle()
        moved_policies = self._policies.settle(revision, references_moved=references_moved)
        for before, after in moved_policies:
            self._maps.policy_changed(before, after, revision)
            self._host_moved |= is_about_nodes((before, after))
        dirty |= self._settle_host()
        changes, touched = self._maps.settle(revision)
        puts, removals, moved = self._ipcache.take()
        if moved:
            # Connections remember whom they were opened with; they must look again.
            for key, group in self._maps.groups.items():
                group.revision = revision
                touched.add(key)
        parts = self._identities.refinements.table.take()
        if parts[0] or parts[1]:
            refining = {key for key, group in self._maps.groups.items() if group.flags()}
            for key in refining:
                self._maps.groups[key].revision = revision
            touched |= refining
        if touched or dirty or moved_policies:
            self.revision = revision
        looking = self._write_endpoints(dirty | {n for key in touched for n in self._maps.groups[key].endpoints})
        egress = self._egress.table.take()
        return sequence(changes, (puts, removals), parts, looking, self._tables.tables, self._services.tables, egress)

    def _set_object(self, key: ObjectKey, thing: KubeObject | None) -> None:
        match key.kind:
            case "Pod":
                assert thing is None or isinstance(thing, Pod)
                self._identities.set_pod((key.namespace, key.name), thing)
                self._services.set_pod((key.namespace, key.name), thing)
                self._tables.set_pod((key.namespace, key.name), thing)
                # Named ports are part of what makes a group.
                self._dirty |= self._of_pod.get((key.namespace, key.name), set())
            case "Service":
                assert thing is None or isinstance(thing, Service)
                self._services.set_service(key, thing)
            case "EndpointSlice":
                assert thing is None or isinstance(thing, EndpointSlice)
                self._services.set_slice(key, thing)
                self._api_servers.set_slice(key, thing)
            case "Namespace":
                # Namespace labels are part of identities' labels, which come from the identity service.
                assert thing is None or isinstance(thing, Namespace)
            case "Node":
                assert thing is None or isinstance(thing, KubeNode)
                self._egress.set_node(key.name, thing)
                if key.name == self._node:
                    self._services.set_node(thing)
                self._set_node(key.name, thing)
            case "CiliumEgressGatewayPolicy":
                assert thing is None or isinstance(thing, PolicyObject)
                self._egress.set_policy(key.name, thing)
            case _:
                assert thing is None or isinstance(thing, PolicyObject)
                self._policies.set_document(key, thing)

    def _set_row(self, prefix: IPNetwork, entry: IpEntry | None) -> None:
        before = self._ipcache.row(prefix)
        self._ipcache.set_row(prefix, entry)
        self._identities.set_row(prefix, before, entry)
        self._egress.row_changed()

    def _set_node(self, name: str, node: KubeNode | None) -> None:
        """A node came, changed or went; this one's labels decide which host policies select it."""
        if node is None:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = node.labels
        if name == self._node:
            self._maps.set_host(node_view(self._nodes.get(name, {})))
            self._host_moved = True

    def _set_endpoint(self, number: int, endpoint: LocalEndpoint | None) -> None:
        before = self._endpoints.pop(number, None)
        if before is not None:
            self._of_pod[before.namespace, before.pod].discard(number)
        if endpoint is not None:
            self._endpoints[number] = endpoint
            self._of_pod.setdefault((endpoint.namespace, endpoint.pod), set()).add(number)
        self._egress.set_endpoint(number, endpoint)
        self._ipcache.set_endpoint(before, endpoint)
        self._identities.set_endpoint(number, endpoint)
        self._dirty.add(number)

    def _regroup(self, number: int) -> None:
        """Put an endpoint into the group that its identity and named ports make."""
        before = self._groups.pop(number, None)
        endpoint = self._endpoints.get(number)
        key = None
        if endpoint is not None:
            ports = {(port.name, port.protocol, port.port) for port in self._identities.pod_ports(endpoint)}
            key = self._groups[number] = GroupKey(endpoint.identity, tuple(sorted(ports)))
            self._maps.join(key, number)
        if before is not None and before != key:
            self._maps.leave(before, number)

    def _settle_host(self) -> set[int]:
        """The node is an endpoint while some policy selects it; its number if it is one no more."""
        if not self._host_moved:
            return set()
        self._host_moved = False
        selected = self._maps.selects_host()
        if selected and HOST_ENDPOINT not in self._groups:
            self._groups[HOST_ENDPOINT] = HOST_KEY
            self._maps.join(HOST_KEY, HOST_ENDPOINT)
        elif not selected and self._groups.pop(HOST_ENDPOINT, None) is not None:
            self._maps.leave(HOST_KEY, HOST_ENDPOINT)
            return {HOST_ENDPOINT}
        return set()

    def _write_endpoints(self, numbers: set[int]) -> list[Change]:
        """Write endpoints' policy; what some of them must look at before that."""
        looking: list[Change] = []
        for number in sorted(numbers):
            group = self._group(number)
            if group is not None:
                looking += self._tables.look(number, group.policy_id, group.flags())
            if number == HOST_ENDPOINT:
                known = (group.policy_id, group.revision, group.flags()) if group else (0, 0, EndpointFlags(0))
                self._tables.set_host(*known)
                continue
            self._tables.set_endpoint(
                number,
                self._endpoints.get(number),
                group.policy_id if group else 0,
                group.revision if group else 0,
                group.flags() if group else EndpointFlags(0),
            )
        return looking
