"""What the operator can be told; flat, as `services.common.config` reads it."""

from __future__ import annotations

import socket
from typing import Literal

from pydantic import Field, model_validator

from services.common.config import BaseConfig
from services.common.targets import TargetSetting
from services.operator import pools
from services.operator.leader import WRITE_SECONDS, Timing
from services.operator.ranges import Pool


class Config(BaseConfig):
    """ciliate-operator: what a cluster needs done once: kinds, pod ranges, addresses for Services, tidying."""

    kubeconfig: str = Field("", description="kubeconfig file; empty = the service account")
    namespace: str = Field("kube-system", description="where the lease is, and the agents' pods", min_length=1)
    lease_name: str = Field("ciliate-operator", description="name of the lease that makes a replica the leader")
    replica_name: str = Field("", description="this replica, unique; empty = the host's name")
    lease_seconds: float = Field(15.0, description="after so long a silent leader is replaced", ge=1)
    renew_seconds: float = Field(10.0, description="after so long without renewal a leader stops", gt=0)
    retry_seconds: float = Field(2.0, description="between attempts to get or renew the lease", gt=0)
    install_definitions: bool = Field(True, description="install and upgrade the kinds that are needed")
    ipam: Literal["cluster-pool", "kubernetes", "off"] = Field(
        "cluster-pool",
        description="pod ranges of nodes: out of pools, or as the controller manager writes them into Nodes",
    )
    cluster_pool_cidr: list[str] = Field(
        default_factory=lambda: ["10.244.0.0/16"], description="ranges of the default pool, of both IP versions"
    )
    cluster_pool_mask_size4: int = Field(24, description="prefix length of a node's IPv4 block", ge=16, le=30)
    cluster_pool_mask_size6: int = Field(120, description="prefix length of a node's IPv6 block", ge=112, le=126)
    default_pool: str = Field("default", description="pool of pods that name none", min_length=1)
    load_balancers: bool = Field(True, description="addresses for Services out of CiliumLoadBalancerIPPools")
    remove_taints: bool = Field(True, description="take the taint from nodes whose agent is ready")
    agent_labels: str = Field("app.kubernetes.io/name=ciliate-agent", description="labels of the agents' pods")
    certificates: Literal["authority", "requests", "off"] = Field(
        "off",
        description="certificates of our own processes: keep an authority in Secrets and sign with it; sign agents' "
        "requests with a Secret ciliate-ca that somebody else keeps; nothing",
    )
    certificate_days: int = Field(90, description="how long a certificate lasts", ge=1, le=3650)
    etcd_addresses: list[str] = Field(
        default_factory=list, description="addresses of our own etcd's members, for its certificate; empty = none"
    )
    identity_target: TargetSetting = Field(
        "", description="identity service: host:port, unix:///path or k8s://namespace/service:port; empty = none"
    )
    endpoint_objects: Literal["endpoints", "slices", "off"] = Field(
        "endpoints", description="what `kubectl get` shows of pods: an object each, a hundred in one, nothing"
    )
    endpoint_writes: int = Field(20, description="objects about endpoints written per second at most", ge=1)
    node_grace_seconds: float = Field(
        60.0, description="after so long the identity service forgets a node that the API server has not", gt=0
    )
    leak_seconds: float = Field(600.0, description="after so long a reference without pods counts as leaked", gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        assert self.timing
        if self.timing.renew + WRITE_SECONDS > self.timing.lease:
            raise ValueError(
                f"renew_seconds: a write may take {WRITE_SECONDS:g} s, so it must be at most "
                f"{self.timing.lease - WRITE_SECONDS:g} with lease_seconds {self.timing.lease:g}"
            )
        if self.ipam == "cluster-pool":
            assert self.pool
        return self

    @property
    def timing(self) -> Timing:
        """Of the election."""
        return Timing(self.lease_seconds, self.renew_seconds, self.retry_seconds)

    @property
    def replica(self) -> str:
        """Who this is."""
        return self.replica_name or socket.gethostname()

    @property
    def pool(self) -> Pool | None:
        """The default pool, where the configuration has one."""
        if self.ipam != "cluster-pool" or not self.cluster_pool_cidr:
            return None
        sizes = {4: self.cluster_pool_mask_size4, 6: self.cluster_pool_mask_size6}
        return pools.configured_pool(self.default_pool, self.cluster_pool_cidr, sizes)
