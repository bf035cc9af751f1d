"""Verdicts and validity decisions computed by the public reference engines, for CNP and CCNP documents."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from services.agent.calc.binding import ALL_CAPABILITIES, ANY_RULE, Program, bind, with_local_host
from services.model.labels import Labels
from services.model.objects import ObjectKey, PolicyObject, Service
from services.model.verdict import Direction
from services.policy.compile import Effect, Template, Value, function_of, lookup, slots
from services.policy.peers import Party
from services.policy.problems import PolicyInvalid
from services.policy.read import read_policy
from services.policy.references import CidrGroup, resolve
from services.policy.rules import Policy, Spec
from services.policy.selectors import LabelView
from services.policy.verdict import Mode, Outcome, applying, decide, is_closed, is_enforced
from tests.conftest import Tally

DATA = Path(__file__).resolve().parents[4] / "shared" / "conformance"
DIRECTIONS = {"ingress": Direction.INGRESS, "egress": Direction.EGRESS}
HOST = 1


def load(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.exists():
        return []
    with gzip.open(path, "rt") as file:
        found: list[dict[str, Any]] = json.load(file)
    return found


CASES, VALIDITY = load("cnp-cases.json.gz"), load("cnp-validity.json.gz")
absent = pytest.mark.skipif(not CASES, reason="needs the conformance data in ../shared/conformance")


class Nowhere:
    """A cluster without Services and CIDR groups."""

    def services(self) -> list[Service]:
        return []

    def backends(self, service: Service) -> list[Any]:
        return []

    def cidr_groups(self) -> list[CidrGroup]:
        return []


def source(case: dict[str, Any]) -> PolicyObject:
    metadata = case["object"]["metadata"]
    return PolicyObject(ObjectKey(case["kind"], metadata.get("namespace", ""), metadata["name"]), case["object"])


@absent
def test_validity(tally: Tally) -> None:
    assert len(VALIDITY) == 108
    wrong = []
    for case in VALIDITY:
        try:
            read_policy(source(case))
            problems = ""
        except PolicyInvalid as invalid:
            problems = str(invalid)
        if (not problems) != case["valid"]:
            wrong.append((case["file"], case["error"], problems))
    assert not wrong
    tally("conformance: validity decisions", len(VALIDITY))


def program(policy: Policy, specs: list[tuple[Policy, Spec]], direction: Direction, subject: Party) -> Program:
    """The rules of one subject as the agent binds them, with everything that a datapath could enforce."""
    if not is_enforced(specs, direction, subject, Mode.DEFAULT):
        return Program((ANY_RULE,))
    rules = [r for _, spec in specs for r in spec.rules if r.direction == direction]
    bound = bind([(policy, r, i + 1) for i, r in enumerate(rules)], direction, subject.ports, ALL_CAPABILITIES)
    if not is_closed(specs, direction, subject, Mode.DEFAULT):
        bound = Program((*bound.anyone, ANY_RULE), bound.bound)
    return bound if subject.id == HOST else with_local_host(bound, direction)


def compiled(bound: Program, peer: Party) -> tuple[Template, Template]:
    """(the peer's entries, the any-peer entries)."""
    matching = [b for b in bound.bound if any(p.matches(peer) for p in b.peers)]
    own = [piece for b in matching for piece in (*b.pieces, *b.resolved(peer.ports))]
    common = function_of(bound.anyone)
    return (slots(function_of([*bound.anyone, *own]), common) if matching else ()), slots(common)


def word(value: Value | None, inspected: bool) -> str:
    if value is None:
        return "drop"
    if value.effect == Effect.DENY:
        return "deny"
    # A plain allow beside L7 rules lets everything pass: the reference redirects there, and its proxy allows all.
    return "redirect" if value.l7 is not None or inspected else "allow"


@absent
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['file']}-{case['doc']}")
def test_verdicts(case: dict[str, Any], tally: Tally) -> None:
    policy = resolve(read_policy(source(case)), Nowhere())
    parties = {i["id"]: Party(i["id"], LabelView(Labels.parse(i["labels"]))) for i in case["identities"]}
    wrong = []
    for entry in case["subjects"]:
        subject, host = parties[entry["subject"]], entry["subject"] == HOST
        specs = [(policy, spec) for spec in policy.specs if spec.host] if host else applying([policy], subject)
        bound = {direction: program(policy, specs, direction, subject) for direction in Direction}
        tries = {(d, peer): compiled(bound[d], party) for d in Direction for peer, party in parties.items()}
        for direction, key in ((Direction.INGRESS, "ingressEnforced"), (Direction.EGRESS, "egressEnforced")):
            assert is_enforced(specs, direction, subject, Mode.DEFAULT) == entry[key]
        for wanted in entry["verdicts"]:
            direction = DIRECTIONS[wanted["dir"]]
            flow = wanted["proto"], wanted["port"]
            decision = decide(specs, direction, subject, parties[wanted["peer"]], *flow, host=host)
            inspected = decision.inspected and decision.outcome is Outcome.ALLOW
            declared = "redirect" if inspected else decision.outcome.value
            value = lookup(*tries[direction, wanted["peer"]], *flow)
            enforced = word(value, inspected and decision.l7 is None)
            if not declared == enforced == wanted["verdict"]:
                wrong.append((entry["subject"], wanted, declared, enforced))
    assert not wrong, wrong[:5]
    tally("conformance: Cilium policy cases (engine)", 1)
    tally("conformance: Cilium policy verdicts (engine)", sum(len(entry["verdicts"]) for entry in case["subjects"]))
