"""Settings that change what policy documents mean or whether they are valid; the defaults are the field's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """`cluster` is the local cluster's name, put into peers that name none; '' turns that off."""

    cluster: str = "default"
    node_selectors: bool = False
    """Whether fromNodes / toNodes are allowed: they need an identity per node."""
    extended_protocols: bool = False
    """Whether a port entry may leave the port out."""
    icmp_rules: bool = True
