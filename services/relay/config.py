"""What a relay can be told: file < environment (CILIATE_RELAY_...) < flags."""

from __future__ import annotations

import socket

from pydantic import Field

from services.common.config import BaseConfig


class Config(BaseConfig):
    """Stores the cluster's flows and answers Hubble's API."""

    listen: list[str] = Field(
        ["127.0.0.1:4245"], description="host:port or unix:///path of the gRPC services; may be given several times"
    )
    node_name: str = Field(
        default_factory=socket.gethostname, description="this relay's own name in node status messages"
    )
    capacity: int = Field(1_000_000, ge=1024, le=1 << 28, description="flows kept in memory, about 90 bytes each")
