"""SCTP through Services: its checksum covers everything and is right all the same when ports change."""

from __future__ import annotations

import pytest
from scapy.all import SCTP

from services.model.verdict import DropReason
from tests.datapath.node import TC_ACT_SHOT, Node
from tests.datapath.packets import checksums_hold, parse, received, sctp_data, sctp_init
from tests.datapath.walks import FAMILIES, FRONTEND, INGRESS, Pods, at, seen, send

pytestmark = pytest.mark.root

VIP = {False: "10.96.0.10", True: "fd00:10:96::10"}
SCTP_NUMBER = 132


@FAMILIES
@pytest.mark.parametrize("target", [80, 8080, 65535])
@pytest.mark.parametrize("size", [4, 100, 1400, 3400])
def test_there_and_back(node: Node, pods: Pods, v6: bool, target: int, size: int) -> None:
    frontend, webapp, _ = pods
    node.rule(webapp, INGRESS, FRONTEND, SCTP_NUMBER, target, rule_id=7)
    node.service(41, VIP[v6], 80, [(at(webapp, v6), target)], SCTP_NUMBER)
    assert send(node, frontend, VIP[v6], sctp_init(4000, 80)).packet == received(
        webapp, at(frontend, v6), sctp_init(4000, target)
    )
    back = send(node, webapp, at(frontend, v6), sctp_data(target, 4000, size))
    assert back.packet == received(frontend, VIP[v6], sctp_data(80, 4000, size))
    node.map("services").delete_batch([key for key, _ in node.map("services").items()])
    more = send(node, frontend, VIP[v6], sctp_data(4000, 80, size))
    assert more.packet == received(webapp, at(frontend, v6), sctp_data(4000, target, size)), "it outlives its Service"
    assert checksums_hold(more.packet)
    assert send(node, frontend, VIP[v6], sctp_init(4001, 80)).packet != received(
        webapp, at(frontend, v6), sctp_init(4001, target)
    ), "a new one finds nothing"


def test_a_checksum_that_is_not_there_yet_is_left_to_who_computes_it(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    node.open(webapp, INGRESS)
    node.service(41, VIP[False], 80, [(webapp.ipv4, 8080)], SCTP_NUMBER)
    packet = sctp_init(4000, 80)
    packet.chksum = 0
    answer = parse(send(node, frontend, VIP[False], packet).packet)
    assert (answer[SCTP].chksum, answer[SCTP].dport) == (0, 8080)


def test_hairpin(node: Node, pods: Pods) -> None:
    _, webapp, _ = pods
    node.service(41, VIP[False], 80, [(webapp.ipv4, 8080)], SCTP_NUMBER)
    there = send(node, webapp, VIP[False], sctp_init(4000, 80))
    assert there.packet == received(webapp, "169.254.42.1", sctp_init(4000, 8080))
    back = send(node, webapp, "169.254.42.1", sctp_data(8080, 4000, 40))
    assert back.packet == received(webapp, VIP[False], sctp_data(80, 4000, 40))


def test_the_first_fragment_does_not_say_how_long_the_whole_is(node: Node, pods: Pods) -> None:
    frontend, webapp, _ = pods
    node.open(webapp, INGRESS)
    node.service(41, VIP[False], 80, [(webapp.ipv4, 8080)], SCTP_NUMBER)
    assert send(node, frontend, VIP[False], sctp_init(4000, 80), flags="MF").verdict == TC_ACT_SHOT
    assert seen(node)[-1][3] == DropReason.IP_FRAGMENTATION_NOT_SUPPORTED
