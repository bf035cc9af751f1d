"""Every struct that C and Python share has the same fields at the same offsets: the compiler is asked."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from services.agent.abi import (
    config,
    conntrack,
    ct_room,
    egress,
    endpoints,
    events,
    ipcache,
    lb,
    metrics,
    names,
    nat,
    policy,
    process,
    refined,
    sock,
)

pytestmark = pytest.mark.root

# BCC in a child: LLVM stays mapped. Prints {table: {"key" | "leaf": [[field, offset, size], ...]}}.
DESCRIBE = """
import ctypes, json, os, sys, tempfile
from pathlib import Path
from services.agent.datapath import bcc_backend, program
with tempfile.TemporaryDirectory() as tree:
    bcc_backend._kernel_tree(Path(tree), program.SOURCE_DIR)
    os.environ["BCC_KERNEL_SOURCE"] = tree
    from bcc import BPF
    flags = ["-w", "-D__LINUX_BPF_H__", f"-I{tree}/include", "-I/usr/include"]
    b = BPF(text=program.amalgamate(program.SOURCE_DIR, "layout_check.c"), cflags=flags)
    def fields(t, base=0, prefix=""):
        out = []
        for name, kind, *_ in getattr(t, "_fields_", []):
            d = getattr(t, name)
            if hasattr(kind, "_fields_") and [f[0] for f in kind._fields_] != ["w"]:
                out += fields(kind, base + d.offset)
            else:
                out.append([name, base + d.offset, d.size])
        return out
    names = sys.argv[1:]
    print(json.dumps({n: {"key": fields(b[n].Key), "leaf": fields(b[n].Leaf)} for n in names}))
    sys.stdout.flush()
    os._exit(0)
"""

VALUES: dict[str, Any] = {
    "config": config.DatapathConfig,
    "endpoints": endpoints.EndpointInfo,
    "policy": policy.PolicyEntry,
    "ipcache": ipcache.RemoteEndpointInfo,
    "services": lb.ServiceInfo,
    "backends": lb.Backend,
    "revnat": lb.Revnat,
    "affinity": lb.AffinityEntry,
    "lay_lb_client": lb.LbClient,
    "lay_metric": metrics.Metric,
    "ct": conntrack.CtEntry,
    "nat_table": nat.NatEntry,
    "lay_nat_key": nat.NatKey,
    "netdevs": nat.NetdevInfo,
    "lay_ct_key": conntrack.CtKey,
    "egress_gateway": egress.EgressEntry,
    "lay_egress_key": egress.EgressKey,
    "ct_usage": ct_room.CtUsage,
    "lay_policy_key": policy.PolicyKey,
    "lay_ipcache_key": ipcache.IpcacheKey,
    "lay_service_key": lb.ServiceKey,
    "lay_backend_key": lb.BackendKey,
    "sockets": sock.SockEntry,
    "lay_sock_key": sock.SockKey,
    "lay_flow_event": events.FLOW_EVENT,
    "lay_event_lane": events.EVENT_LANE,
    "lay_http_event": events.HTTP_EVENT,
    "lay_name_event": events.NAME_EVENT,
    "names_config": names.NamesConfig,
    "fqdn_names": names.FqdnName,
    "lay_fqdn_slot": names.FqdnSlot,
    "dns_asked": names.DnsAsked,
    "listeners": process.Process,
    "process_config": process.ProcessSettings,
}
KEYS: dict[str, Any] = {
    "egress_gateway": egress.EgressKey,
    "ct": conntrack.CtKey,
    "nat_table": nat.NatKey,
    "no_masquerade": ipcache.IpcacheKey,
    "policy": policy.PolicyKey,
    "ipcache": ipcache.IpcacheKey,
    "refined": refined.RefinedKey,
    "services": lb.ServiceKey,
    "backends": lb.BackendKey,
    "sockets": sock.SockKey,
    "listeners": process.PortKey,
    "backend_slots": lb.BackendSlotKey,
    "maglev": lb.MaglevKey,
    "affinity": lb.AffinityKey,
    "source_ranges": lb.SourceRangeKey,
}


@pytest.fixture(scope="module")
def described() -> dict[str, dict[str, list[list[Any]]]]:
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE, *(VALUES | KEYS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def python_fields(layout: Any) -> list[list[Any]]:
    if isinstance(layout, np.dtype):
        assert layout.fields is not None
        return [[n, layout.fields[n][1], layout.fields[n][0].itemsize] for n in layout.names or ()]
    return [[n, getattr(layout, n).offset, getattr(layout, n).size] for n, *_ in layout._fields_]


@pytest.mark.parametrize("table", VALUES)
def test_values(described: dict[str, Any], table: str) -> None:
    assert described[table]["leaf"] == python_fields(VALUES[table])


@pytest.mark.parametrize("table", KEYS)
def test_keys(described: dict[str, Any], table: str) -> None:
    assert described[table]["key"] == python_fields(KEYS[table])


def test_numpy_views_are_the_same_structs() -> None:
    for dtype, struct in (
        (conntrack.CT_KEY, conntrack.CtKey),
        (conntrack.CT_ENTRY, conntrack.CtEntry),
        (sock.SOCK_KEY, sock.SockKey),
        (sock.SOCK_ENTRY, sock.SockEntry),
        (process.PROCESS, process.Process),
    ):
        assert python_fields(dtype) == python_fields(struct)
        assert dtype.itemsize == ctypes.sizeof(struct)
