"""The nodes that push here: who is connected, how far each has got. Nodes stay known after they went away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from services.common.pb.ingest.v1 import ingest_pb2 as pb
from services.flows.entries import NodeRef
from services.flows.observer import NodeStatus


@dataclass(slots=True, eq=False)
class PushingNode:
    """One agent process on a node. A new process (instance) starts with sequence 0; a new stream of one does not."""

    node: NodeRef
    instance: int
    version: str
    address: str
    sequence: int = 0
    """The last batch stored."""
    rows: int = 0
    lost: int = 0
    since_ns: int = 0
    streams: int = 0
    replaced: bool = False
    """A later stream of the node took over: this one's batches are not taken any more."""


class NodeTable:
    """By absolute node name."""

    def __init__(self, *, tls: bool, now: Callable[[], int] = time.time_ns) -> None:
        self._tls, self._now = tls, now
        self._nodes: dict[str, PushingNode] = {}

    @contextmanager
    def connected(self, node: NodeRef, hello: pb.Hello) -> Iterator[PushingNode]:
        """A stream of a node is open. An earlier one, half dead perhaps, is told to end."""
        before = self._nodes.get(node.absolute)
        current = PushingNode(node, hello.instance, hello.version, hello.address, since_ns=self._now())
        if before is not None:
            before.replaced = True
            current.rows, current.lost = before.rows, before.lost
            if before.instance == hello.instance:
                current.sequence, current.since_ns = before.sequence, before.since_ns
        self._nodes[node.absolute] = current
        current.streams = 1
        try:
            yield current
        finally:
            current.streams = 0

    def statuses(self) -> Sequence[NodeStatus]:
        """Every node known, by name."""
        now = self._now()
        return [
            NodeStatus(
                node=each.node,
                connected=each.streams > 0,
                address=each.address,
                version=each.version,
                uptime_ns=now - each.since_ns if each.streams else 0,
                flows=each.rows,
                seen=each.rows,
                tls=self._tls,
            )
            for _, each in sorted(self._nodes.items())
        ]
