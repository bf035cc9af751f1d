"""The CNI plugin, as installed by a real agent and called by a runtime: every verb, with chained plugins, and when
things are gone."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.agent.cni_files import CONFLIST, PLUGIN
from services.agent.datapath import tcx
from tests.datapath.node import inside
from tests.integration.agent.cluster import NETNS, Cluster, Pod, in_pod, sh
from tests.integration.agent.reach import eventually

pytestmark = [pytest.mark.root, pytest.mark.etcd]

VALID = "cni.dev/valid-attachments"
OTHERS = Path("/usr/lib/cni")
"""Where Debian puts the reference plugins."""


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    folders = {"cni_bin_dir": str(tmp_path / "bin"), "cni_conf_dir": str(tmp_path / "net.d")}
    async with Cluster(nodes=1, **folders, cni_chain=["portmap", "bandwidth"]) as cluster:
        yield cluster


def attachment(pod: Pod) -> dict[str, str]:
    return {"containerID": f"container-{pod.netns}", "ifname": "eth0"}


async def add(cluster: Cluster, name: str) -> tuple[Pod, dict[str, Any]]:
    """A pod and the result of its ADD."""
    pod = Pod(name, cluster.nodes[0], f"{cluster.prefix}{name}", {"app": name})
    cluster.pod_object(name, pod.node, pod.labels)
    sh(f"ip netns add {pod.netns}")
    cluster.pods[name] = pod
    status, result = await cluster.cni("ADD", pod)
    assert status == 0, result
    pod.addresses = [entry["address"].partition("/")[0] for entry in result["ips"]]
    return pod, result


async def test_every_verb(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    one, result = await add(cluster, "one")
    assert in_pod(one, "ping", "-c1", "-W2", node.addresses[0]).returncode == 0
    again = await cluster.cni("ADD", one)
    assert again == (0, result), "twice is once"
    assert await cluster.cni("CHECK", one, prevResult=result) == (0, {})
    assert await cluster.cni("STATUS", one) == (0, {})
    two, _ = await add(cluster, "two")
    assert await cluster.cni("GC", one, **{VALID: [attachment(two)]}) == (0, {})
    assert (await cluster.status(node)).endpoints == 1
    assert in_pod(one, "ip", "link", "show", "eth0").returncode != 0
    status, answer = await cluster.cni("CHECK", one, prevResult=result)
    assert (status, answer["code"]) == (1, 3)

    # Somebody took it away behind the agent's back; then the namespace itself is gone.
    sh("ip link del eth0", two.netns)
    assert (await cluster.cni("CHECK", two))[1]["code"] == 3
    status, mended = await cluster.cni("ADD", two)
    assert (status, in_pod(two, "ping", "-c1", "-W2", node.addresses[0]).returncode) == (0, 0)
    assert len(mended["ips"]) == 2
    sh(f"ip netns del {two.netns}")
    assert (await cluster.cni("CHECK", two))[0] == 1
    assert await cluster.cni("DEL", two) == (0, {})
    assert await cluster.cni("DEL", two) == (0, {}), "gone is gone"
    status, answer = await cluster.cni("ADD", two)
    assert (status, answer["code"]) == (1, 4)
    assert "netns" in answer["msg"]
    assert (await cluster.status(node)).endpoints == 0

    # The node's own network is no pod's.
    sh(f"ip netns add {two.netns}")
    stranger = Pod("two", node, node.netns, {})
    status, answer = await cluster.cni("ADD", stranger)
    assert (status, answer["code"]) == (1, 4)
    assert "the node's own network" in answer["msg"]
    taken = sh("ip -o link", two.netns)
    sh("ip link add eth0 type veth peer name other", two.netns)
    status, answer = await cluster.cni("ADD", two)
    assert (status, answer["code"]) == (1, 101)
    assert "eth0" not in taken
    assert not re.search(r"\bcil[0-9a-f]{11}", sh("ip -o link", node.netns)), "nothing is left of what failed"


async def test_while_the_agent_is_away(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    pod, _ = await add(cluster, "one")
    await cluster.kill_agent(node, signal.SIGKILL)
    for verb, code in (("ADD", 11), ("CHECK", 11), ("STATUS", 50), ("GC", 11)):
        status, answer = await cluster.cni(verb, pod, **{VALID: []})
        assert (status, answer["code"]) == (1, code)
        assert "does not answer on" in answer["msg"]
    assert in_pod(pod, "ping", "-c1", "-W2", node.addresses[0]).returncode == 0
    assert await cluster.cni("DEL", pod) == (0, {})
    assert list((node.run_dir / "cni-queue").iterdir())
    await cluster.start_agent(node)
    await cluster.ready(node)

    async def worked_off() -> bool:
        return not list((node.run_dir / "cni-queue").iterdir())

    await eventually(worked_off)
    assert (await cluster.status(node)).endpoints == 0
    assert (await cluster.cni("ADD", pod))[0] == 0


class Runtime:
    """Calls a chain of plugins as libcni does."""

    def __init__(self, node_netns: str, folder: Path, capabilities: dict[str, Any]) -> None:
        self._netns, self._bin = node_netns, folder / "bin"
        self._list = json.loads((folder / "net.d" / CONFLIST).read_text())
        self._capabilities = capabilities
        self.result: dict[str, Any] = {}

    def call(self, verb: str, variables: dict[str, str]) -> None:
        """Raises with what a plugin said."""
        plugins = self._list["plugins"] if verb != "DEL" else self._list["plugins"][::-1]
        for plugin in plugins:
            wanted = plugin.get("capabilities", {})
            given = {name: self._capabilities[name] for name in wanted if name in self._capabilities}
            config = {k: v for k, v in plugin.items() if k != "capabilities"}
            config |= {"cniVersion": "1.0.0", "name": "ciliate"}
            config |= {"runtimeConfig": given} if given else {}
            if self.result and (verb != "ADD" or plugin["type"] != PLUGIN):
                config["prevResult"] = self.result
            folder = self._bin if plugin["type"] == PLUGIN else OTHERS
            words = ["nsenter", f"--net={NETNS / self._netns}", str(folder / plugin["type"])]
            environment = {**os.environ, **variables, "CNI_COMMAND": verb, "CNI_PATH": str(folder)}
            done = subprocess.run(
                words, env=environment, input=json.dumps(config), capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, (plugin["type"], verb, done.stdout, done.stderr)
            if verb == "ADD":
                self.result = json.loads(done.stdout)


@pytest.mark.skipif(not (OTHERS / "portmap").exists(), reason="the reference plugins are not installed")
async def test_chained_with_portmap_and_bandwidth(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.nodes[0]
    pod = Pod("web", node, f"{cluster.prefix}web", {"app": "web"})
    cluster.pod_object("web", node, pod.labels)
    sh(f"ip netns add {pod.netns}")
    cluster.pods["web"] = pod
    await asyncio.sleep(0.2)
    ports = [{"hostPort": 18080, "containerPort": 80, "protocol": "tcp"}]
    limits = {"ingressRate": 8_000_000, "ingressBurst": 8_000_000, "egressRate": 0, "egressBurst": 0}
    runtime = Runtime(node.netns, tmp_path, {"portMappings": ports, "bandwidth": limits})
    _, variables = cluster.cni_call("ADD", pod)
    runtime.call("ADD", variables)
    host = runtime.result["interfaces"][0]["name"]
    pod.addresses = [entry["address"].partition("/")[0] for entry in runtime.result["ips"]]
    assert "8Mbit" in sh(f"tc qdisc show dev {host}", node.netns), "the bandwidth plugin limits our interface"
    assert f"{pod.ip}:80" in sh("iptables-save -t nat", node.netns), "portmap leads to our address"
    assert await cluster.cni("CHECK", pod, prevResult=runtime.result) == (0, {})
    assert "to_endpoint" in sh(f"tc filter show dev {host} egress", node.netns), "and the hooks are still there"

    async def ahead() -> bool:
        with inside(node.netns):
            found = tcx.programs(socket.if_nametoindex(host), tcx.Hook.INGRESS)
        filters = sh(f"tc filter show dev {host} ingress", node.netns)
        return [program.name for program in found] == ["from_endpoint"] and "from_endpoint" not in filters

    await eventually(ahead, seconds=20)
    assert in_pod(pod, "ping", "-c1", "-W2", node.addresses[0]).returncode == 0
    runtime.call("DEL", variables)
    assert f"{pod.ip}:80" not in sh("iptables-save -t nat", node.netns)

    async def gone() -> bool:
        return (await cluster.status(node)).endpoints == 0

    await eventually(gone)
