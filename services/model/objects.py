"""Kubernetes objects as the agent needs them: small, frozen, already validated.

Sources (a folder of manifests, the Kubernetes API) build these; calc consumes them. Policies keep their raw
document beside the key, because reading a policy is the business of `services.policy`, not of a source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.model.addresses import IPAddress, IPNetwork
from services.model.identity import Identity, NumericIdentity
from services.model.keys import ObjectKey
from services.model.services import EndpointSlice, HostPort, Service, ServicePort, SliceEndpoint

FINISHED = frozenset({"Succeeded", "Failed"})
"""Phases of a pod that runs no more, and whose addresses may be another's."""
POOL_ANNOTATION = "ipam.ciliate.io/pool"
"""On a pod, or on a namespace for all of its pods: the CiliatePodIPPool that addresses come from."""


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A declared container port; `name` may be empty. `protocol` is an IP protocol number."""

    name: str
    port: int
    protocol: int


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod. `addresses` may be empty until it has been given some; `node` until it is scheduled."""

    namespace: str
    name: str
    uid: str = ""
    node: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    service_account: str = "default"
    addresses: tuple[IPAddress, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    host_ports: tuple[HostPort, ...] = ()
    host_network: bool = False
    phase: str = "Pending"
    """Succeeded and Failed pods are no peers any more: their address may be used again."""
    workload: tuple[str, str] = ("", "")
    """(kind, name) of the owning workload, for flows."""

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("Pod", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace and its labels."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    pool: str = ""
    """Where its pods' addresses come from; '' = the default pool."""

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("Namespace", "", self.name)


@dataclass(frozen=True, slots=True)
class KubeNode:
    """A node of the cluster: labels that select it, the addresses it is reached by, the pod ranges it was given."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    addresses: tuple[IPAddress, ...] = ()
    pod_ranges: tuple[IPNetwork, ...] = ()

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("Node", "", self.name)


@dataclass(frozen=True, slots=True)
class PolicyObject:
    """A NetworkPolicy, Cilium(Clusterwide)NetworkPolicy or CiliumEgressGatewayPolicy, not yet read.

    `document` is the parsed manifest; `origin` says where it came from ("file:line", "kubernetes") for messages.
    """

    key: ObjectKey
    document: Mapping[str, Any]
    uid: str = ""
    origin: str = ""


@dataclass(frozen=True, slots=True)
class IpEntry:
    """A row of the cluster's address table: who owns a prefix and behind which node it lies.

    `tunnel` is None where the address is reached without the overlay (this node, the world).
    """

    prefix: IPNetwork
    identity: NumericIdentity
    node: str = ""
    tunnel: IPAddress | None = None
    namespace: str = ""
    pod: str = ""
    ports: tuple[ContainerPort, ...] = ()
    """Those with names."""
    workload: tuple[str, str] = ("", "")
    """(kind, name) of what the pod belongs to."""

    @property
    def key(self) -> IPNetwork:
        return self.prefix


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """A workload interface of this node.

    `policy_id` names the policy map entries it obeys; endpoints with equal identities share one.
    """

    id: int
    """1..65535, unique on the node."""
    namespace: str
    pod: str
    container_id: str
    ifindex: int
    ifname: str
    mac: bytes
    """The pod side's address: what frames to the pod are sent to."""
    node_mac: bytes
    """The host side's address: the pod's gateway."""
    addresses: tuple[IPAddress, ...]
    identity: NumericIdentity
    ports: tuple[ContainerPort, ...] = ()
    netns: str = ""
    peer_ifname: str = "eth0"
    workload: tuple[str, str] = ("", "")
    """(kind, name) of what the pod belongs to."""


KubeObject = Pod | Namespace | KubeNode | Service | EndpointSlice | PolicyObject


@dataclass(frozen=True, slots=True)
class Upserted:
    """An object exists with this content."""

    object: KubeObject


@dataclass(frozen=True, slots=True)
class Deleted:
    """An object is gone."""

    key: ObjectKey


@dataclass(frozen=True, slots=True)
class Synced:
    """A source has told everything that existed when it was asked: `source` may be trusted to be complete."""

    source: str


@dataclass(frozen=True, slots=True)
class IdentityUpserted:
    """A cluster identity exists."""

    identity: Identity


@dataclass(frozen=True, slots=True)
class IdentityDeleted:
    """A cluster identity was collected."""

    id: NumericIdentity


@dataclass(frozen=True, slots=True)
class IpUpserted:
    """The address table has this row."""

    entry: IpEntry


@dataclass(frozen=True, slots=True)
class IpDeleted:
    """The address table lost this row."""

    prefix: IPNetwork


@dataclass(frozen=True, slots=True)
class EndpointUpserted:
    """A workload interface of this node exists, with this content."""

    endpoint: LocalEndpoint


@dataclass(frozen=True, slots=True)
class EndpointDeleted:
    """A workload interface of this node is gone."""

    id: int


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """What this node has of addresses that others can answer to, by interface; the official ones first.

    `default`: the interface of the default route, '' where there is none. `devices`: those towards other nodes and the
    outside: what is on them the whole cluster knows as this node's, and node ports are there.
    """

    interfaces: Mapping[str, tuple[IPAddress, ...]]
    default: str = ""
    devices: tuple[str, ...] = ()

    def everywhere(self) -> frozenset[IPAddress]:
        """All of them: the host's."""
        return frozenset(address for have in self.interfaces.values() for address in have)

    def on_devices(self) -> tuple[IPAddress, ...]:
        """Those of `devices`, in their order, each once."""
        return tuple(dict.fromkeys(a for device in self.devices for a in self.interfaces.get(device, ())))


Update = (
    Upserted
    | Deleted
    | Synced
    | IdentityUpserted
    | IdentityDeleted
    | IpUpserted
    | IpDeleted
    | NodeAddresses
    | EndpointUpserted
    | EndpointDeleted
)
"""Everything that calc reacts to. Updates about one thing replace each other: only the latest counts."""

__all__ = [
    "FINISHED",
    "POOL_ANNOTATION",
    "ContainerPort",
    "Deleted",
    "EndpointDeleted",
    "EndpointSlice",
    "EndpointUpserted",
    "HostPort",
    "IdentityDeleted",
    "IdentityUpserted",
    "IpDeleted",
    "IpEntry",
    "IpUpserted",
    "KubeNode",
    "KubeObject",
    "LocalEndpoint",
    "Namespace",
    "ObjectKey",
    "Pod",
    "PolicyObject",
    "Service",
    "ServicePort",
    "SliceEndpoint",
    "Synced",
    "Update",
    "Upserted",
]
