"""Ports whose requests the agent is asked to tell: what may be written there."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.agent.config import Config


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_what_is_no_port_is_named(port: int) -> None:
    with pytest.raises(ValidationError, match=f"{port} is no TCP port: write numbers from 1 to 65535"):
        Config(node_name="n", node_address="192.0.2.1", identity_target="x:1", http_visibility_ports=[80, port])
