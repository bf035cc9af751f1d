"""`FlowIngest.Push`: batches in, acknowledgements out, one stream per agent.

Input: agents' streams (hostile until proven: a certificate says which node may push as which). Output: `FlowStore`,
`NodeTable`. A batch is acknowledged once it is in the store; one that is sent again after a break is recognised by
(node, instance, sequence) and not stored twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import numpy as np

from services.common.errors import Conflict, Denied, Invalid
from services.common.log import get_logger
from services.common.pb.ingest.v1 import ingest_pb2 as pb
from services.common.pb.ingest.v1 import ingest_pb2_grpc
from services.common.tls import PeerIdentity
from services.flows.columns import DICTIONARY_OF, Array, Columns
from services.flows.dictionary import Dictionaries, Uses
from services.flows.entries import NodeRef
from services.flows.store import FlowStore
from services.flows.wire import MAX_TEXT, MAX_TEXTS, WireError, get_columns, get_entry
from services.relay.metrics import IngestMetrics
from services.relay.nodes import NodeTable, PushingNode

log = get_logger("ingest")

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["FlowIngest"].full_name
MAX_NAME = 253

WhoIs = Callable[[Any], PeerIdentity | None]
Listener = Callable[[Columns, int], None]
"""Is told every batch that was stored (the store's numbers), and its node's number."""


class StreamNumbers:
    """One stream's dictionary numbers -> the store's. What a stream may still refer to is retained for it."""

    def __init__(self, dictionaries: Dictionaries) -> None:
        self._dictionaries = dictionaries
        self._translate: dict[str, Array] = {name: np.zeros(64, np.uint32) for name in set(DICTIONARY_OF.values())}
        self._uses: dict[str, dict[int, int]] = {name: {} for name in self._translate}
        """dictionary -> store number -> how many of the stream's numbers mean it."""
        self._held = Uses(dictionaries)

    def learn(self, entry: pb.Entry) -> None:
        """Take a dictionary entry; raises `WireError`."""
        name, number, content = get_entry(entry)
        table = self._translate[name]
        if number >= len(table):
            table = self._translate[name] = np.concatenate([table, np.zeros(max(number, len(table)), np.uint32)])
        stored = self._dictionaries.of(name).intern(content)  # type: ignore[arg-type]
        before = int(table[number])
        uses = self._uses[name]
        uses[stored] = uses.get(stored, 0) + 1
        self._held.add(name, np.array([stored]))
        table[number] = stored
        if before:
            uses[before] -= 1
            if not uses[before]:
                del uses[before]
                self._held.drop(name, before)

    def translate(self, columns: Columns) -> Columns:
        """The same rows with the store's numbers; raises `WireError` for a number that has no entry."""
        translated = dict(columns)
        for column, name in DICTIONARY_OF.items():
            numbers, table = columns[column], self._translate[name]
            if len(numbers) and int(numbers.max()) >= len(table):
                raise WireError(f"column {column}: number {int(numbers.max())} has no entry")
            translated[column] = table[numbers]
            if ((translated[column] == 0) & (numbers != 0)).any():
                raise WireError(f"column {column}: holds a number that has no entry")
        return translated

    def release(self) -> None:
        """The stream is over."""
        self._held.release()


class FlowIngest(ingest_pb2_grpc.FlowIngestServicer):
    """Stores what agents push. `who_is` tells a caller's identity; None = plaintext, which `insecure` must allow."""

    def __init__(
        self,
        store: FlowStore,
        nodes: NodeTable,
        metrics: IngestMetrics,
        listeners: Sequence[Listener],
        who_is: WhoIs,
        *,
        insecure: bool,
    ) -> None:
        self._store, self._nodes, self._metrics, self._listeners = store, nodes, metrics, listeners
        self._who_is, self._insecure = who_is, insecure

    async def Push(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.PushRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.PushResponse]:
        """One agent's stream."""
        hello = await _first(request_iterator)
        self._authorize(context, hello)
        node = NodeRef(hello.node, hello.cluster or "default", tuple(hello.node_labels))
        with self._nodes.connected(node, hello) as pushing:
            number = self._store.node(node)
            numbers = StreamNumbers(self._store.dictionaries)
            log.info("agent connected", node=node.absolute, version=hello.version)
            try:
                yield pb.PushResponse(welcome=pb.Welcome(acknowledged=pushing.sequence))
                async for request in request_iterator:
                    if pushing.replaced:
                        raise Conflict(f"node {node.absolute}: a newer stream of this node took over")
                    if request.WhichOneof("message") != "batch":
                        raise Invalid("message: only batches may follow the hello")
                    self._take(request.batch, numbers, pushing, number)
                    yield pb.PushResponse(ack=pb.Ack(sequence=pushing.sequence))
            except WireError as error:
                self._metrics.refused(node.absolute)
                log.warning("batch refused", node=node.absolute, error=str(error))
                raise Invalid(str(error)) from error
            finally:
                numbers.release()
                self._store.release_node(number)
                log.info("agent disconnected", node=node.absolute)

    def _authorize(self, context: grpc.aio.ServicerContext[Any, Any], hello: pb.Hello) -> None:
        for field, name in (("node", hello.node), ("cluster", hello.cluster or "default")):
            if not 0 < len(name) <= MAX_NAME or "/" in name:
                raise Invalid(f"hello.{field}: {name[:80]!r} is no name")
        if len(hello.node_labels) > MAX_TEXTS or any(len(label) > MAX_TEXT for label in hello.node_labels):
            raise Invalid(f"hello.node_labels: more than {MAX_TEXTS}, or one of more than {MAX_TEXT} characters")
        peer = self._who_is(context)
        if peer is None:
            if not self._insecure:
                raise Denied("flows are taken over mutual TLS only")
            return
        if peer.role != "agent" or peer.node != hello.node:
            raise Denied(
                f"hello.node: the certificate of {peer.role} {peer.node!r} may not push flows of node {hello.node!r}"
            )

    def _take(self, batch: pb.Batch, numbers: StreamNumbers, pushing: PushingNode, node: int) -> None:
        """Store one batch; entries count even where the rows are here already."""
        for entry in batch.entries:
            numbers.learn(entry)
        if batch.sequence <= pushing.sequence:
            return
        columns = numbers.translate(get_columns(batch))
        if batch.rows:
            self._store.append(columns, node)
            for listener in self._listeners:
                listener(columns, node)
        pushing.rows += batch.rows
        self._metrics.stored(pushing.node.absolute, batch)
        for lost in batch.lost:
            pushing.lost += lost.events
            self._store.append_lost(node, lost.source, lost.cpu, lost.events, lost.first_ns, lost.last_ns)
        pushing.sequence = batch.sequence


async def _first(requests: AsyncIterator[pb.PushRequest]) -> pb.Hello:
    async for request in requests:
        if request.WhichOneof("message") == "hello":
            return request.hello
        break
    raise Invalid("message: a stream begins with a hello")
