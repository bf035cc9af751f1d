"""Runs the checks of `checks_flows.py` against a sandbox: what was done is counted, and what was told of it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable

from services.client import Flows, FlowSeen, FlowsLost, Target
from services.common.pb.details.v1.details_pb2 import FlowDetails
from services.common.pb.flow import flow_pb2
from services.common.retry import Backoff
from services.sandbox import checks_flows as checks
from services.sandbox.checking import Checking
from services.sandbox.checks import ALLOWED_PATH, POLICY, Check, Result
from services.sandbox.kubelet import RunningPod
from services.sandbox.probes import curl
from services.sandbox.supervisor import Sandbox

SOON_SECONDS = 20.0
"""Within which flows must be where they are asked for; a relay that starts again is part of it."""


_L7 = [flow_pb2.EventTypeFilter(type=129)]
"""Hubble's number of L7 events."""


class Told:
    """What a follower was told of connections between two pods."""

    def __init__(self) -> None:
        self.kinds: collections.Counter[int] = collections.Counter()
        self.uuids: collections.Counter[str] = collections.Counter()
        self.ends: list[FlowDetails] = []
        self.latencies: list[int] = []
        self.lost = 0

    def add(self, item: object) -> None:
        """Count one item of the stream."""
        if isinstance(item, FlowsLost):
            self.lost += item.count
        if isinstance(item, FlowSeen) and item.details:
            self.uuids[item.flow.uuid] += 1
            self.kinds[item.details.kind] += 1
            if item.details.kind == FlowDetails.CLOSE:
                self.ends.append(item.details)
            if item.flow.l7.http.code == 200 and item.flow.l7.latency_ns:
                self.latencies.append(item.flow.l7.latency_ns)


class ScenarioFlows(Checking):
    """Runs the checks on a sandbox in which the example's pods are ready."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self._client, self._visitor = self._pod("frontend"), self._pod("visitor")
        # One replica is counted, another tells when the policy is there.
        self._web, other, *_ = [pod for key, pod in self._kubelet.pods.items() if key.name.startswith("my-webapp-")]
        self._url, self._other_url = (f"http://{pod.addresses[0]}{ALLOWED_PATH}" for pod in (self._web, other))

    async def run(self) -> list[Result]:
        """All checks, in the order of `checks.CHECKS`."""
        await self._wait_enforced()
        told = Told()
        # What is killed is started again, as on any node.
        supervising = asyncio.create_task(self._sandbox.watch(), name="watch")
        try:
            async with self._following(told):
                await self._connect(checks.CONNECTIONS)
                await self._check_told(told)
                await self._check_refused()
                await self._check_history(told)
            await self._check_counted()
        finally:
            supervising.cancel()
            await asyncio.gather(supervising, return_exceptions=True)
        return self._in_order(checks.CHECKS)

    async def _wait_enforced(self) -> None:
        deadline = time.monotonic() + 10.0
        while (await curl(self._kubelet, self._client.key, "GET", self._other_url)).text != "200":
            if time.monotonic() > deadline:
                return  # the checks will say what is wrong

    async def _connect(self, count: int) -> None:
        """So many connections, one after the other, one request each."""
        urls = [part for _ in range(count) for part in ("-o", "/dev/null", self._url)]
        await self._kubelet.exec(self._client.key, ["curl", "-sS", "-g", "-H", "Connection: close", *urls])

    @contextlib.asynccontextmanager
    async def _following(self, told: Told) -> AsyncIterator[None]:
        """Everything from the client to the web server that its node tells, from now on."""
        client, web = [_name(self._client)], [_name(self._web)]
        there = flow_pb2.FlowFilter(source_pod=client, destination_pod=web, traffic_direction=[flow_pb2.INGRESS])
        responses = flow_pb2.FlowFilter(source_pod=web, destination_pod=client, event_type=_L7)

        async def follow() -> None:
            async with Flows(target, backoff=Backoff(0.05, 0.5)) as relay:
                async for item in relay.follow([there, responses], details=True):
                    told.add(item)

        target = Target(self._sandbox.cluster.relay_target, self._sandbox.cluster.client)
        await self._settled()
        follower = asyncio.create_task(follow(), name="follower")
        try:
            await asyncio.sleep(0.2)  # the call is made
            yield
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)

    async def _settled(self) -> None:
        """Until the flows of what went before are at the relay: they are not of this count."""
        target = Target(self._sandbox.cluster.relay_target, self._sandbox.cluster.client)
        async with Flows(target) as relay:
            before, deadline = -1, time.monotonic() + 5.0
            while time.monotonic() < deadline:
                seen = (await relay.status()).seen_flows
                if seen == before:
                    return
                before = seen
                await asyncio.sleep(0.3)

    async def _check_told(self, told: Told) -> None:
        def text() -> str:
            kinds = told.kinds
            return f"{kinds[FlowDetails.NEW]} opened, {kinds[FlowDetails.CLOSE]} closed, {told.lost} lost"

        await self._until(checks.TOLD, text)
        await self._until(checks.REQUESTS, lambda: f"{len(told.latencies)} with status 200 and latency")
        whole = [end for end in told.ends if end.bytes and end.reply_bytes and end.rtt_us and end.duration_us]
        end = (whole or told.ends or [FlowDetails()])[-1]
        got = f"{end.bytes} B and {end.reply_bytes} B, {end.rtt_us} us, {end.duration_us / 1000:.1f} ms"
        self._note(checks.COUNTERS, got, len(whole) == len(told.ends) > 0)

    async def _check_refused(self) -> None:
        await curl(self._kubelet, self._visitor.key, "GET", self._url)
        dropped = flow_pb2.FlowFilter(source_pod=[_name(self._visitor)], verdict=[flow_pb2.DROPPED])
        await self._check_flow(checks.DECIDED, dropped, lambda flow: ", ".join(p.name for p in flow.ingress_denied_by))
        explained = await self._ciliate("observe", "--last", "1", "--verdict", "DROPPED", "--explain")
        lines = [line.strip() for line in explained.splitlines() if POLICY in line]
        self._note(checks.WHY, lines[-1] if lines else explained[-200:], bool(lines))

    async def _check_history(self, told: Told) -> None:
        """The relay is killed when its flows are on disk, as its configuration promises within two seconds."""
        sql = (
            "SELECT count(*) AS n FROM flows WHERE kind = 'NEW' AND direction = 'INGRESS' "
            f"AND source_pod = '{self._client.key.name}' AND destination_pod = '{self._web.key.name}'"
        )

        async def on_disk() -> str:
            answer = await self._ciliate("flows", "query", sql, "-o", "json")
            try:
                return str(json.loads(answer)["n"])
            except (ValueError, KeyError):
                return answer

        await self._until(checks.ON_DISK, on_disk)
        os.kill(self._sandbox.cluster.pid("relay"), signal.SIGKILL)
        await self._connect(checks.LATER)
        await self._until(checks.AFTERWARDS, self._stored)
        total = checks.CONNECTIONS + checks.LATER

        def followed() -> str:
            twice, opened = sum(count - 1 for count in told.uuids.values()), told.kinds[FlowDetails.NEW]
            if opened == total and not twice and not told.lost:
                return checks.FOLLOWED.expected
            return f"{opened} of {total} connections, {twice} twice, {told.lost} lost"

        await self._until(checks.FOLLOWED, followed)

    async def _stored(self) -> str:
        between = ("--from-pod", _name(self._client), "--to-pod", _name(self._web))
        text = await self._ciliate("observe", "--all", *between, "--type", "policy-verdict", "-o", "json")
        lines = [line for line in text.splitlines() if '"INGRESS"' in line]
        return checks.AFTERWARDS.expected if len(lines) >= checks.CONNECTIONS else f"{len(lines)} of them"

    async def _check_counted(self) -> None:
        text = await self._ciliate("observe", "--aggregate-by", "verdict", "-o", "json")
        verdicts = {word for word in ("FORWARDED", "DROPPED") if f'"{word}"' in text}
        self._note(checks.GROUPS, " and ".join(sorted(verdicts, reverse=True)) or text[-200:])
        target = Target(self._sandbox.cluster.relay_target, self._sandbox.cluster.client)
        async with Flows(target) as relay:
            names = [node.name.rpartition("/")[2] for node in await relay.nodes()]
        self._note(checks.NODES, ", ".join(sorted(names)))

    async def _until(self, check: Check, text: Callable[[], object]) -> None:
        """Flows take a moment: look until it is as expected, up to a bound."""
        deadline = time.monotonic() + SOON_SECONDS
        while True:
            got = text()
            got = await got if asyncio.iscoroutine(got) else got
            if got == check.expected or time.monotonic() > deadline:
                self._note(check, str(got))
                return
            await asyncio.sleep(0.1)

    async def _ciliate(self, *arguments: str) -> str:
        """What the command line prints, run as a person would."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli", "--sandbox", self._sandbox.paths.name, *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return output.decode(errors="replace").strip()


def _name(pod: RunningPod) -> str:
    return f"{pod.key.namespace}/{pod.key.name}"
