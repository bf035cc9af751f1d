"""Where the collector is and how to speak to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from services.common.errors import Invalid
from services.common.targets import is_port


@dataclass(frozen=True, slots=True)
class Target:
    """An OTLP/gRPC endpoint."""

    address: str
    tls: bool
    ca: str = ""
    """PEM file of the collector's authority; empty = the system's."""
    metadata: tuple[tuple[str, str], ...] = ()

    def channel(self) -> grpc.aio.Channel:
        """Connects when it is used; the authority's file is read now."""
        if not self.tls:
            return grpc.aio.insecure_channel(self.address)
        roots = Path(self.ca).read_bytes() if self.ca else None
        return grpc.aio.secure_channel(self.address, grpc.ssl_channel_credentials(roots))


def parse(endpoint: str, headers: Sequence[str], ca: str) -> Target:
    """`https://host:port` (TLS) or `http://host:port` (plaintext), as OTEL_EXPORTER_OTLP_ENDPOINT has it.

    Raises `Invalid` naming the setting.
    """
    scheme, found, address = endpoint.partition("://")
    if not found or scheme not in ("http", "https"):
        raise Invalid(f"otlp_endpoint: {endpoint!r} must begin with http:// (plaintext) or https:// (TLS)")
    address = address.rstrip("/")
    host, _, port = address.rpartition(":")
    if not host or not is_port(port, 1) or "/" in address:
        raise Invalid(f"otlp_endpoint: {endpoint!r} is not of the form https://host:port")
    if ca and not Path(ca).is_file():
        raise Invalid(f"otlp_ca: there is no file {ca}")
    return Target(address, scheme == "https", ca, tuple(map(_header, headers)))


def _header(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    name = name.strip().lower()
    if not found or not name or not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
        raise Invalid(f"otlp_headers: {name!r} is not of the form name=value")
    if not value.isascii() or not value.isprintable():
        raise Invalid(f"otlp_headers: the value of {name!r} has characters that no header may have")
    return name, value.strip()
