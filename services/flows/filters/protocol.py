"""`protocol`: names of L4 and L7 protocols, any case; the list is OR across both."""

from __future__ import annotations

import numpy as np

from services.common.pb.flow import flow_pb2
from services.flows.columns import Kind
from services.flows.filters.base import Condition, FilterError, isin

L4: dict[str, tuple[int, ...]] = {
    "icmp": (1, 58),
    "icmpv4": (1,),
    "icmpv6": (58,),
    "tcp": (6,),
    "udp": (17,),
    "sctp": (132,),
    "vrrp": (112,),
    "igmp": (2,),
}
L7: dict[str, tuple[int, ...]] = {"dns": (Kind.DNS_QUERY, Kind.DNS_ANSWER), "http": (Kind.HTTP,), "kafka": ()}


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set."""
    if not given.protocol:
        return []
    numbers: set[int] = set()
    kinds: set[int] = set()
    for value in given.protocol:
        name = value.lower()
        if name not in L4 and name not in L7:
            raise FilterError(f"protocol: unknown protocol {value!r}; known are {', '.join([*L4, *L7])}")
        numbers |= set(L4.get(name, ()))
        kinds |= set(L7[name]) if name in L7 else set()
    wanted = np.array(sorted(numbers), np.int64)
    of_kinds = np.array(sorted(kinds), np.int64)
    return [lambda rows: isin(rows["protocol"], wanted) | isin(rows["kind"], of_kinds)]
