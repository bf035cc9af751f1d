"""The agent's configuration: one flat model, read from file, environment and flags (`services.common.config`)."""

from __future__ import annotations

import ipaddress
from typing import Literal

import pydantic
from pydantic import Field

from services.agent.balancing import BalancingSettings
from services.agent.datapath.xdp import Mode
from services.agent.endpoints.ipam import parse_ranges
from services.agent.events.aggregation import Aggregation
from services.common.targets import TargetSetting
from services.flows.export.options import ExportOptions
from services.model.addresses import IPAddress, IPNetwork

VXLAN_OVERHEAD4, VXLAN_OVERHEAD6 = 50, 70
MIN_MTU, MAX_MTU = 1280, 65535
"""IPv6 does not work on links with less than 1280."""


class Config(BalancingSettings, ExportOptions):
    """ciliate-agent: policy, load balancing and the eBPF datapath of one node. Runs as root in the node's network."""

    node_name: str = Field("", description="this node's name, as Kubernetes knows it; needed")
    cluster_name: str = Field("default", description="the cluster's name, part of every identity")
    node_address: list[str] = Field(
        default_factory=list, description="this node's addresses, the overlay's first; one per flag; needed"
    )
    device: str = Field(
        "", description="interface towards the other nodes; empty = the one with the first node_address"
    )
    devices: list[str] = Field(
        default_factory=list, description="further interfaces towards the outside; they get the same programs"
    )
    pod_cidr4: str = Field("", description="this node's IPv4 pod range; empty = no IPv4")
    pod_cidr6: str = Field("", description="this node's IPv6 pod range; empty = no IPv6")
    pod_cidrs: list[str] = Field(default_factory=list, description="further pod ranges of this node")
    ipam: Literal["static", "kubernetes", "cluster-pool"] = Field(
        "static",
        description="this node's pod ranges: out of this configuration, its Node (spec.podCIDRs), or its CiliateNode",
    )
    default_pool: str = Field("default", description="pool of pods that name none, with ipam: cluster-pool")
    cluster_pod_cidr: list[str] = Field(
        default_factory=list,
        description="pod ranges of the whole cluster, for the node's own routes; empty = a route per remote pod",
    )
    routing_mode: Literal["tunnel", "native"] = Field(
        "tunnel", description="pods' packets between nodes: encapsulated, or routed by the network as they are"
    )
    auto_direct_node_routes: bool = Field(
        False, description="with native routing: install routes to the pod ranges of the nodes on the same link"
    )
    mtu: int = Field(
        0, description="MTU of pod interfaces; 0 = the device's, less the overlay's headers, and follows it", ge=0
    )
    bandwidth: Literal["auto", "edt", "tbf"] = Field(
        "auto",
        description="limits of what pods send: by departure times where the uplink's queue is fq (edt puts it there), "
        "else by a token bucket at the pod",
    )
    overlay_device: str = Field("ciliate_vxlan", description="name of the VXLAN interface")
    tunnel_port: int = Field(8472, description="UDP port of the overlay", ge=1, le=65535)
    masquerade: bool = Field(True, description="pods' packets to outside of the cluster leave with the node's address")
    north_south: bool = Field(
        True, description="serve node ports, load balancers, external addresses and host ports to the outside"
    )
    xdp: Mode = Field(
        Mode.AUTO,
        description="serve the outside in devices' drivers: auto = physical ones that can, native, generic, off",
    )
    native_routing_cidr: list[str] = Field(
        default_factory=list, description="ranges that know the way to pods: no masquerading towards them"
    )
    masquerade_exclude: list[str] = Field(
        default_factory=list, description="further ranges outside of the cluster that see pods' own addresses"
    )
    nat_ports: str = Field(
        "32768-65535", description="ports that connections get which share the node's address, first-last"
    )
    nat_max: int = Field(131_072, description="entries of the translation table, two per connection", ge=1024)
    identity_target: TargetSetting = Field(
        "", description="identity service: host:port, unix:///path or k8s://namespace/service:port; needed"
    )
    reference_check_seconds: float = Field(
        60.0,
        description="between looks for identities that this node holds in the identity service and nobody uses",
        gt=0,
    )
    relay_target: TargetSetting = Field(
        "", description="relay: host:port or unix:///path; empty = flows stay on the node"
    )
    tls_from: Literal["files", "kubernetes"] = Field(
        "files",
        description="who makes the certificate: somebody who put the tls_ files there, or this agent asks the "
        "cluster's operator by a CertificateSigningRequest and writes them",
    )
    observe_only: bool = Field(
        False,
        description="only watch, beside another network: flows of its pods; nothing is policed or changed",
    )
    observe_interfaces: list[str] = Field(
        ["veth*", "cali*", "lxc*", "eni*", "azv*", "gke*"],
        description="with observe_only: host sides of pods' interfaces, as patterns",
    )
    source: Literal["folder", "kubernetes"] = Field("kubernetes", description="where objects come from")
    objects_dir: str = Field("", description="folder of manifests, for source folder")
    kubeconfig: str = Field("", description="kubeconfig file, for source kubernetes; empty = the service account")
    identity_label_patterns: list[str] = Field(
        default_factory=list, description="regular expressions of labels that make identities; '!' first excludes"
    )
    run_dir: str = Field("", description="sockets and state; empty = /run/ciliate/<node_name>")
    cni_socket: str = Field("", description="unix socket of the CNI plugin; empty = <run_dir>/cni.sock")
    cni_bin_dir: str = Field("", description="put the CNI plugin into this folder; empty = do not")
    cni_conf_dir: str = Field("", description="put the network configuration into this folder; empty = do not")
    cni_chain: list[Literal["portmap", "bandwidth"]] = Field(
        default_factory=list, description="plugins to call after ours, which the runtime must have"
    )
    agent_socket: str = Field("", description="unix socket of introspection; empty = <run_dir>/agent.sock")
    hubble_socket: str = Field("", description="unix socket of the node's flow API; empty = <run_dir>/hubble.sock")
    hubble_address: str = Field("", description="host:port of the node's flow API; empty = none")
    bpffs_root: str = Field(
        "", description="where maps and programs are pinned; empty = /sys/fs/bpf/ciliate/<node_name>"
    )
    cache_dir: str = Field("/var/cache/ciliate", description="compiled programs by source hash; empty = compile always")
    policy_enforcement: Literal["default", "always", "never"] = Field(
        "default", description="when endpoints are policed: once a policy selects them, always, or never"
    )
    policy_audit_mode: bool = Field(
        False, description="tell what policy would refuse (verdict AUDIT), but let everything pass"
    )
    policy_audit_namespaces: list[str] = Field(
        default_factory=list, description="audit mode for the pods of these namespaces only"
    )
    host_firewall: bool = Field(
        True, description="enforce policies that select this node (nodeSelector); off: a way back into a closed node"
    )
    http_visibility_ports: list[int] = Field(
        default_factory=list,
        description="TCP ports of pods whose HTTP requests are told without any policy; nothing is refused there",
        max_length=256,
    )
    http_trace_context: bool = Field(
        True,
        description="tell which trace a request says it belongs to: the ids and flags of its traceparent",
    )
    fqdn_min_ttl: float = Field(0, description="seconds that addresses of DNS names count at least", ge=0)
    fqdn_grace: float = Field(10, description="seconds that they count beyond their TTL", ge=0)
    fqdn_max: int = Field(32_768, description="addresses that DNS names are known for; half as many names", ge=1024)
    tls_max: int = Field(16_384, description="TLS connections under serverNames rules that are remembered", ge=1024)
    policy_max: int = Field(262_144, description="entries of the policy map", ge=1024)
    ct_max: int = Field(262_144, description="entries of the connection table", ge=1024)
    ct_quota: int = Field(
        -1, description="established connections of one pod; 0 = no quota, -1 = a quarter of ct_max", ge=-1
    )
    ipcache_max: int = Field(524_288, description="entries of the address table", ge=1024)
    socket_lb: Literal["auto", "on", "off"] = Field(
        "auto",
        description="connect sockets to Services' backends, instead of translating packets; auto: where possible",
    )
    cgroup_root: str = Field(
        "",
        description="cgroup2 directory whose processes that concerns; empty = all, where the whole tree is mounted",
    )
    socket_lb_max: int = Field(131_072, description="sockets whose Service is remembered", ge=1024)
    flow_capacity: int = Field(131_072, description="flows kept on the node", ge=1024)
    flow_buffer_bytes: int = Field(32 << 20, description="bound of what waits for the relay", ge=1 << 20)
    flow_aggregation: Aggregation = Field(
        Aggregation.CONNECTIONS,
        description="flows of a connection: packets = one per packet, connections = its opening, counters and end, "
        "summaries = its end alone; drops, refusals and requests are always told",
    )
    hubble_metrics: list[str] = Field(
        [],
        description="metric groups of this node's flows, as the relay's setting; none where the relay counts",
    )
    hubble_metrics_series: int = Field(
        10_000, ge=16, description="series per metric; more are counted under `other` and told"
    )
    flow_processes: bool = Field(True, description="tell which process is behind a local endpoint's socket")
    flow_interval: float = Field(10.0, description="seconds between records of a live connection", ge=0.1)

    @pydantic.field_validator("http_visibility_ports")
    @classmethod
    def _ports(cls, ports: list[int]) -> list[int]:
        for port in ports:
            if not 0 < port < 1 << 16:
                raise ValueError(f"{port} is no TCP port: write numbers from 1 to 65535")
        return ports

    @pydantic.model_validator(mode="after")
    def _complete(self) -> Config:
        for name in ("node_name", "node_address", "identity_target"):
            if not getattr(self, name):
                raise ValueError(f"{name} is needed")
        if self.source == "folder" and not self.objects_dir:
            raise ValueError("objects_dir is needed with source: folder")
        if self.ipam == "static" and not self.pod_ranges and not self.observe_only:
            raise ValueError("pod_cidr4 or pod_cidr6 is needed with ipam: static")
        if self.ipam != "static" and self.source != "kubernetes":
            raise ValueError(f"ipam: {self.ipam} needs source: kubernetes; or write the ranges here with ipam: static")
        if self.dsr_port:
            self._check_dsr_port()
        if self.auto_direct_node_routes and not self.native_routing:
            raise ValueError("auto_direct_node_routes needs routing_mode: native; remove it or set that")
        if self.mtu and not MIN_MTU <= self.mtu <= MAX_MTU:
            raise ValueError(f"mtu: {self.mtu} is out of range; choose {MIN_MTU} to {MAX_MTU}, or 0")
        # Both are parsed here so that a typo is an error of the configuration, not of a later moment.
        assert self.addresses is not None
        assert self.cluster_ranges is not None
        assert self.load_balancing is not None
        assert self.excluded_ranges is not None
        assert self.nat_port_range is not None
        return self

    def _check_dsr_port(self) -> None:
        if self.dsr_port == self.tunnel_port:
            raise ValueError(f"lb_dsr_geneve_port: {self.dsr_port} is the overlay's, too; change it or tunnel_port")
        first, last = self.load_balancing.node_ports
        if first <= self.dsr_port <= last:
            raise ValueError(
                f"lb_dsr_geneve_port: {self.dsr_port} is within node_port_range {first}-{last}; change one of them"
            )

    @property
    def dsr_port(self) -> int:
        """UDP port on which nodes tell one another what clients addressed; 0: they do not do it by UDP."""
        return self.lb_dsr_geneve_port if self.lb_dsr_dispatch == "geneve" and self.north_south else 0

    @property
    def pod_ranges(self) -> tuple[IPNetwork, ...]:
        """The node's pod ranges, as far as they are known."""
        return self.static_ranges + parse_ranges(self.pod_cidrs, "pod_cidrs")

    @property
    def static_ranges(self) -> tuple[IPNetwork, ...]:
        """Those that were configured, IPv4 first."""
        four = parse_ranges([self.pod_cidr4] if self.pod_cidr4 else [], "pod_cidr4")
        six = parse_ranges([self.pod_cidr6] if self.pod_cidr6 else [], "pod_cidr6")
        return four + six

    @property
    def cluster_ranges(self) -> tuple[IPNetwork, ...]:
        """The whole cluster's pod ranges, where they were given."""
        return parse_ranges(self.cluster_pod_cidr, "cluster_pod_cidr")

    @property
    def excluded_ranges(self) -> tuple[IPNetwork, ...]:
        """Destinations outside of the cluster that see pods' own addresses."""
        native = parse_ranges(self.native_routing_cidr, "native_routing_cidr")
        return native + parse_ranges(self.masquerade_exclude, "masquerade_exclude")

    @property
    def nat_port_range(self) -> tuple[int, int]:
        """First and last port for connections that share the node's address."""
        first, _, last = self.nat_ports.partition("-")
        if not (first.isdecimal() and last.isdecimal() and 1024 <= int(first) <= int(last) <= 65535):
            raise ValueError(f"nat_ports: {self.nat_ports!r} is no range within 1024-65535, such as 32768-65535")
        return int(first), int(last)

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """The node's own addresses; the first one is its end of the overlay."""
        try:
            return tuple(ipaddress.ip_address(text) for text in self.node_address)
        except ValueError as error:
            raise ValueError(f"node_address: {error}") from error

    @property
    def connections_per_pod(self) -> int:
        """Established connections that one pod may have; 0 = as many as it likes."""
        return self.ct_max // 4 if self.ct_quota < 0 else self.ct_quota

    def place(self, value: str, default: str) -> str:
        """A path below `run_dir` unless `value` says otherwise."""
        return value or f"{self.run_dir or f'/run/ciliate/{self.node_name}'}/{default}"

    @property
    def pins(self) -> str:
        """Where this node's maps and programs are pinned."""
        return self.bpffs_root or f"/sys/fs/bpf/ciliate/{self.node_name}"

    @property
    def native_routing(self) -> bool:
        """Whether the network itself carries pods' packets."""
        return self.routing_mode == "native"

    @property
    def overhead(self) -> int:
        """Bytes that are put around a pod's packet on its way to another node."""
        if self.native_routing:
            return 0
        return VXLAN_OVERHEAD4 if self.addresses[0].version == 4 else VXLAN_OVERHEAD6

    def path_mtu(self, device_mtu: int) -> int:
        """The largest packet of a pod that fits through a device, with what is put around it."""
        return device_mtu - self.overhead

    def pod_mtu(self, device_mtu: int) -> int:
        """MTU of pod interfaces. A larger one than the way to other nodes is for pods of one node; others are told."""
        return self.mtu or self.path_mtu(device_mtu)
