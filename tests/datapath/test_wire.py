"""Real packets on two nodes: sockets in pods, policy in between, VXLAN underneath."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.agent.abi.events import EventType
from services.agent.datapath import attach, syscall, tcx
from services.agent.datapath.generation import remove_marks
from services.model.verdict import Direction, DropReason
from tests.datapath.node import HOST, Pod, inside, sh
from tests.datapath.wire import WiredNode

pytestmark = pytest.mark.root

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS
FRONTEND, WEBAPP, OTHER = 1001, 1002, 1003
SECONDS = 3.0


@dataclass
class Cluster:
    """frontend and webapp on node one; a second webapp and somebody else on node two."""

    one: WiredNode
    two: WiredNode
    frontend: Pod
    webapp: Pod
    far_webapp: Pod
    other: Pod

    def node_of(self, pod: Pod) -> WiredNode:
        return self.one if pod in (self.frontend, self.webapp) else self.two


@pytest.fixture(scope="module")
def cluster(object_cache: Path) -> Iterator[Cluster]:
    nodes: list[WiredNode] = []
    try:
        for number in (1, 2):
            nodes.append(WiredNode(object_cache, number))
            nodes[-1].settings()
        one, two = nodes
        frontend, webapp = one.add_pod(1, FRONTEND), one.add_pod(2, WEBAPP, policy_id=9)
        far_webapp, other = two.add_pod(1, WEBAPP, policy_id=9), two.add_pod(2, OTHER)
        one.join(two)
        for node, pods in ((one, (frontend, webapp)), (two, (far_webapp, other))):
            for pod in pods:
                node.open(pod, EGRESS)
                if pod.identity == WEBAPP:
                    node.rule(pod, INGRESS, FRONTEND, 6, 80, rule_id=77)
                    node.rule(pod, INGRESS, FRONTEND, 17, 53, rule_id=78)
                else:
                    node.open(pod, INGRESS)
        yield Cluster(one, two, frontend, webapp, far_webapp, other)
    finally:
        for node in nodes:
            node.close()


def in_pod(cluster: Cluster, pod: Pod, work: Callable[[], object]) -> object:
    with inside(cluster.node_of(pod).pod_ns(pod)):
        return work()


def make_socket(cluster: Cluster, pod: Pod, v6: bool, kind: int) -> socket.socket:
    """A socket belongs to the namespace in which it was made."""
    made = in_pod(cluster, pod, lambda: socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, kind))
    assert isinstance(made, socket.socket)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.settimeout(SECONDS)
    return made


def at(pod: Pod, v6: bool) -> str:
    return pod.ipv6 if v6 else pod.ipv4


def fetch(cluster: Cluster, client: Pod, server: Pod, v6: bool, address: str = "", port: int = 80) -> int | None:
    """Bytes echoed over a TCP connection, or None when it was not let through."""
    payload = b"x" * 200_000  # large enough for segmentation offload
    with make_socket(cluster, server, v6, socket.SOCK_STREAM) as listener:
        listener.bind((at(server, v6), 80))
        listener.listen()

        def serve() -> None:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            with accepted:
                accepted.settimeout(SECONDS)
                left = len(payload)
                while left and (chunk := accepted.recv(65536)):
                    left -= len(chunk)
                accepted.sendall(payload)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with make_socket(cluster, client, v6, socket.SOCK_STREAM) as sock:
                sock.settimeout(0.5)
                try:
                    sock.connect((address or at(server, v6), port))
                except TimeoutError:
                    return None
                sock.settimeout(SECONDS)
                sock.sendall(payload)
                got = 0
                while got < len(payload):
                    got += len(sock.recv(65536))
                return got
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


FAMILIES = pytest.mark.parametrize("v6", [False, True], ids=["ipv4", "ipv6"])
PLACES = pytest.mark.parametrize("far", [False, True], ids=["same node", "other node"])


@FAMILIES
@PLACES
def test_allowed_by_identity(cluster: Cluster, v6: bool, far: bool) -> None:
    server = cluster.far_webapp if far else cluster.webapp
    node = cluster.node_of(server)
    node.events()
    assert fetch(cluster, cluster.frontend, server, v6) == 200_000
    events = node.events()
    new = events[(events["type"] == EventType.NEW) & (events["direction"] == INGRESS)]
    assert new["rule_id"].tolist() == [77]
    assert (int(new[0]["src_identity"]), int(new[0]["dst_identity"])) == (FRONTEND, WEBAPP)
    closed = events[(events["type"] == EventType.CLOSE) & (events["direction"] == INGRESS)]
    assert closed["bytes"].min() > 200_000


@FAMILIES
@PLACES
def test_denied_by_default(cluster: Cluster, v6: bool, far: bool) -> None:
    server = cluster.webapp if far else cluster.far_webapp
    node = cluster.node_of(server)
    node.events()
    assert fetch(cluster, cluster.other, server, v6) is None
    drops = node.events()
    drops = drops[drops["type"] == EventType.DROP]
    assert set(drops["drop_reason"].tolist()) == {DropReason.POLICY_DENIED}
    assert set(drops["src_identity"].tolist()) == {OTHER}


@FAMILIES
def test_through_a_service(cluster: Cluster, v6: bool) -> None:
    vip = "fd00:10:96::1" if v6 else "10.96.0.1"
    for server in (cluster.webapp, cluster.far_webapp):
        cluster.one.service(50, vip, 8000, [(at(server, v6), 80)])
        assert fetch(cluster, cluster.frontend, server, v6, vip, 8000) == 200_000
    # And a pod to itself, policy or not.
    cluster.one.service(50, vip, 8000, [(at(cluster.webapp, v6), 80)])
    assert fetch(cluster, cluster.webapp, cluster.webapp, v6, vip, 8000) == 200_000


@FAMILIES
@PLACES
def test_udp_and_its_errors(cluster: Cluster, v6: bool, far: bool) -> None:
    """A closed port's ICMP error finds its way back to the client's socket, through policy and overlay."""
    server = cluster.far_webapp if far else cluster.webapp
    with make_socket(cluster, cluster.frontend, v6, socket.SOCK_DGRAM) as sock:
        sock.connect((at(server, v6), 53))
        sock.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(10)


@PLACES
def test_fragments(cluster: Cluster, far: bool) -> None:
    server = cluster.far_webapp if far else cluster.webapp
    with (
        make_socket(cluster, server, False, socket.SOCK_DGRAM) as receiver,
        make_socket(cluster, cluster.frontend, False, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((server.ipv4, 53))
        sender.sendto(b"y" * 6000, (server.ipv4, 53))
        assert len(receiver.recv(10_000)) == 6000


def test_the_node_reaches_its_own_pods_and_others_by_policy(cluster: Cluster) -> None:
    cluster.one.rule(cluster.webapp, INGRESS, HOST, rule_id=0)  # as calc writes it
    sh("ping", "-c1", "-W1", cluster.webapp.ipv4, netns=cluster.one.name)
    with pytest.raises(AssertionError):
        sh("ping", "-c1", "-W1", cluster.far_webapp.ipv4, netns=cluster.one.name)
    cluster.two.events()
    cluster.two.rule(cluster.far_webapp, INGRESS, 6, 1, 8, rule_id=5)  # remote-node may ping
    sh("ping", "-c1", "-W1", cluster.far_webapp.ipv4, netns=cluster.one.name)
    assert cluster.two.events()["src_identity"].tolist() == [6]
    sh("ping", "-c1", "-W1", cluster.one.address, netns=cluster.one.pod_ns(cluster.frontend))


def _pump(sender: socket.socket, receiver: socket.socket, received: threading.Event) -> None:
    """Data without a pause, until the connection is shut."""
    try:
        while True:
            sender.sendall(b"a" * 1000)
            if not receiver.recv(1000, socket.MSG_WAITALL):
                return
            received.set()
    except OSError:
        return


def test_replacing_programs_loses_nothing(cluster: Cluster, object_cache: Path) -> None:
    """The whole datapath is loaded and attached again while a connection carries data."""
    server, client = cluster.webapp, cluster.frontend
    with make_socket(cluster, server, False, socket.SOCK_STREAM) as listener:
        listener.bind((server.ipv4, 80))
        listener.listen()
        with make_socket(cluster, client, False, socket.SOCK_STREAM) as sock:
            sock.connect((server.ipv4, 80))
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(SECONDS)
                received = threading.Event()
                thread = threading.Thread(target=_pump, args=(sock, accepted, received))
                thread.start()
                before = cluster.one.map("ct").count()
                try:
                    for turn in range(5):
                        if turn == 2:  # from here on one of them stands ahead of the filters
                            advanced(cluster.one, client)
                        if turn % 2:
                            remove_marks(cluster.one.root)  # or else what stands would do
                        cluster.one.loaded = cluster.one._load(object_cache, {})
                        for pod in (server, client):
                            cluster.one.in_netns(attach.attach_endpoint(pod.ifindex, cluster.one.root / "progs"))
                        received.clear()
                        assert received.wait(SECONDS)
                finally:
                    accepted.shutdown(socket.SHUT_RDWR)
                    thread.join()
                assert cluster.one.map("ct").count() >= before
    assert "ct" in cluster.one.loaded.reused
    retransmitted = [entry.retransmits for key, entry in cluster.one.conntrack().items() if entry.rule_id == 77]
    assert max(retransmitted) == 0
    filters = sh("tc", "filter", "show", "dev", f"lxc{server.id}", "ingress", netns=cluster.one.name)
    assert filters.count("handle 0x1 from_endpoint") == filters.count("handle") == 1
    with syscall.opened(cluster.one.root / "progs" / "from_endpoint") as newest:
        assert ahead(cluster.one, client) == [syscall.program_info(newest)]
    assert "from_endpoint" not in sh(
        "tc", "filter", "show", "dev", f"lxc{client.id}", "ingress", netns=cluster.one.name
    )


def advanced(node: WiredNode, pod: Pod) -> None:
    """What an agent does with a pod's hook when it has time."""
    with inside(node.name):
        attach.advance(pod.ifindex, node.root / "progs")


def ahead(node: WiredNode, pod: Pod) -> list[syscall.ProgramInfo]:
    with inside(node.name):
        return tcx.programs(pod.ifindex, tcx.Hook.INGRESS)


def test_detaching_is_idempotent(cluster: Cluster) -> None:
    node = cluster.two
    for _ in range(2):  # the second time there is nothing to do
        advanced(node, cluster.other)
    assert [program.name for program in ahead(node, cluster.other)] == ["from_endpoint"]
    node.in_netns(attach.detach(cluster.other.ifindex))
    node.in_netns(attach.detach(cluster.other.ifindex))
    assert not ahead(node, cluster.other)
    assert "from_endpoint" not in sh(
        "tc", "filter", "show", "dev", f"lxc{cluster.other.id}", "ingress", netns=node.name
    )
    node.in_netns(attach.attach_endpoint(cluster.other.ifindex, node.root / "progs"))


def test_the_overlay_knows_its_senders(cluster: Cluster) -> None:
    """A pod's packets come from the node that the table names; those of pods it does not have, from a node at least."""
    one, two, client, server = cluster.one, cluster.two, cluster.frontend, cluster.far_webapp
    two.events()

    def reasons() -> set[int]:
        assert fetch(cluster, client, server, False) is None
        events = two.events()
        return set(events[events["type"] == EventType.DROP]["drop_reason"].tolist())

    try:
        two.ipcache(client.ipv4, FRONTEND, "192.168.77.99")
        assert reasons() == {DropReason.INVALID_SOURCE_IP}
        two.ipcache(client.ipv4, 2)  # not known yet
        two.ipcache(one.address, 2)
        assert reasons() == {DropReason.UNKNOWN_SENDER}
        two.ipcache(one.address, 6)
        two.events()
        fetch(cluster, client, server, False)  # answers do not find the way yet
        events = two.events()
        assert events[events["type"] == EventType.NEW]["rule_id"].tolist() == [77]
    finally:
        two.ipcache(one.address, 6)
        two.ipcache(client.ipv4, FRONTEND, one.address)
