"""Numeric security identities: reserved numbers, ranges, and the labels behind them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NewType

from services.model.labels import SOURCE_RESERVED, Label, Labels

NumericIdentity = NewType("NumericIdentity", int)


class Reserved(IntEnum):
    """Identities with fixed numbers (policy-semantics 5.1). 0 is the wildcard in policy maps."""

    UNKNOWN = 0
    HOST = 1
    WORLD = 2
    UNMANAGED = 3
    HEALTH = 4
    INIT = 5
    REMOTE_NODE = 6
    KUBE_APISERVER = 7
    INGRESS = 8
    WORLD_IPV4 = 9
    WORLD_IPV6 = 10


CLUSTER_MIN = 256
CLUSTER_MAX = (1 << 24) - 1
"""Cluster identities use 24 bits, so that one fits the VXLAN network identifier."""
LOCAL_MIN = (1 << 24) + 1
LOCAL_MAX = (1 << 25) - 1
"""Node-local identities (CIDR, FQDN): meaningful on one node only, never sent on the wire."""
FQDN_MIN = LOCAL_MAX - (1 << 20) + 1
"""From here to LOCAL_MAX: sets of toFQDNs selectors that some name matches. Below: prefixes of policies."""
REFINED_MIN = (1 << 25) + 1
REFINED_MAX = (1 << 26) - 1
"""Parts of an identity that some rule on this node tells apart: keys of its policy map, nothing else."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A numeric identity and the labels it stands for."""

    id: NumericIdentity
    labels: Labels


def _reserved(*names: str) -> Labels:
    return Labels(Label(SOURCE_RESERVED, name) for name in names)


RESERVED_LABELS: dict[NumericIdentity, Labels] = {
    NumericIdentity(Reserved.HOST): _reserved("host"),
    NumericIdentity(Reserved.WORLD): _reserved("world"),
    NumericIdentity(Reserved.UNMANAGED): _reserved("unmanaged"),
    NumericIdentity(Reserved.HEALTH): _reserved("health"),
    NumericIdentity(Reserved.INIT): _reserved("init"),
    NumericIdentity(Reserved.REMOTE_NODE): _reserved("remote-node"),
    NumericIdentity(Reserved.KUBE_APISERVER): _reserved("kube-apiserver", "remote-node"),
    NumericIdentity(Reserved.INGRESS): _reserved("ingress"),
    NumericIdentity(Reserved.WORLD_IPV4): _reserved("world-ipv4"),
    NumericIdentity(Reserved.WORLD_IPV6): _reserved("world-ipv6"),
}


def is_reserved(identity: int) -> bool:
    """True for 1..255: reserved, well-known and user-reserved numbers."""
    return 0 < identity < CLUSTER_MIN


def is_cluster(identity: int) -> bool:
    """True for numbers that the identity service allocates."""
    return CLUSTER_MIN <= identity <= CLUSTER_MAX


def is_refined(identity: int) -> bool:
    """True for parts of an identity."""
    return REFINED_MIN <= identity <= REFINED_MAX


def is_local(identity: int) -> bool:
    """True for numbers that only this node knows."""
    return LOCAL_MIN <= identity <= LOCAL_MAX
