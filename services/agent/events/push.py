"""The push stream to the relay: Hello, Welcome, then batches up and acknowledgements down, again after every break.

Input: `SendBuffer`. Output: the relay. A break loses nothing: what was not acknowledged is sent again.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np

from services.agent.events.buffer import PendingBatch, SendBuffer
from services.common.errors import CiliateError, Unavailable
from services.common.grpc_errors import error_from_rpc
from services.common.log import get_logger
from services.common.pb.ingest.v1 import ingest_pb2 as pb
from services.common.pb.ingest.v1 import ingest_pb2_grpc
from services.common.retry import Backoff
from services.flows.columns import DICTIONARY_OF, Array
from services.flows.dictionary import Dictionaries
from services.flows.entries import NodeRef
from services.flows.wire import put_columns, put_entry

WELCOME_SECONDS = 5.0

log = get_logger("push")

Call = Any  # grpc.aio.StreamStreamCall, whose types the library does not ship


class Announcer:
    """Which dictionary entries the other end of one stream knows; puts the others into a batch that needs them."""

    def __init__(self, dictionaries: Dictionaries) -> None:
        self._dictionaries = dictionaries
        self._known: dict[str, Array] = {name: np.zeros(0, np.uint32) for name in set(DICTIONARY_OF.values())}

    def announce(self, message: pb.Batch, batch: PendingBatch) -> None:
        """Add what is missing, and remember it."""
        for name, numbers in batch.numbers.items():
            dictionary = self._dictionaries.of(name)
            known = self._known[name]
            if len(known) < dictionary.size:
                grown = np.zeros(2 * dictionary.size, np.uint32)
                grown[: len(known)] = known
                known = self._known[name] = grown
            for number in numbers[known[numbers] != dictionary.generation[numbers]].tolist():
                content = dictionary[number]
                if content is not None:
                    put_entry(message, number, content)
            known[numbers] = dictionary.generation[numbers]


class RelayPusher:
    """Keeps one stream to the relay open. `wake()` after something was put into the buffer."""

    def __init__(
        self,
        buffer: SendBuffer,
        dictionaries: Dictionaries,
        open_channel: Callable[[], grpc.aio.Channel],
        node: NodeRef,
        version: str,
        address: str = "",
        instance: int | None = None,
    ) -> None:
        self._buffer, self._dictionaries, self._open = buffer, dictionaries, open_channel
        self._hello = pb.Hello(
            node=node.name,
            cluster=node.cluster,
            node_labels=node.labels,
            instance=secrets.randbits(64) if instance is None else instance,
            version=version,
            address=address,
        )
        self._wake = asyncio.Event()
        self.connected = False
        self.acknowledged_rows = 0

    def wake(self) -> None:
        """There is something to send."""
        self._wake.set()

    async def run(self) -> None:
        """Push until cancelled."""
        backoff, told = Backoff(initial=0.2, maximum=5.0), ""
        async for _ in backoff:
            try:
                async with self._open() as channel:
                    await self._stream(channel, backoff)
            except CiliateError as error:
                text = str(error)
                if self.connected or text != told:  # a relay that stays away is told of once
                    log.warning("relay stream ended", error=text, kind=type(error).__name__)
                told = text
            finally:
                self.connected = False

    async def _stream(self, channel: grpc.aio.Channel, backoff: Backoff) -> None:
        call: Call = ingest_pb2_grpc.FlowIngestStub(channel).Push()  # type: ignore[no-untyped-call]
        try:
            await call.write(pb.PushRequest(hello=self._hello))
            async with asyncio.timeout(WELCOME_SECONDS):
                answer = await call.read()
            if answer is grpc.aio.EOF or answer.WhichOneof("message") != "welcome":
                raise Unavailable("the relay did not say welcome")
            self.acknowledged_rows += self._buffer.rewind(answer.welcome.acknowledged)
            self.connected = True
            backoff.reset()
            await self._exchange(call)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        except TimeoutError as error:
            raise Unavailable(f"the relay did not answer within {WELCOME_SECONDS} s") from error
        finally:
            call.cancel()

    async def _exchange(self, call: Call) -> None:
        """Send and receive side by side; whichever ends first ends the stream."""
        sender = asyncio.create_task(self._send(call), name="push:send")
        receiver = asyncio.create_task(self._receive(call), name="push:receive")
        try:
            done, _ = await asyncio.wait({sender, receiver}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sender.cancel()
            receiver.cancel()
            results = await asyncio.gather(sender, receiver, return_exceptions=True)
        # The receiver knows the status of a broken call; the sender only that it is over.
        for result in (results[1], results[0]):
            if isinstance(result, Exception) and not isinstance(result, asyncio.InvalidStateError):
                raise result
        if done:
            raise Unavailable("the relay closed the stream")

    async def _send(self, call: Call) -> None:
        announcer = Announcer(self._dictionaries)
        while True:
            self._wake.clear()
            while (batch := self._buffer.next()) is not None:
                message = pb.Batch(sequence=batch.sequence)
                announcer.announce(message, batch)
                put_columns(message, batch.columns)
                for loss in batch.losses:
                    message.lost.add(
                        source=loss.source,
                        cpu=loss.cpu,
                        events=loss.events,
                        first_ns=loss.first_ns,
                        last_ns=loss.last_ns,
                    )
                await call.write(pb.PushRequest(batch=message))
            await self._wake.wait()

    async def _receive(self, call: Call) -> None:
        while (answer := await call.read()) is not grpc.aio.EOF:
            self.acknowledged_rows += self._buffer.acknowledge(answer.ack.sequence)
