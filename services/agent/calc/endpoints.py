"""The endpoint maps: which interface is which endpoint, the policy it obeys now, and what it may send per second."""

from __future__ import annotations

from dataclasses import dataclass

from services.agent.abi.endpoints import HOST_ENDPOINT, EndpointFlags, EndpointInfo
from services.agent.calc.maps import Change, MapName, Put, u32
from services.agent.calc.table import Table
from services.agent.calc.visibility import Visibility
from services.model.addresses import to_bytes
from services.model.bandwidth import Limits, read_limits
from services.model.identity import Reserved
from services.model.objects import LocalEndpoint, Pod


@dataclass(frozen=True, slots=True)
class Audit:
    """Where policy is only watched: verdicts are computed and told, and packets pass."""

    everywhere: bool = False
    namespaces: frozenset[str] = frozenset()

    def covers(self, endpoint: LocalEndpoint) -> bool:
        """Whether an endpoint is only audited."""
        return self.everywhere or endpoint.namespace in self.namespaces

    def __str__(self) -> str:
        if self.everywhere:
            return "everywhere"
        return f"namespaces {', '.join(sorted(self.namespaces))}" if self.namespaces else ""


class EndpointTables:
    """Keeps the desired content of the maps `endpoints`, `endpoint_addrs`, `endpoint_ifs`, `bandwidth` and
    `http_visible_pods`."""

    def __init__(self, audit: Audit) -> None:
        self.audit = audit
        self.visibility = Visibility()
        self.tables: dict[MapName, Table] = {
            name: Table(name) for name in ("endpoints", "endpoint_addrs", "endpoint_ifs", "bandwidth")
        }
        self.tables["http_visible_pods"] = self.visibility.table
        self._known: dict[int, LocalEndpoint] = {}
        self._limits: dict[tuple[str, str], Limits] = {}

    def look(self, number: int, policy_id: int, flags: EndpointFlags) -> list[Change]:
        """What makes an endpoint of this policy id look at parts of identities before it gets its new revision."""
        raw = self.tables["endpoints"].desired.get(u32(number))
        info = EndpointInfo.unpack(raw) if raw is not None else EndpointInfo()
        if info.policy_id != policy_id or info.flags | flags == info.flags:
            return []
        info.flags |= flags
        return [Put("endpoints", u32(number), info.pack())]

    def set_pod(self, name: tuple[str, str], pod: Pod | None) -> None:
        """A pod came, changed or went: what its annotations limit and ask for. `set_endpoint` makes it count."""
        self.visibility.set_pod(name, pod)
        limits = read_limits(pod.annotations)[0] if pod is not None else Limits()
        if limits != Limits():
            self._limits[name] = limits
        else:
            self._limits.pop(name, None)

    def set_host(self, policy_id: int, revision: int, flags: EndpointFlags) -> None:
        """Policies select the node, and it obeys these entries; with policy id 0 none does."""
        if not policy_id:
            self.tables["endpoints"].remove(u32(HOST_ENDPOINT))
            return
        if self.audit.everywhere:
            flags |= EndpointFlags.AUDIT
        info = EndpointInfo(
            identity=Reserved.HOST, policy_id=policy_id, policy_revision=revision, id=HOST_ENDPOINT, flags=flags
        )
        self.tables["endpoints"].put(u32(HOST_ENDPOINT), info.pack())

    def set_endpoint(
        self,
        number: int,
        endpoint: LocalEndpoint | None,
        policy_id: int,
        revision: int,
        flags: EndpointFlags = EndpointFlags(0),  # noqa: B008 - an immutable value
    ) -> None:
        """An endpoint came, went, or obeys other entries than before."""
        info = self.tables["endpoints"]
        addresses, interfaces = self.tables["endpoint_addrs"], self.tables["endpoint_ifs"]
        before = self._known.pop(number, None)
        if before is not None and before != endpoint:
            # What another endpoint has taken over meanwhile is not this one's to remove.
            for table, keys in ((addresses, _addresses(before)), (interfaces, {u32(before.ifindex)})):
                for key in keys:
                    if table.desired.get(key) == u32(number):
                        table.remove(key)
        if self.visibility.set_endpoint(number, endpoint):
            flags |= EndpointFlags.VISIBLE
        if endpoint is None:
            info.remove(u32(number))
            self.tables["bandwidth"].remove(u32(number))
            return
        limits = self._limits.get((endpoint.namespace, endpoint.pod), Limits())
        if limits.ingress:
            flags |= EndpointFlags.INGRESS_RATE
        if limits.egress:
            self.tables["bandwidth"].put(u32(number), limits.egress.to_bytes(8, "little"))
        else:
            self.tables["bandwidth"].remove(u32(number))
        self._known[number] = endpoint
        if self.audit.covers(endpoint):
            flags |= EndpointFlags.AUDIT
        info.put(u32(number), _info(endpoint, policy_id, revision, flags))
        interfaces.put(u32(endpoint.ifindex), u32(number))
        for key in _addresses(endpoint):
            addresses.put(key, u32(number))


def _addresses(endpoint: LocalEndpoint) -> set[bytes]:
    return {to_bytes(address) for address in endpoint.addresses}


def _info(endpoint: LocalEndpoint, policy_id: int, revision: int, flags: EndpointFlags) -> bytes:
    """The first address of each family is the one that packets are checked against and services answer from."""
    first = {address.version: to_bytes(address) for address in reversed(endpoint.addresses)}
    return EndpointInfo(
        ifindex=endpoint.ifindex,
        identity=endpoint.identity,
        policy_id=policy_id,
        policy_revision=revision,
        id=endpoint.id,
        flags=flags,
        mac=endpoint.mac,
        node_mac=endpoint.node_mac,
        ipv4=first.get(4, bytes(16)),
        ipv6=first.get(6, bytes(16)),
    ).pack()
