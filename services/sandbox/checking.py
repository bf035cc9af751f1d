"""What scenarios share: noting what came of a check, and finding the flow that tells of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import grpc.aio

from services.common.pb.flow import flow_pb2
from services.common.pb.observer import observer_pb2, observer_pb2_grpc
from services.common.tls import channel
from services.sandbox.checks import AT_ONCE_SECONDS, REFUSED, Check, Result
from services.sandbox.kubelet import RunningPod
from services.sandbox.probes import Answer
from services.sandbox.supervisor import Sandbox

FLOW_SECONDS = 10.0
"""Within which a flow must be at the relay."""


class Checking:
    """Collects what checks came to, on a sandbox in which the example's pods are ready."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox, self._kubelet = sandbox, sandbox.kubelet
        self._results: list[Result] = []

    def _pod(self, deployment: str) -> RunningPod:
        return next(pod for key, pod in self._kubelet.pods.items() if key.name.startswith(f"{deployment}-"))

    def _in_order(self, declared: Sequence[Check]) -> list[Result]:
        order = {check: index for index, check in enumerate(declared)}
        return sorted(self._results, key=lambda result: order[result.check])

    def _note(self, check: Check, got: str, ok: bool | None = None) -> None:
        self._results.append(Result(check, got, got == check.expected if ok is None else ok))

    def _note_answer(self, check: Check, answer: Answer) -> None:
        ok = answer.text == check.expected
        if answer.text == REFUSED:
            ok = ok and answer.seconds < AT_ONCE_SECONDS
        timed = answer.text[:1].isdigit()
        self._note(check, f"{answer.text}, {answer.seconds * 1000:.0f} ms" if timed else answer.text, ok)

    async def _check_flow(
        self,
        check: Check,
        wanted: flow_pb2.FlowFilter,
        describe: Callable[[flow_pb2.Flow], str],
        fits: Callable[[str], bool] | None = None,
    ) -> None:
        """Flows reach the relay a moment after the packets: ask until it has one whose description `fits` (is what was
        expected), up to a bound."""
        fits = fits or (lambda text: text == check.expected)
        deadline, got = time.monotonic() + FLOW_SECONDS, "no such flow"
        while time.monotonic() < deadline:
            described = [text for flow in await self._flows(wanted) if (text := describe(flow))]
            if fitting := [text for text in described if fits(text)]:
                self._note(check, fitting[-1], True)
                return
            got = described[-1] if described else got
            await asyncio.sleep(0.1)
        self._note(check, got, False)

    async def _flows(self, wanted: flow_pb2.FlowFilter) -> list[flow_pb2.Flow]:
        cluster = self._sandbox.cluster
        request = observer_pb2.GetFlowsRequest(number=500, whitelist=[wanted])
        async with channel(cluster.relay_target, cluster.client, "relay") as there:
            stub = observer_pb2_grpc.ObserverStub(there)  # type: ignore[no-untyped-call]
            try:
                answers = [answer async for answer in stub.GetFlows(request, timeout=5.0)]
            except grpc.aio.AioRpcError as error:
                return [flow_pb2.Flow(Summary=f"relay: {error.details()}")]
        return [answer.flow for answer in answers if answer.HasField("flow")]


def path_of(flow: flow_pb2.Flow) -> str:
    """Method and path of an HTTP flow."""
    http = flow.l7.http
    return f"{http.method} /{http.url.partition('://')[2].partition('/')[2]}"
