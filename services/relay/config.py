"""What a relay can be told: file < environment (CILIATE_RELAY_...) < flags."""

from __future__ import annotations

import socket

from pydantic import Field

from services.flows.export.options import ExportOptions
from services.flows.metrics.config import ALL
from services.relay.export.wanted import Wanted


class Config(ExportOptions):
    """Stores the cluster's flows and answers Hubble's API."""

    listen: list[str] = Field(
        ["127.0.0.1:4245"], description="host:port or unix:///path of the gRPC services; may be given several times"
    )
    web_address: str = Field(
        "",
        description="host:port of the page and its API, :port = loopback; elsewhere with TLS and client certificates;"
        " empty = none",
    )
    node_name: str = Field(
        default_factory=socket.gethostname, description="this relay's own name in node status messages"
    )
    hubble_metrics: list[str] = Field(
        list(ALL), description="metric groups with options, as the field writes them: drop, flow:sourceContext=pod|ip"
    )
    hubble_metrics_series: int = Field(
        10_000, ge=16, description="series per metric; more are counted under `other` and told"
    )
    history_dir: str = Field(
        "", description="folder for flows on disk (Parquet), read by queries and by SQL; empty = memory only"
    )
    history_max_mb: int = Field(4096, ge=16, description="disk space for flows, MiB; the oldest go first")
    history_max_age: float = Field(14 * 86_400, gt=0, description="seconds after which flows on disk are removed")
    history_flush: float = Field(10, gt=0, description="seconds between writes: what a killed relay may lose")
    otlp_endpoint: str = Field(
        "", description="OpenTelemetry collector, http://host:port (plaintext) or https://host:port; empty = none"
    )
    otlp_headers: list[str] = Field([], description="name=value, sent with every export")
    otlp_ca: str = Field("", description="PEM file of the collector's authority; empty = the system's")
    otlp_flows: Wanted = Field(
        Wanted.DROPS, description="flows sent as log events: none, drops, policed (a policy decided) or all"
    )
    otlp_traces: float = Field(
        0,
        ge=0,
        le=1,
        description="share of HTTP requests that are sent as spans: 0 = none, 1 = all; one with a traceparent is "
        "sent if that says that its trace is sampled, whatever the share above 0",
    )
    otlp_interval: float = Field(15, gt=0, description="seconds between exports of metrics")
    capacity: int = Field(1_000_000, ge=1024, le=1 << 28, description="flows kept in memory, about 50 bytes each")
