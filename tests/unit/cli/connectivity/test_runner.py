"""The suite's own behaviour: what passes, what fails and says why, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence

import pytest

from services.cli.connectivity import runner
from services.cli.connectivity.app import CASES, chosen, run_all
from services.cli.connectivity.ask import Http, Outcome
from services.cli.connectivity.case import Ask, Case, Lane, Need
from services.cli.connectivity.cluster import Facts, Place
from services.cli.connectivity.objects import policy
from services.cli.connectivity.report import Status
from services.cli.connectivity.runner import Plan
from services.common.errors import Invalid, Unavailable
from tests.unit.cli.connectivity.fake import NODES, FakeCluster

OK = (0, "server: near\n200 0.001 0.002 0.0 ciliate-echo", "")
SILENT = (28, "000 0 0.8 0 ", "curl: (28) timed out")


def answers(text: str) -> tuple[int, str, str]:
    return 0, f"server: {text}\n200 0.001 0.002 0.0 ciliate-echo", ""


def everything(_place: Place, command: Sequence[str]) -> tuple[int, str, str]:
    return answers("near\nserver: far")


def asks(*found: Ask) -> Case:
    return Case("a/case", lambda lane: list(found))


def one(lane: Lane, expect: Outcome = Outcome.ANSWERED, contains: str = "") -> list[Ask]:
    return [Ask(lane.client.place, Http("http://there/"), expect, contains)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SETTLE_SECONDS", 0.2)


async def results(cluster: FakeCluster, *cases: Case, seconds: float = 10.0) -> tuple[dict[str, object], str]:
    found, why = await run_all(cluster, Plan(cases, lanes=1), None, seconds)
    assert not [key for key in cluster.objects if key[0] != "Node"], "something stayed behind"
    return {result.name: result for result in found}, why


async def test_answers_pass_and_everything_is_removed() -> None:
    cluster = FakeCluster(everything)
    found, why = await results(cluster, Case("a/case", one))
    assert (found["a/case"].status, why) == (Status.PASSED, "")
    assert {each["kind"] for each in cluster.applied} == {"Namespace", "Service", "Pod"}


@pytest.mark.parametrize(
    ("expect", "contains", "said", "words"),
    [
        (Outcome.ANSWERED, "", SILENT, "no answer, not answered"),
        (Outcome.UNANSWERED, "", OK, "answered, not no answer"),
        (Outcome.FORBIDDEN, "", (0, "403 0.001 0.002 0.0 nginx", ""), "answered, not 403 by the kernel"),
        (Outcome.ANSWERED, "server: far", OK, "'server: far' is not in"),
        (Outcome.ANSWERED, "", (3, "", "curl: (3) bad"), "failed: "),
    ],
)
async def test_what_is_wrong_is_told(expect: Outcome, contains: str, said: tuple[int, str, str], words: str) -> None:
    cluster = FakeCluster(lambda place, command: said if "http://there/" in command else everything(place, command))
    found, _ = await results(cluster, Case("a/case", lambda lane: one(lane, expect, contains)))
    assert found["a/case"].status is Status.FAILED
    assert words in found["a/case"].problems[0]
    assert found["a/case"].problems[0].startswith("client: GET http://there/: ")


async def test_only_where_policies_were_applied_is_asked_again() -> None:
    said = iter([OK, OK, SILENT])
    cluster = FakeCluster(lambda p, c: next(said, SILENT) if "http://there/" in c else everything(p, c))
    applies = lambda lane: [policy(lane.namespace, "deny", {"app": "echo"})]  # noqa: E731
    found, _ = await results(cluster, Case("a/policy", lambda lane: one(lane, Outcome.UNANSWERED), applies=applies))
    assert found["a/policy"].status is Status.PASSED
    assert "CiliumNetworkPolicy" in {each["kind"] for each in cluster.applied}
    said = iter([OK])
    found, _ = await results(cluster, Case("a/path", lambda lane: one(lane, Outcome.UNANSWERED)))
    assert found["a/path"].status is Status.FAILED


async def test_sticky_requests_that_stray() -> None:
    said = iter([answers("near"), answers("far")])
    cluster = FakeCluster(lambda p, c: next(said) if "http://there/" in c else everything(p, c))
    both = [Ask(Place("pod", "client"), Http("http://there/"), alike="requests to there")] * 2
    found, _ = await results(cluster, asks(*both))
    assert found["a/case"].problems == ("requests to there: answered by 2 servers",)


async def test_a_case_that_the_cluster_cannot_have_is_skipped_and_says_why() -> None:
    facts = Facts(NODES[:1], None)
    found, _ = await results(FakeCluster(everything, facts), *CASES)
    skipped = {name: result.problems for name, result in found.items() if result.status is Status.SKIPPED}
    assert skipped["pod-to-pod/other-node"] == ("needs two nodes",)
    assert skipped["pod-to-world"] == (f"needs {Need.WORLD}",)
    assert "pod-to-pod/same-node" not in skipped


async def test_every_case_can_be_written_down_and_asks_something() -> None:
    seen: list[str] = []

    class Recorder(FakeCluster):
        async def run(self, place: Place, command: Sequence[str], seconds: float) -> tuple[int, str, str]:
            seen.append(" ".join(command))
            return everything(place, command)

    cluster = Recorder(everything)
    found, _ = await results(cluster, *CASES)
    assert set(found) == {case.name for case in CASES}
    assert all(result.requests for result in found.values() if result.status is not Status.SKIPPED)
    applied = {each["kind"] for each in cluster.applied}
    assert applied >= {"NetworkPolicy", "CiliumNetworkPolicy", "CiliumEgressGatewayPolicy", "CiliumCIDRGroup"}
    assert len(seen) > 200


async def test_time_is_bounded_and_what_was_not_run_is_told() -> None:
    never = Case("a/never", one)

    class Slow(FakeCluster):
        async def run(self, place: Place, command: Sequence[str], seconds: float) -> tuple[int, str, str]:
            if "http://there/" in command:
                await asyncio.sleep(60)
            return everything(place, command)

    found, why = await results(Slow(everything), Case("a/slow", one), never, seconds=0.5)
    assert why == "--timeout: not done in 0.5 s"
    assert found["a/never"].problems == (f"not run: {why}",)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupt_cleans_up(number: signal.Signals) -> None:
    class Interrupted(FakeCluster):
        async def run(self, place: Place, command: Sequence[str], seconds: float) -> tuple[int, str, str]:
            os.kill(os.getpid(), number)
            await asyncio.sleep(60)
            raise AssertionError

    found, why = await results(Interrupted(everything), Case("a/case", one))
    assert why == "interrupted"
    assert found["a/case"].status is Status.FAILED


async def test_what_a_killed_run_left_is_removed_first_and_other_things_are_not() -> None:
    cluster = FakeCluster(everything)
    ours = {"ciliate.io/connectivity-test": "true"}
    for name, labels in (("left", ours), ("theirs", {})):
        await cluster.apply([{"kind": "Namespace", "metadata": {"name": name, "labels": labels}}])
    await run_all(cluster, Plan([Case("a/case", one)], lanes=1), None, 10.0)
    assert [key[2] for key in cluster.objects] == ["theirs"]


async def test_a_cluster_that_fails_is_told_once() -> None:
    class Broken(FakeCluster):
        async def wait_ready(self, namespaces: Sequence[str], seconds: float) -> None:
            raise Unavailable("pods are not ready after 120 s: client: image not found")

    found, why = await results(Broken(everything), Case("a/case", one))
    assert "image not found" in why
    assert found["a/case"].status is Status.FAILED


def test_choosing() -> None:
    names = {case.name for case in chosen(CASES, ["^pod-to-pod", "!fragments"])}
    assert "pod-to-pod/same-node" in names
    assert "pod-to-pod/fragments" not in names
    assert all(name.startswith("pod-to-pod") for name in names)
    assert len(chosen(CASES, [])) == len(CASES)
    with pytest.raises(Invalid, match=r"--test: no case is left by nothing-like-it; see: .* --list"):
        chosen(CASES, ["nothing-like-it"])
    with pytest.raises(Invalid, match="is no regular expression"):
        chosen(CASES, ["("])


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
