"""Runs cases on a cluster: sets lanes up, makes requests, compares, and takes everything away whatever happens.

Cases wait in one queue; each lane takes the next when it is done with one. Where a case applies policies, a wrong
outcome is asked again until they must have been enforced; without policies the first answer counts.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from services.cli.connectivity import objects
from services.cli.connectivity.ask import Answer, Outcome
from services.cli.connectivity.case import Ask, Case, Lane, Need
from services.cli.connectivity.cluster import OWNER_LABEL, Cluster, Document, Facts, Pod
from services.cli.connectivity.report import Result, Status
from services.cli.connectivity.seen import Flows
from services.common.errors import CiliateError
from services.sandbox.supervisor import uninterrupted

READY_SECONDS = 120.0
SETTLE_SECONDS = 8.0
"""After which every node must enforce what was applied."""
ANSWER_SECONDS = 3.0
SILENCE_SECONDS = 0.8
"""How long to wait where no answer is what should come."""
_AT_ONCE = 8
_CLUSTER_WIDE = ("CiliumClusterwideNetworkPolicy", "CiliumCIDRGroup", "CiliumEgressGatewayPolicy")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run and how."""

    cases: Sequence[Case]
    namespace: str = "ciliate-test"
    lanes: int = 2
    image: str = objects.IMAGE
    told: Callable[[str], None] = field(default=lambda text: None)


class Runner:
    """One run. `flows` is None where there is no relay to ask."""

    def __init__(self, cluster: Cluster, plan: Plan, flows: Flows | None) -> None:
        self._cluster, self._plan, self._flows = cluster, plan, flows
        self.results: list[Result] = []
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> list[Result]:
        """All cases; `results` has those that are done also when it is cancelled."""
        async with self._cluster as facts:
            try:
                await self._clear()  # what a killed run left
                await self._run_lanes(facts)
            finally:
                self._plan.told("cleaning up")
                await uninterrupted(self._clear())
        return self.results

    async def _clear(self) -> None:
        """Remove everything that carries our label."""
        for kind in (*_CLUSTER_WIDE, "Namespace"):
            ours = [
                document
                for document in await self._cluster.get(kind)
                if OWNER_LABEL in (document["metadata"].get("labels") or {})
            ]
            await self._cluster.delete(ours)

    async def _run_lanes(self, facts: Facts) -> None:
        names = [f"{self._plan.namespace}-{number}" for number in range(1, self._plan.lanes + 1)]
        self._plan.told(f"clients and servers in {', '.join(names)}")
        pem, near, far = objects.certificate(), facts.nodes[0].name, facts.nodes[1].name if facts.nodes[1:] else ""
        for name in names:
            made = [objects.namespace(name), *objects.services(name)]
            await self._cluster.apply([*made, *objects.pods(name, near, far, pem, self._plan.image)])
        await self._cluster.wait_ready(names, READY_SECONDS)
        lanes = [await self._lane(name, facts) for name in names]
        await asyncio.gather(*(self._warm_up(lane) for lane in lanes))
        # Those without policies first: nothing that a policy might leave behind can meet them.
        queue = deque(sorted(self._plan.cases, key=lambda case: case.applies is not None))
        async with asyncio.TaskGroup() as group:
            for lane in lanes:
                group.create_task(self._work(lane, queue))

    async def _lane(self, name: str, facts: Facts) -> Lane:
        pods = {}
        for document in await self._cluster.get("Pod", name):
            metadata, status = document["metadata"], document["status"]
            addresses = tuple(entry["ip"] for entry in status["podIPs"])
            pods[metadata["name"]] = Pod(name, metadata["name"], document["spec"]["nodeName"], addresses)
        services = {each["metadata"]["name"]: each for each in await self._cluster.get("Service", name)}
        return Lane(name, facts, pods, services)

    async def _warm_up(self, lane: Lane) -> None:
        """Until every server answers every client: the first packets must not race the set-up of the lane."""
        asks = [*lane.reach(lane.client), *lane.reach(lane.stranger)]
        deadline = time.monotonic() + SETTLE_SECONDS
        await asyncio.gather(*(self._settle(ask, deadline) for ask in asks))

    async def _work(self, lane: Lane, queue: deque[Case]) -> None:
        while queue:
            case = queue.popleft()
            if missing := case.needs - lane.offers() - ({Need.RELAY} if self._flows else set()):
                why = f"needs {', '.join(sorted(missing))}"
                self._done(Result(case.name, Status.SKIPPED, problems=(why,)))
                continue
            self._done(await self._run_case(case, lane))

    def _done(self, result: Result) -> None:
        self.results.append(result)
        if result.status is not Status.SKIPPED:
            self._plan.told(f"{result.status.value:<7} {result.name}")

    async def _run_case(self, case: Case, lane: Lane) -> Result:
        begun, since = time.monotonic(), time.time()
        applied: list[Document] = []
        asks: list[Ask] = []
        try:
            asks = list(case.asks(lane))
            applied = list(case.applies(lane)) if case.applies else []
            await self._cluster.apply(applied) if applied else None
            problems = await self._ask_all(asks, begun + SETTLE_SECONDS if applied else 0.0)
            if self._flows is not None and not problems:
                problems = await self._flows.missing(asks, since - 1.0)
        except CiliateError as error:
            problems = [str(error)]
        finally:
            if applied:
                await uninterrupted(self._cluster.delete(applied))
        flows = sum(ask.seen is not None for ask in asks) if self._flows else 0
        status = Status.FAILED if problems else Status.PASSED
        return Result(case.name, status, len(asks), flows, time.monotonic() - begun, tuple(problems))

    async def _ask_all(self, asks: Sequence[Ask], deadline: float) -> list[str]:
        """What is to be refused first: once it is, the policies are in force for what is to be allowed."""
        problems: list[str] = []
        for refused in (True, False):
            chosen = [ask for ask in asks if (ask.expect is not Outcome.ANSWERED) is refused]
            answers = await asyncio.gather(*(self._settle(ask, deadline) for ask in chosen))
            problems += [text for ask, answer in zip(chosen, answers, strict=True) if (text := complaint(ask, answer))]
            problems += _strays(chosen, answers)
        return problems

    async def _settle(self, ask: Ask, deadline: float) -> Answer:
        """Ask; where the outcome is wrong, again until the deadline (monotonic seconds)."""
        while True:
            async with self._slots:
                answer = await self._ask(ask)
            if not complaint(ask, answer) or time.monotonic() > deadline:
                return answer
            await asyncio.sleep(0.05)

    async def _ask(self, ask: Ask) -> Answer:
        seconds = SILENCE_SECONDS if ask.expect is Outcome.UNANSWERED else ANSWER_SECONDS
        done = await self._cluster.run(ask.source, ask.request.command(seconds), seconds * 2 + 4.0)
        return ask.request.read(*done)


def complaint(ask: Ask, answer: Answer) -> str:
    """What is wrong with an answer; "" = nothing."""
    if answer.outcome is not ask.expect:
        return f"{ask}: {answer}, not {ask.expect}"
    if ask.contains and ask.contains not in answer.text:
        return f"{ask}: {ask.contains.strip()!r} is not in {' '.join(answer.text.split())[:160]!r}"
    if ask.lacks and ask.lacks in answer.text:
        return f"{ask}: {ask.lacks.strip()!r} is in the answer"
    return ""


def _strays(asks: Sequence[Ask], answers: Sequence[Answer]) -> list[str]:
    """Requests that had to go to one and the same server, and did not."""
    servers: dict[str, set[str]] = {}
    for ask, answer in zip(asks, answers, strict=True):
        if ask.alike:
            line = next((text for text in answer.text.splitlines() if text.startswith("server: ")), answer.text)
            servers.setdefault(ask.alike, set()).add(line)
    return [f"{what}: answered by {len(found)} servers" for what, found in servers.items() if len(found) > 1]
