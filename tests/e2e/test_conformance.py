"""A sample of the conformance data through real packets: pods on two nodes, real TCP and UDP sockets.

The whole data runs against the engine in `tests/unit`; here is shown that what the engine says is what packets meet.
"""

from __future__ import annotations

import asyncio
import copy
import gzip
import ipaddress
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.common.pb.agent.v1 import agent_pb2, agent_pb2_grpc
from services.common.tls import channel
from tests.conftest import Tally
from tests.e2e.sockets import TCP, UDP, Probe, Servers, probe
from tests.integration.agent.cluster import NETNS, Cluster, Pod

DATA = Path(__file__).resolve().parents[3] / "shared" / "conformance"
PROBE_SECONDS = 0.4
"""How long a probe may take; one that should pass and does not is tried again until SETTLE_SECONDS are over."""
SETTLE_SECONDS = 20.0
NUMBERS = {6: TCP, 17: UDP}

NETWORK_POLICIES = {
    2: "selectors, ports and DNS both ways",
    20: "pods by label and namespaces by label",
    22: "ingress from an ipBlock with an exception",
    32: "egress to an ipBlock with an exception",
    120: "egress to pods or an ipBlock",
    138: "egress to a named port",
    146: "egress to a UDP port range",
    164: "ingress to a named port",
    170: "ingress to a TCP port range",
    194: "a policy deleted",
    200: "denied by the source, allowed by the destination",
    226: "a pod relabelled",
    228: "ingress and egress together, then deleted",
}
CILIUM_POLICIES = {
    "kubernetes/clusterwide/clusterscope-policy.yaml": "cluster-wide",
    "kubernetes/clusterwide/wildcard-from-endpoints.yaml": "cluster-wide UDP from everybody",
    "kubernetes/namespace/isolate-namespaces.yaml": "one namespace",
    "kubernetes/namespace/kubedns-policy.yaml": "egress UDP across namespaces",
    "l3/egress-default-deny/egress-default-deny.yaml": "egress denied by default",
    "l3/egress-deny/egress-deny.yaml": "a deny rule beside an allow",
    "l3/match-expressions/or-statement.yaml": "expressions",
    "l4/l3_l4_combined.yaml": "peer and port",
    "l4/l4_port_range.yaml": "a port range",
    "l4/multi_rule.yaml": "several rules",
    "l7/http/simple/l7.yaml": "HTTP: the handshake passes",
}

Flow = tuple[str, str, str, int]
"""(from, to, protocol, port)."""


def load(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    return json.loads(gzip.decompress(path.read_bytes())) if path.exists() else []


KNP = {case["id"]: case for case in load("networkpolicy-cases.json.gz")}
CNP = {case["file"].removeprefix("policies/"): case for case in reversed(load("cnp-cases.json.gz"))}

pytestmark = [
    pytest.mark.root,
    pytest.mark.etcd,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not (KNP and CNP), reason="needs the conformance data in ../shared/conformance"),
]


class Arena(Cluster):
    """Pods that come when a case needs them and stay; policies that replace each other."""

    def __init__(self) -> None:
        super().__init__()
        self.servers = Servers()
        self.applied: list[dict[str, Any]] = []
        self._namespaces: dict[str, Mapping[str, str]] = {}
        self._turn = 0

    def namespaces(self, wanted: Mapping[str, Mapping[str, str]]) -> None:
        for name, labels in wanted.items():
            if self._namespaces.get(name) != labels:
                self._namespaces[name] = labels
                metadata = {"name": name, "labels": dict(labels)}
                self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    async def pod(
        self, namespace: str, name: str, labels: Mapping[str, str], ports: Iterable[tuple[str, str, int]]
    ) -> Pod:
        """The pod, made where it is missing; its labels are what they are now. Ports are (name, protocol, number)."""
        declared = sorted(ports)
        known = self.pods.get(f"{namespace}-{name}")
        if known is None:
            turn = len(self.pods)
            known = Pod(name, self.nodes[turn % 2], f"{self.prefix}p{turn}", dict(labels), namespace=namespace)
            self.write(known, declared)
            await self.attach(known, key=f"{namespace}-{name}")
        known.labels = dict(labels)
        self.write(known, declared)
        self.servers.serve(NETNS / known.netns, {(protocol, number) for _, protocol, number in declared})
        return known

    def write(self, pod: Pod, ports: Iterable[tuple[str, str, int]]) -> None:
        """Say what a kubelet says of it."""
        declared = [{"name": name, "protocol": protocol, "containerPort": n} for name, protocol, n in ports if name]
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": dict(pod.labels)},
                "spec": {"nodeName": pod.node.name, "containers": [{"name": "server", "ports": declared}]},
                "status": {"phase": "Running", "podIPs": [{"ip": address} for address in pod.addresses]},
            }
        )

    async def policies(self, wanted: Iterable[Mapping[str, Any]]) -> None:
        """Exactly these policies are in force, on both nodes."""
        self._turn += 1
        for old in self.applied:
            self._path(old).unlink()
        self.applied = [copy.deepcopy(dict(each)) for each in wanted]
        for each in self.applied:
            # A name of its own: otherwise nobody could tell it from the version before.
            each["metadata"]["name"] += f"-{self._turn}"
            self.apply(each)
        names = {each["metadata"]["name"] for each in self.applied}
        until = asyncio.get_running_loop().time() + SETTLE_SECONDS
        while any([await self.known(node.target) != names for node in self.nodes]):
            assert asyncio.get_running_loop().time() < until, f"not every node knows {names}"
            await asyncio.sleep(0.02)

    @staticmethod
    async def known(target: str) -> set[str]:
        async with channel(target, None, "agent") as there:
            stub = agent_pb2_grpc.AgentServiceStub(there)  # type: ignore[no-untyped-call]
            answer = await stub.ListPolicies(agent_pb2.ListPoliciesRequest(), timeout=2)
        assert not [each.error for each in answer.policies if each.error]
        return {each.name for each in answer.policies}

    async def meet(self, expected: Mapping[Flow, bool], pods: Mapping[str, Pod], tally: Tally) -> None:
        """All packets meet what is expected, in one round; changes may take until SETTLE_SECONDS to arrive."""
        probes = [Probe(flow, NETNS / pods[flow[0]].netns, pods[flow[1]].ip, flow[2], flow[3]) for flow in expected]
        loop = asyncio.get_running_loop()
        until = loop.time() + SETTLE_SECONDS
        while True:
            found = await probe(probes, PROBE_SECONDS)
            wrong = {flow: passed for flow, passed in found.items() if passed != expected[flow]}
            if not wrong:
                break
            assert loop.time() < until, f"{len(wrong)} of {len(found)} probes, got {list(wrong.items())[:8]}"
        passed = sum(found.values())
        tally("conformance: flows that passed, as expected (real packets)", passed)
        tally("conformance: flows that were dropped, as expected (real packets)", len(found) - passed)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def arena() -> AsyncIterator[Arena]:
    async with Arena() as made:
        yield made
        made.servers.close()


@pytest.mark.parametrize("number", NETWORK_POLICIES, ids=lambda n: f"{n}-{NETWORK_POLICIES[n]}".replace(" ", "-"))
async def test_network_policy(number: int, arena: Arena, tally: Tally) -> None:
    for step in KNP[number]["steps"]:
        arena.namespaces(step["namespaces"])
        served = {(v["portName"], v["protocol"], v["port"]) for v in step["verdicts"] if v["protocol"] != "SCTP"}
        made = await asyncio.gather(
            *(arena.pod(each["namespace"], each["name"], each["labels"], served) for each in step["pods"])
        )
        names = [f"{each['namespace']}/{each['name']}" for each in step["pods"]]
        addresses = {each["ip"]: pod.ip for each, pod in zip(step["pods"], made, strict=True)}
        await arena.policies(moved(step["policies"] or (), addresses))
        expected = {
            (v["from"], v["to"], v["protocol"], v["port"]): v["ingressAllowed"] and v["egressAllowed"]
            for v in step["verdicts"]
            if v["protocol"] != "SCTP" and v["from"] != v["to"]
        }
        await arena.meet(expected, dict(zip(names, made, strict=True)), tally)
    tally("conformance: NetworkPolicy cases (real packets)", 1)


def moved(policies: Iterable[dict[str, Any]], addresses: Mapping[str, str]) -> list[dict[str, Any]]:
    """The policies with ipBlocks about the pods' addresses here: every pod is inside or outside as it was."""
    found = copy.deepcopy(list(policies))
    for policy in found:
        for rule in [*policy["spec"].get("ingress", ()), *policy["spec"].get("egress", ())]:
            for peer in [*(rule.get("from") or ()), *(rule.get("to") or ())]:
                if block := peer.get("ipBlock"):
                    outside = [here for there, here in addresses.items() if not inside(block, there)]
                    if len(outside) < len(addresses):
                        peer["ipBlock"] = {
                            "cidr": "10.244.0.0/16",
                            "except": [f"{each}/32" for each in sorted(outside)],
                        }
    return found


def inside(block: Mapping[str, Any], address: str) -> bool:
    """Whether an ipBlock of the data holds an address of the data."""
    at = ipaddress.ip_address(address)
    return at in ipaddress.ip_network(block["cidr"]) and not any(
        at in ipaddress.ip_network(each) for each in block.get("except") or ()
    )


@pytest.mark.parametrize("file", CILIUM_POLICIES, ids=lambda f: CILIUM_POLICIES[f].replace(" ", "-"))
async def test_cilium_policy(file: str, arena: Arena, tally: Tally) -> None:
    case = CNP[file]
    people = {i["id"]: found for i in case["identities"] if (found := person(i["labels"]))}
    reachable: dict[Flow, bool] = {}
    for entry in case["subjects"]:
        for verdict in entry["verdicts"]:
            pair = entry["subject"], verdict["peer"]
            if verdict["proto"] not in NUMBERS or pair[0] == pair[1] or not {*pair} <= people.keys():
                continue
            source, target = pair if verdict["dir"] == "egress" else reversed(pair)
            flow = str(source), str(target), NUMBERS[verdict["proto"]], verdict["port"]
            # Both ends must agree; `redirect` is allowed here, its requests are looked at later.
            reachable[flow] = reachable.get(flow, True) and verdict["verdict"] in ("allow", "redirect")
    arena.namespaces({namespace: {} for namespace, _ in people.values()})
    served = {("", protocol, port) for _, _, protocol, port in reachable}
    made = await asyncio.gather(
        *(arena.pod(namespace, f"c{hash_of(labels)}", labels, served) for namespace, labels in people.values())
    )
    await arena.policies([case["object"]])
    await arena.meet(reachable, dict(zip(map(str, people), made, strict=True)), tally)
    tally("conformance: Cilium policy cases (real packets)", 1)


def person(texts: Iterable[str]) -> tuple[str, dict[str, str]] | None:
    """(namespace, labels) of an identity that a pod of this cluster can have."""
    labels = dict(text.removeprefix("k8s:").split("=", 1) for text in texts if text.startswith("k8s:"))
    cluster, namespace = (
        labels.pop(key, "") for key in ("io.cilium.k8s.policy.cluster", "io.kubernetes.pod.namespace")
    )
    return (namespace, labels) if cluster == "default" and namespace else None


def hash_of(labels: Mapping[str, str]) -> str:
    """A pod name from labels: cases share pods."""
    return "-".join(f"{key}-{value}" for key, value in sorted(labels.items())).replace("/", "-").lower()
