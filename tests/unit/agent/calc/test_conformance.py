"""Kubernetes NetworkPolicy verdicts of the public reference engine, through one engine per case, steps both ways."""

from __future__ import annotations

import gzip
import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest

from services.agent.calc.engine import Engine
from services.model.identity import Identity, NumericIdentity
from services.model.labels import Labels, pod_identity_labels
from services.model.objects import (
    ContainerPort,
    Deleted,
    EndpointDeleted,
    EndpointUpserted,
    IdentityUpserted,
    LocalEndpoint,
    ObjectKey,
    PolicyObject,
    Synced,
    Upserted,
)
from services.model.verdict import Direction, Protocol
from tests.conftest import Tally
from tests.unit.agent.calc.kernel import Kernel

PATH = Path(__file__).resolve().parents[5] / "shared" / "conformance" / "networkpolicy-cases.json.gz"
CASES: list[dict[str, Any]] = json.loads(gzip.decompress(PATH.read_bytes())) if PATH.exists() else []
PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}

pytestmark = pytest.mark.skipif(not CASES, reason="needs the conformance data in ../shared/conformance")


class Replay:
    """Leads one engine from one cluster state to the next."""

    def __init__(self) -> None:
        self.engine = Engine("node1", sources=())
        self.kernel = Kernel()
        self._identities: dict[Labels, NumericIdentity] = {}
        self._numbers: dict[str, int] = {}
        self._endpoints: dict[str, LocalEndpoint] = {}
        self._policies: dict[ObjectKey, dict[str, Any]] = {}

    def to(self, step: dict[str, Any]) -> None:
        wanted = {f"{pod['namespace']}/{pod['name']}": self._endpoint(pod, step) for pod in step["pods"]}
        for name in self._endpoints.keys() - wanted.keys():
            self.engine.apply(EndpointDeleted(self._endpoints.pop(name).id))
        for name, endpoint in wanted.items():
            if self._endpoints.get(name) != endpoint:
                self._endpoints[name] = endpoint
                self.engine.apply(EndpointUpserted(endpoint))
        policies = {
            ObjectKey(p["kind"], p["metadata"]["namespace"], p["metadata"]["name"]): p for p in step["policies"] or ()
        }
        for key in self._policies.keys() - policies.keys():
            self.engine.apply(Deleted(key))
        for key, document in policies.items():
            if self._policies.get(key) != document:
                self.engine.apply(Upserted(PolicyObject(key, document)))
        self._policies = policies
        self.engine.apply(Synced("x"))
        self.kernel.apply(self.engine.flush())

    def _endpoint(self, pod: dict[str, Any], step: dict[str, Any]) -> LocalEndpoint:
        name = f"{pod['namespace']}/{pod['name']}"
        labels = pod_identity_labels(pod["labels"], pod["namespace"], step["namespaces"].get(pod["namespace"], {}))
        if labels not in self._identities:
            number = self._identities[labels] = NumericIdentity(300 + len(self._identities))
            self.engine.apply(IdentityUpserted(Identity(number, labels)))
        flows = {(v["portName"], v["port"], v["protocol"]) for v in step["verdicts"] if v["to"] == name}
        number = self._numbers.setdefault(name, 1 + len(self._numbers))
        return LocalEndpoint(
            number,
            pod["namespace"],
            pod["name"],
            "",
            number,
            "",
            bytes(6),
            bytes(6),
            (ipaddress.ip_address(pod["ip"]),),
            self._identities[labels],
            tuple(ContainerPort(n, port, PROTOCOLS[protocol]) for n, port, protocol in sorted(flows)),
        )

    def check(self, step: dict[str, Any]) -> list[Any]:
        wrong = []
        for wanted in step["verdicts"]:
            source, target = self._endpoints[wanted["from"]], self._endpoints[wanted["to"]]
            flow = PROTOCOLS[wanted["protocol"]], wanted["port"]
            egress = self.kernel.verdict(source.id, Direction.EGRESS, target.identity, *flow)
            ingress = self.kernel.verdict(target.id, Direction.INGRESS, source.identity, *flow)
            # A pod can always reach itself: such packets never leave it.
            own = source == target
            got = (ingress[0] == "allow" or own, egress[0] == "allow" or own)
            if got != (wanted["ingressAllowed"] or own, wanted["egressAllowed"] or own):
                wrong.append((wanted, got))
        return wrong


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['id']}-{case['description'][:40]}")
def test_verdicts(case: dict[str, Any], tally: Tally) -> None:
    replay = Replay()
    steps = case["steps"]
    for step in [*steps, *steps[-2::-1]]:
        replay.to(step)
        assert not replay.check(step)
        assert {name: dict(found) for name, found in replay.engine.desired().items()} == replay.kernel.maps
    tally("conformance: NetworkPolicy cases (engine)", 1)
    tally("conformance: NetworkPolicy verdicts (engine)", 2 * sum(len(step["verdicts"]) for step in steps))
