"""Addresses as people write them: to listen on, and of servers to call.

Checked here because gRPC itself takes a port modulo 65536, and 443 for none: a typo would call somebody else
(https://github.com/grpc/grpc/blob/master/doc/naming.md).
"""

from __future__ import annotations

from typing import Annotated

import pydantic

from services.common.errors import Invalid

FORMS = "host:port, [IPv6]:port or unix:///path"


def is_port(text: str, least: int = 0) -> bool:
    """Whether decimal digits say a port from `least` on."""
    return text.isdecimal() and len(text) <= 5 and least <= int(text) < 65536


def split_address(address: str, field: str) -> tuple[str, int]:
    """("host", port) of "host:port" or "[v6]:port" to listen on; raises `Invalid` naming `field`."""
    host, colon, port = address.rpartition(":")
    if not colon or not is_port(port):
        raise Invalid(f"{field}: {address!r} is not host:port; ports are 0 to 65535")
    return host.strip("[]") or "0.0.0.0", int(port)


def check_target(field: str, target: str) -> str:
    """`target`; raises `Invalid` for what is neither host:port nor unix:///path."""
    fault = _fault(target)
    if fault:
        raise Invalid(f"{field}: {target!r} {fault}; write {FORMS}")
    return target


def _fault(target: str) -> str:
    if target.startswith("unix:"):
        return "" if target.removeprefix("unix:").strip("/") else "names no socket"
    if target.startswith(("dns:", "ipv4:", "ipv6:")):
        return ""
    host, _, port = target.rpartition(":")
    if not host or "/" in target or (":" in host and not (host[0] == "[" and host[-1] == "]")):
        return "is no address"
    return "" if is_port(port, 1) else "has no port from 1 to 65535"


def _optional(target: str) -> str:
    # k8s:// has a reader of its own (kube/locate.py).
    if target and not target.startswith("k8s://") and (fault := _fault(target)):
        raise ValueError(f"{target!r} {fault}; write {FORMS}")
    return target


TargetSetting = Annotated[str, pydantic.AfterValidator(_optional)]
"""A setting that names a server; empty = none."""
