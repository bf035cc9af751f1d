"""Processes behind sockets: real connects and binds below a cgroup with the hooks on it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from services.agent.abi.process import PROCESS
from services.agent.datapath.cgroup import SocketHooks
from services.agent.datapath.loader_client import Loaded
from services.agent.datapath.units import PROCESS_HOOKS
from services.agent.processes import Processes
from services.agent.refusals import NodeOwner, Owners
from services.common.netns import inside, opened
from services.flows.dictionary import Dictionaries
from services.flows.entries import ProcessRef
from services.model.identity import NumericIdentity
from services.model.objects import LocalEndpoint
from tests.datapath.node import Node, sh
from tests.datapath.socketed import Cgroup

pytestmark = pytest.mark.root

ENDPOINT = 7


@dataclass
class Rig:
    node: Node
    cgroup: Cgroup
    processes: Processes
    dictionaries: Dictionaries

    def find(self, port: int, protocol: int = socket.IPPROTO_TCP) -> ProcessRef | None:
        self.processes.take()
        assert self.processes.table is not None
        columns = [np.array([value]) for value in (ENDPOINT, port, protocol)]
        number = int(self.processes.table.find(*columns)[0])
        return self.dictionaries.processes[number]


def opened_anew(node: Node, cgroup: Cgroup, dictionaries: Dictionaries) -> Processes:
    """As an agent does that starts."""
    loaded = Loaded(str(node.root), [], [], [], {}, True, 0.0, 0.0)
    found = Processes(loaded, str(cgroup.path), wanted=True)
    endpoint = LocalEndpoint(
        ENDPOINT, "d", "p", "c", 3, "x", bytes(6), bytes(6), (), NumericIdentity(1), netns=f"/run/netns/{node.name}"
    )
    found.open(dictionaries, Owners(NodeOwner(()), lambda: [endpoint], lambda: 1e9))
    found.enforce()
    assert found.reason == ""
    return found


@pytest.fixture(scope="module")
def rig(module_node: Node) -> Iterator[Rig]:
    sh("ip", "link", "set", "lo", "up", netns=module_node.name)
    cgroup, dictionaries = Cgroup(module_node.name), Dictionaries()
    processes = opened_anew(module_node, cgroup, dictionaries)
    found = Rig(module_node, cgroup, processes, dictionaries)
    try:
        yield found
    finally:
        SocketHooks(module_node.root, cgroup.path, PROCESS_HOOKS).detach()
        found.processes.close()
        cgroup.close()


FAMILIES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::ffff:127.0.0.1")]


@pytest.mark.parametrize(("family", "address"), FAMILIES, ids=["v4", "v6", "mapped"])
def test_a_client_and_a_server_are_known(rig: Rig, family: int, address: str) -> None:
    def work() -> tuple[int, int, int]:
        six = family == socket.AF_INET6
        with socket.create_server(("::" if six else "", 0), family=family, dualstack_ipv6=six) as server:
            pid = os.fork()
            if pid == 0:
                with socket.socket(family) as client:
                    client.connect((address, server.getsockname()[1]))
                    client.recv(1)
                os._exit(0)
            accepted, peer = server.accept()
            accepted.close()
            os.waitpid(pid, 0)
            return server.getsockname()[1], peer[1], pid

    server_port, client_port, client_pid = rig.cgroup.run(rig.node.name, work)
    client, server = rig.find(client_port), rig.find(server_port)
    assert client is not None
    assert server is not None
    assert client.pid == client_pid
    assert server.pid not in (0, client_pid)
    assert {client.name, server.name} == {open("/proc/self/comm").read().strip()}  # noqa: SIM115
    assert rig.find(client_port, socket.IPPROTO_UDP) is None
    assert rig.find(1) is None


def test_a_running_process_has_an_executable_and_udp_servers_count(rig: Rig) -> None:
    code = "import socket,sys; s=socket.socket(type=socket.SOCK_DGRAM); s.bind(('',0));"
    code += "print(s.getsockname()[1], flush=True); sys.stdin.read()"

    def enter() -> None:
        (rig.cgroup.path / "cgroup.procs").write_text("0")

    with opened(f"/run/netns/{rig.node.name}") as namespace, inside(namespace):
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=enter,  # noqa: PLW1509 - no threads here
        )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        found = rig.find(port, socket.IPPROTO_UDP)
        assert found is not None
        assert found.pid == process.pid
        assert found.executable == os.path.realpath(sys.executable)
        # An agent that starts later asks the kernel who serves.
        rig.processes.close()
        rig.dictionaries = Dictionaries()
        rig.processes = opened_anew(rig.node, rig.cgroup, rig.dictionaries)
        again = rig.find(port, socket.IPPROTO_UDP)
        assert again == found
    finally:
        process.communicate("", timeout=10)


def test_others_below_no_such_cgroup_and_unconnected_ones_are_not_told(rig: Rig) -> None:
    with opened(f"/run/netns/{rig.node.name}") as namespace, inside(namespace), socket.socket() as outside:
        outside.bind(("127.0.0.1", 0))
        port = outside.getsockname()[1]
    assert rig.find(port) is None

    def refused() -> int:
        with socket.socket() as client:
            client.bind(("127.0.0.1", 0))
            assert client.connect_ex(("127.0.0.1", 1)) != 0
            return int(client.getsockname()[1])

    assert rig.find(rig.cgroup.run(rig.node.name, refused)) is not None  # a refused connect has a flow, too


def test_records_are_as_long_as_the_kernels() -> None:
    assert PROCESS.itemsize == 40
