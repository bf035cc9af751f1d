"""Mutual TLS between all processes; who a peer is comes from its certificate alone.

Servers read their files again when they change, so certificates are rotated without a restart. Channels read them
when they are made: clients that live long make a new channel when they reconnect.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from services.common import tracing
from services.common.errors import Denied, Invalid

STOCK_READERS = ".hubble-relay.cilium.io"
"""Hubble's own relay and its clients have certificates for names under this domain: readers of flows."""
ROLES = frozenset({"identity", "agent", "relay", "operator", "client", "etcd"})

_CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_receive_message_length", 64 << 20),
    # A channel of its own per client: a shared one keeps the certificates it was first made with.
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: the authority that peers must be signed by, our certificate chain, its key."""

    ca: str
    cert: str
    key: str

    def read(self) -> tuple[bytes, bytes, bytes]:
        """(ca, cert, key) contents; raises `Invalid` naming the file that cannot be read."""
        contents = []
        for name, path in (("tls_ca", self.ca), ("tls_cert", self.cert), ("tls_key", self.key)):
            try:
                with open(path, "rb") as file:
                    contents.append(file.read())
            except OSError as error:
                raise Invalid(f"{name}: cannot read {path}: {error.strerror}") from error
        return contents[0], contents[1], contents[2]

    def stamp(self) -> tuple[int, ...]:
        """Changes when any of the files is replaced."""
        found: list[int] = []
        for path in (self.ca, self.cert, self.key):
            status = os.stat(path)
            found += (status.st_mtime_ns, status.st_ino)
        return tuple(found)


def server_credentials(files: TlsFiles) -> Callable[[], grpc.ServerCredentials]:
    """Credentials that demand a client certificate and follow the files when they are replaced.

    A maker, not an object: each listening address needs its own, because gRPC hands the first configuration to the
    first listener alone.
    """
    files.read()  # a file that is missing is an error now, not at the first connection
    return lambda: _credentials(files)


def _credentials(files: TlsFiles) -> grpc.ServerCredentials:
    known = files.stamp()

    def configuration() -> Any:
        ca, cert, key = files.read()
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca)

    def changed() -> Any:
        nonlocal known
        try:
            stamp = files.stamp()
            if stamp == known:
                return None
            fresh = configuration()
        except (OSError, Invalid):
            return None  # mid-rotation: the certificate in use stays until the new one is whole
        known = stamp
        return fresh

    return grpc.dynamic_ssl_server_credentials(configuration(), changed, require_client_authentication=True)


def channel(target: str, files: TlsFiles | None, server_role: str) -> grpc.aio.Channel:
    """A channel to `target` ("host:port" or "unix:///path"); `files` None means plaintext.

    The server must present a certificate for `<server_role>.ciliate`, whatever address it is reached by.
    """
    if files is None:
        return grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS, interceptors=tracing.client_interceptors())
    ca, cert, key = files.read()
    credentials = grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)
    name = f"{server_role}.ciliate"
    options = [*_CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]
    return grpc.aio.secure_channel(target, credentials, options=options, interceptors=tracing.client_interceptors())


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who the other side of a call is, by its certificate. `node` is empty for roles that are not of a node."""

    role: str
    node: str


def peer_identity(context: Any) -> PeerIdentity | None:
    """The caller's identity, or None on a plaintext connection; raises `Denied` for a certificate without one."""
    properties = context.auth_context()
    if not properties.get("transport_security_type"):
        return None
    if b"ssl" not in properties["transport_security_type"]:
        return None
    names = [raw.decode("utf-8", "replace") for raw in properties.get("x509_subject_alternative_name", ())]
    for text in names:
        if text.startswith("ciliate://"):
            role, _, node = text.removeprefix("ciliate://").partition("/")
            if role in ROLES:
                return PeerIdentity(role, node)
    if any(name.endswith(STOCK_READERS) for name in names):
        return PeerIdentity("client", "")
    raise Denied("the client certificate names no role; it needs the URI SAN ciliate://<role>/<node>")
