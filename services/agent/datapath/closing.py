"""Close records of connections whose end no packet told: made of what is collected."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.agent.abi.events import EVENT_VERSION, FLOW_EVENT, EventType
from services.model.verdict import Direction
from services.model.verdict import Protocol as IpProtocol

Records = NDArray[Any]


def close_records(keys: Records, entries: Records, now_ns: int) -> Records:
    """What the kernel would have said had these connections ended before its eyes (`fill_connection` in trace.h)."""
    records = np.zeros(len(keys), FLOW_EVENT)
    opened = entries["direction"] == Direction.EGRESS
    icmp = (keys["protocol"] == IpProtocol.ICMP) | (keys["protocol"] == IpProtocol.ICMPV6)
    records["type"] = EventType.CLOSE
    records["version"] = EVENT_VERSION
    records["endpoint_id"] = entries["endpoint_id"]
    records["time_ns"] = now_ns
    records["saddr"] = np.where(opened[:, None], keys["local"], keys["remote"])
    records["daddr"] = np.where(opened[:, None], keys["remote"], keys["local"])
    source = np.where(opened, keys["local_port"], keys["remote_port"]).astype("<u2").byteswap()
    target = np.where(opened, keys["remote_port"], keys["local_port"]).astype("<u2").byteswap()
    records["sport"] = np.where(icmp, entries["tcp_flags"], source)
    records["dport"] = np.where(icmp, 0, target)
    records["protocol"] = keys["protocol"]
    records["tcp_flags"] = np.where(icmp, 0, entries["tcp_flags"])
    records["direction"] = entries["direction"]
    records["ct_state"] = 1
    records["src_identity"] = np.where(opened, entries["self_identity"], entries["peer_identity"])
    records["dst_identity"] = np.where(opened, entries["peer_identity"], entries["self_identity"])
    for name in ("rule_id", "policy_revision", "match_type", "service_id", "rtt_us", "retransmits", "l7_ruleset"):
        records[name] = entries[name]
    records["packets"] = entries["packets"]
    records["bytes"] = entries["bytes"]
    lifetime = (now_ns - entries["created_ns"].astype(np.int64)) // 1000
    records["duration_us"] = np.clip(lifetime, 0, 2**32 - 1)
    return records
