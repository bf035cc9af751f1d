"""The checks of `./dev demo flows`, declared: every connection is told, nothing is lost, not by a dead relay either.
`scenario_flows.py` runs them."""

from __future__ import annotations

from services.sandbox.checks import POLICY, Check

CONNECTIONS = 200
"""Short connections of the client, one request each."""
LATER = 20
"""More of them, after the relay was killed."""

_ALL = "every connection, none lost"
TOLD = Check(_ALL, f"{CONNECTIONS} short connections", f"{CONNECTIONS} opened, {CONNECTIONS} closed, 0 lost")
REQUESTS = Check(_ALL, f"{CONNECTIONS} requests on them", f"{CONNECTIONS} with status 200 and latency")

_SUBSTANCE = "what a record knows"
COUNTERS = Check(_SUBSTANCE, "the end of a connection", "bytes both ways, handshake RTT, duration")
DECIDED = Check(_SUBSTANCE, "which policy refused", POLICY)
WHY = Check(_SUBSTANCE, "observe --explain", f"names {POLICY}")

_HISTORY = "history"
ON_DISK = Check(_HISTORY, "ciliate flows query: connections on disk", f"{CONNECTIONS}")
AFTERWARDS = Check(_HISTORY, "the relay was killed and is back: observe", f"{CONNECTIONS} as before")
FOLLOWED = Check(
    _HISTORY, "a follower's flows, over that", f"{CONNECTIONS} before, {LATER} after, none twice, none missing"
)

_COUNTED = "counted"
GROUPS = Check(_COUNTED, "observe --aggregate-by verdict", "FORWARDED and DROPPED")
NODES = Check(_COUNTED, "nodes that push to the relay", "node1, node2")

CHECKS = (TOLD, REQUESTS, COUNTERS, DECIDED, WHY, ON_DISK, AFTERWARDS, FOLLOWED, GROUPS, NODES)
