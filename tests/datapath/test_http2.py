"""HTTP/2 where HTTP rules apply: refused under its own name, by prior knowledge and by upgrade, however it is cut."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.model.verdict import DropReason
from tests.datapath.http_model import Rule
from tests.datapath.http_node import Connection, HttpNode, serving

pytestmark = pytest.mark.root
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\6\4\0\0\0\0\0" + b"\0\3\0\0\0\x64"
OK = b"GET /ok HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADE = OK[:-2] + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
DECIDED = len(b"PRI * HTTP/2")
"""Bytes after which it is HTTP/2 for sure."""


@pytest.fixture(scope="module")
def module_http(object_cache: Path) -> Iterator[HttpNode]:
    # Even rules that the preface would meet allow no HTTP/2: what comes behind it nobody reads.
    with serving(object_cache, Rule("GET", "/ok.*"), Rule("PRI", ".*")) as http:
        yield http


@pytest.fixture
def node(module_http: HttpNode) -> HttpNode:
    module_http.reset()
    module_http.events()
    return module_http


def talk(node: HttpNode) -> Connection:
    return Connection(node).open()


def refusals(node: HttpNode) -> list[int]:
    return [int(event["drop_reason"]) for event in node.events() if event["drop_reason"]]


@pytest.mark.parametrize("cuts", [[], *([cut] for cut in range(1, DECIDED)), list(range(1, DECIDED))], ids=str)
def test_by_prior_knowledge(node: HttpNode, cuts: list[int]) -> None:
    client, whole = talk(node), PREFACE + SETTINGS
    for at, end in itertools.pairwise((0, *cuts, len(whole))):
        outcome = client.send(at, whole[at:end])
        assert outcome.passed if end < DECIDED else outcome.reset
    assert refusals(node) == [DropReason.HTTP_HTTP2]
    assert not client.send(len(whole), SETTINGS).passed


def test_behind_requests_and_behind_an_upgrade(node: HttpNode) -> None:
    client = talk(node)
    assert client.send(0, OK).passed
    assert client.send(len(OK), PREFACE).reset
    assert refusals(node) == [DropReason.HTTP_HTTP2]

    client = talk(node)
    assert client.send(0, UPGRADE).passed  # a request like any other: servers may ignore the wish
    answer = client.from_server("PA", SWITCHING, seq=client.server_isn + 1, ack=client.seq(len(UPGRADE)))
    assert answer != 2
    assert client.send(len(UPGRADE), PREFACE + SETTINGS, ack=1 + len(SWITCHING)).reset
    assert DropReason.HTTP_HTTP2 in refusals(node)


def test_frames_without_a_preface(node: HttpNode) -> None:
    client = talk(node)
    assert client.send(0, UPGRADE).passed
    client.from_server("PA", SWITCHING, seq=client.server_isn + 1, ack=client.seq(len(UPGRADE)))
    assert client.send(len(UPGRADE), SETTINGS, ack=1 + len(SWITCHING)).reset
