"""What a large cluster weighs in an agent: objects as the API server tells them, through decoding and calculation.

Measured in a process of its own, by what is resident. The bounds leave a third for other machines' allocators; with
20,000 Services and 50,000 pods they come to 180 MB, besides what an agent without a cluster takes.
"""

from __future__ import annotations

import json
import subprocess
import sys

SERVICE_BYTES = 6_000
"""Of a Service with labels, a selector, two frontends (one is the wildcard) and a slice with two endpoints."""
POD_BYTES = 1_200
"""Of a row of the address table."""

PROGRAM = """
import ctypes, json, os
from services.agent.calc.engine import Engine
from services.agent.sources.decode import decode
from services.client.identity_watch import ip_entry
from services.common.pb.identity.v1.identity_pb2 import Endpoint
from services.model.objects import IpUpserted, Synced, Upserted

SERVICES, PODS = 4_000, 10_000


def resident():
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def metadata(name, labels):
    managed = [{"manager": "kubectl", "fieldsV1": {f"f:{n}": {} for n in range(50)}}]
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": "x" * 1000}
    return {"name": name, "namespace": "shop", "uid": f"{hash(name):x}", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": labels, "annotations": annotations, "managedFields": managed}


def documents(number):
    name, ports = f"service-{number}", [{"name": "http", "port": 80, "protocol": "TCP"}]
    spec = {"clusterIP": f"10.200.{number // 250}.{number % 250 + 1}", "ports": ports, "selector": {"app": name}}
    yield {"apiVersion": "v1", "kind": "Service", "metadata": metadata(name, {"app": name}), "spec": spec}
    endpoints = [
        {"addresses": [f"10.{100 + end}.{number // 250}.{number % 250}"], "nodeName": f"node-{number % 500}",
         "conditions": {"ready": True, "serving": True, "terminating": False}}
        for end in range(2)
    ]
    yield {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": ports,
           "metadata": metadata(f"{name}-x7x7x", {"kubernetes.io/service-name": name}), "endpoints": endpoints}


engine, known, entries = Engine("node-1", sources={"objects", "identities"}), {}, {}
for name in ("objects", "identities"):
    engine.apply(Synced(name))
engine.flush()
before = resident()
for number in range(SERVICES):
    for document in documents(number):
        thing = decode(json.loads(json.dumps(document)), origin="kubernetes")
        known[thing.key] = thing
        engine.apply(Upserted(thing))
engine.flush()
between = resident()
for number in range(PODS):
    node = number // 30
    row = Endpoint(prefix=f"10.{node // 250}.{node % 250}.{number % 30 + 1}/32", identity=256 + node % 100,
                   node=f"node-{node}", tunnel_endpoint=f"172.31.{node // 250}.{node % 250 + 1}",
                   namespace="shop", pod=f"web-{number}-abcde")
    entry = ip_entry(Endpoint.FromString(row.SerializeToString()))
    entries[entry.prefix] = entry
    engine.apply(IpUpserted(entry))
engine.flush()
after = resident()
assert engine.load_balancing.count() == SERVICES and engine.counts()["ipcache"] >= PODS
print(json.dumps({"service": (between - before) / SERVICES, "pod": (after - between) / PODS}))
"""


def test_what_services_and_pods_of_a_large_cluster_weigh() -> None:
    answer = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(answer.stdout)
    assert found["service"] < SERVICE_BYTES, found
    assert found["pod"] < POD_BYTES, found
