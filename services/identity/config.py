"""What the identity service can be told; flat, as `services.common.config` reads it."""

from __future__ import annotations

from pydantic import Field, field_validator

from services.common.config import BaseConfig
from services.identity.keys import DEFAULT_ROOT
from services.model.identity import CLUSTER_MAX, CLUSTER_MIN


class Config(BaseConfig):
    """ciliate-identity: numbers for label sets, and the cluster's address table."""

    listen: list[str] = Field(["127.0.0.1:4250"], description="where to serve: host:port or unix:///path; repeatable")
    etcd_endpoints: list[str] = Field(["127.0.0.1:2379"], description="etcd members as host:port; repeatable")
    etcd_root: str = Field(DEFAULT_ROOT, description="prefix of all keys in etcd", pattern=r"^/[^\s]+$")
    etcd_timeout_seconds: float = Field(5.0, description="longest wait for an answer of etcd", gt=0, le=60)
    etcd_ca: str = Field("", description="authority of etcd's certificates (PEM); empty = plaintext to etcd")
    etcd_cert: str = Field("", description="client certificate for etcd (PEM)")
    etcd_key: str = Field("", description="its private key (PEM)")
    identity_min: int = Field(CLUSTER_MIN, description="smallest number given out", ge=CLUSTER_MIN, le=CLUSTER_MAX)
    identity_max: int = Field(CLUSTER_MAX, description="largest number given out", ge=CLUSTER_MIN, le=CLUSTER_MAX)
    lease_ttl_seconds: int = Field(
        900, description="how long references and endpoints of a silent node are kept", ge=2, le=86_400
    )
    grace_seconds: float = Field(900.0, description="how long an unreferenced identity is kept", gt=0)
    journal_changes: int = Field(100_000, description="recent changes kept for watchers that resume or lag", ge=100)
    backlog_revisions: int = Field(
        2_000, description="revisions of the past read at start, so that watchers can resume", ge=0
    )
    max_changes: int = Field(2_000, description="changing requests under way at once; more are refused", ge=1)

    @field_validator("listen", "etcd_endpoints")
    @classmethod
    def _not_empty(cls, values: list[str]) -> list[str]:
        if not values or not all(values):
            raise ValueError("at least one address is needed")
        return values
