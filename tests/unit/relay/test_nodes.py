"""Which stream speaks for a node, and where it may go on."""

from __future__ import annotations

from services.common.pb.ingest.v1 import ingest_pb2 as pb
from services.flows.entries import NodeRef
from services.relay.nodes import NodeTable

NODE = NodeRef("node1", "east")


def hello(instance: int) -> pb.Hello:
    return pb.Hello(node="node1", instance=instance, version="1.0", address="10.0.0.1:4244")


def test_a_new_stream_of_a_process_goes_on_and_a_new_process_starts_over() -> None:
    table = NodeTable(tls=True, now=lambda: 5)
    with table.connected(NODE, hello(1)) as first:
        first.sequence, first.rows = 17, 100
    with table.connected(NODE, hello(1)) as again:
        assert (again.sequence, again.rows) == (17, 100)
    with table.connected(NODE, hello(2)) as other:
        assert (other.sequence, other.rows) == (0, 100)


def test_a_later_stream_takes_over_from_one_that_hangs() -> None:
    table = NodeTable(tls=False, now=lambda: 5)
    with table.connected(NODE, hello(1)) as hanging:
        with table.connected(NODE, hello(1)) as current:
            assert (hanging.replaced, current.replaced) == (True, False)
    assert [status.connected for status in table.statuses()] == [False]


def test_the_end_of_a_replaced_stream_does_not_disconnect_the_node() -> None:
    table = NodeTable(tls=False, now=lambda: 5)
    old, new = table.connected(NODE, hello(1)), table.connected(NODE, hello(1))
    old.__enter__()
    new.__enter__()
    old.__exit__(None, None, None)
    assert [status.connected for status in table.statuses()] == [True]
    new.__exit__(None, None, None)
    assert [status.connected for status in table.statuses()] == [False]


def test_statuses_are_by_name_and_keep_nodes_that_went_away() -> None:
    now = 1000
    table = NodeTable(tls=True, now=lambda: now)
    with table.connected(NodeRef("b"), hello(1)), table.connected(NodeRef("a"), hello(2)):
        now = 4000
        assert [(each.node.absolute, each.uptime_ns, each.tls) for each in table.statuses()] == [
            ("a", 3000, True),
            ("b", 3000, True),
        ]
    assert [(each.node.absolute, each.connected, each.uptime_ns) for each in table.statuses()] == [
        ("a", False, 0),
        ("b", False, 0),
    ]
    assert table.statuses()[0].address == "10.0.0.1:4244"
