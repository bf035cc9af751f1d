"""Who may do what, by the role in the peer's certificate. Pure.

An agent speaks for its own node and no other: a stolen node cannot pass off its pods as another node's, nor drop
another node's references. People (`client`) and the relay only read.
"""

from __future__ import annotations

from services.common.errors import Denied
from services.common.tls import PeerIdentity

_READERS = frozenset({"agent", "client", "relay", "operator", "identity"})


def require_reader(peer: PeerIdentity | None) -> None:
    """May `peer` read? None is a plaintext connection, which only an explicit setting opens: it may do all."""
    if peer is not None and peer.role not in _READERS:
        raise Denied(f"role {peer.role!r} may not read identities")


def require_operator(peer: PeerIdentity | None) -> None:
    """May `peer` tidy up after nodes?"""
    if peer is not None and peer.role != "operator":
        raise Denied(f"role {peer.role!r} may not do this; it is the operator's")


def require_node(peer: PeerIdentity | None, node: str) -> None:
    """May `peer` change what belongs to `node`?"""
    if peer is None:
        return
    if peer.role != "agent":
        raise Denied(f"role {peer.role!r} may only read; changes are made by the agent of the node")
    if peer.node != node:
        raise Denied(f"node: the certificate is of node {peer.node!r}, it cannot act for {node!r}")
