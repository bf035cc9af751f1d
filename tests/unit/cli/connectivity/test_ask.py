"""Outcomes of requests, and the two reports."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from services.cli.connectivity import report
from services.cli.connectivity.ask import Http, Outcome, Ping, Resolve, Udp
from services.cli.connectivity.case import Seen
from services.cli.connectivity.report import Result, Status
from services.cli.connectivity.seen import matches
from services.common.pb.flow import flow_pb2


@pytest.mark.parametrize(
    ("status", "output", "errors", "outcome"),
    [
        (0, "body\n200 0.001 0.002 0.0 nginx", "", Outcome.ANSWERED),
        (0, "no\n403 0.001 0.002 0.0 nginx", "", Outcome.ANSWERED),
        (0, "\n403 0.001 0.002 0.0 ", "", Outcome.FORBIDDEN),
        (28, "\n000 0 0.8 0 ", "timed out", Outcome.UNANSWERED),
        (28, "\n000 0.001 0.8 0 ", "timed out", Outcome.UNANSWERED),
        (7, "\n000 0 0 0 ", "refused", Outcome.REFUSED),
        (6, "\n000 0 0 0 ", "no such host", Outcome.NO_NAME),
        (35, "\n000 0.1 0.2 0 ", "TLS reset", Outcome.UNANSWERED),
        (56, "\n000 0.1 0.2 0 ", "reset", Outcome.UNANSWERED),
        (2, "", "curl: unknown option", Outcome.FAILED),
        (127, "", "curl: not found", Outcome.FAILED),
    ],
)
def test_http(status: int, output: str, errors: str, outcome: Outcome) -> None:
    assert Http("http://a/").read(status, output, errors).outcome is outcome


@pytest.mark.parametrize(
    ("status", "output", "outcome"),
    [
        (0, "64 10.0.0.1 server: near", Outcome.ANSWERED),
        (0, "60 10.0.0.1 server: near", Outcome.FAILED),  # not all of it came back
        (0, "64 10.0.0.2 server: near", Outcome.FAILED),  # somebody else answered
        (28, "", Outcome.UNANSWERED),
        (7, "", Outcome.REFUSED),
        (1, "", Outcome.FAILED),
    ],
)
def test_udp(status: int, output: str, outcome: Outcome) -> None:
    assert Udp("10.0.0.1", 5300).read(status, output, "").outcome is outcome


def test_ping_and_names() -> None:
    lost = "1 packets transmitted, 0 received, 100% packet loss"
    assert Ping("a").read(0, "1 received", "").outcome is Outcome.ANSWERED
    assert Ping("a").read(1, lost, "").outcome is Outcome.UNANSWERED
    assert Ping("a").read(1, lost, "ping: local error: message too long").outcome is Outcome.FAILED
    assert Ping("a", 1300, whole=True).command(1)[-5:] == ["-s", "1300", "-M", "do", "a"]
    assert Resolve("a").read(0, "10.0.0.1 STREAM a", "").outcome is Outcome.ANSWERED
    assert Resolve("a").read(2, "", "").outcome is Outcome.NO_NAME


def test_flows_are_matched_by_rule_and_request() -> None:
    flow = flow_pb2.Flow(ingress_denied_by=[flow_pb2.Policy(name="deny")])
    flow.l7.http.method, flow.l7.http.url = "GET", "http://a:80/other"
    assert matches(flow, Seen("DROPPED", "deny", http="GET /other"))
    assert not matches(flow, Seen("DROPPED", "allow"))
    assert not matches(flow, Seen("DROPPED", "deny", http="POST /other"))


RESULTS = [
    Result("group/good", Status.PASSED, 4, 1, 0.5),
    Result("group/bad", Status.FAILED, 2, 0, 1.5, ("client: \x1b[31mno answer", "second", "third", "fourth")),
    Result("left", Status.SKIPPED, problems=("needs two nodes",)),
]


def test_junit() -> None:
    (suite,) = ElementTree.fromstring(report.junit(RESULTS, 2.0))
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["skipped"]) == ("3", "1", "1")
    good, bad, left = suite
    assert (good.attrib["classname"], good.attrib["name"], len(good)) == ("group", "good", 0)
    assert bad[0].attrib["message"] == "client:  [31mno answer"
    assert (bad[0].text or "").endswith("fourth")
    assert (left[0].tag, left[0].attrib["message"]) == ("skipped", "needs two nodes")


def test_summary_counts() -> None:
    assert report.summary(RESULTS, 2.0) == "1 of 3 cases passed, 1 failed, 1 skipped; 6 requests in 2.0 s"
    assert report.table(RESULTS).row_count == 3
