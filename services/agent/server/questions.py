"""Questions to policy: explained, and replayed against policies that are not in force.

In: requests of the introspection API and what the agent knows. Out: its answers. Computed on values that nothing else
changes, so that a long simulation can run beside the event loop.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from services.agent.server.cast import Cast
from services.agent.server.knowledge import Knowledge
from services.agent.server.views import considered_view, rule_view
from services.common.errors import Invalid, NotFound
from services.common.pb.agent.v1 import agent_pb2 as pb
from services.model.addresses import IPNetwork, to_bytes
from services.model.identity import Reserved
from services.model.labels import POD_NAMESPACE, SOURCE_FQDN, SOURCE_K8S, Label, Labels
from services.model.objects import ObjectKey, PolicyObject
from services.model.verdict import Direction
from services.policy.cidr_group import KIND as CIDR_GROUP
from services.policy.l7 import Request
from services.policy.peers import Party
from services.policy.problems import PolicyInvalid
from services.policy.selectors import LabelView
from services.policy.simulate import Actor, Flip, Simulation, simulate
from services.policy.world import Answer, Fate, Question, World, is_endpoint

MAX_FLOWS = 50_000
MAX_DOCUMENTS = 1000
MAX_HEADERS = 100
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
FLIP_BYTES = 8 << 20
"""Of flips in an answer: more than anybody reads, and little of an agent's memory."""
CLUSTERWIDE = frozenset({"CiliumClusterwideNetworkPolicy", CIDR_GROUP})


def explain(knowledge: Knowledge, asked: pb.Connection) -> pb.ExplainPolicyResponse:
    """Both directions of a connection, every rule considered."""
    world = knowledge.engine.world()
    cast = Cast(knowledge, world)
    source, destination = cast.find(asked.source, "source"), cast.find(asked.destination, "destination")
    question = _question(world, source, destination, asked)
    if destination.prefix is not None:
        question = replace(question, destination=named(knowledge, question.destination, destination.prefix))
    response = pb.ExplainPolicyResponse(
        source=source.names[0],
        destination=destination.names[0],
        source_identity=_identity(knowledge, source, question.source),
        destination_identity=_identity(knowledge, destination, question.destination),
        passes=all(world.answer(question, direction).passes for direction in Direction),
        enforcement=world.mode.value,
    )
    for direction, subject in ((Direction.EGRESS, source), (Direction.INGRESS, destination)):
        response.directions.append(_explained(knowledge, world, question, direction, subject))
    return response


def _identity(knowledge: Knowledge, actor: Actor, party: Party) -> int:
    """The number that flows show; of the outside as the kernel has it, by name without an IP version the world's."""
    if party.id >= 0:
        return party.id
    if actor.prefix is None or actor.names[0] == "world":
        return int(Reserved.WORLD)
    return knowledge.engine.outside_identity(actor.prefix)


def named(knowledge: Knowledge, party: Party, prefix: IPNetwork) -> Party:
    """An outside address with the toFQDNs selectors that match the names which it was learned under."""
    if prefix.prefixlen != prefix.max_prefixlen:
        return party
    fqdn = knowledge.engine.name_rules().fqdn
    names = knowledge.learned.open_names(to_bytes(prefix.network_address))
    selectors = {selector for name in names for selector in fqdn.matching(name)}
    labels = [*party.view.labels, *(Label(SOURCE_FQDN, selector) for selector in sorted(selectors))]
    return replace(party, view=LabelView(Labels(labels))) if selectors else party


def _explained(
    knowledge: Knowledge, world: World, question: Question, direction: Direction, subject: Actor
) -> pb.DirectionExplained:
    answer = world.answer(question, direction)
    found = pb.DirectionExplained(
        direction=direction.name.lower(),
        subject=subject.names[0],
        has_policy=is_endpoint(subject.party),
        answer=answer_view(answer),
    )
    if not found.has_policy:
        return found
    explanation = world.explain(question, direction)
    engine = knowledge.engine
    found.considered.extend(considered_view(engine, one) for one in explanation.considered)
    told = answer.passes or answer.fate in (Fate.DENIED, Fate.CONFLICT)
    if not told and explanation.nearest is not None:
        found.nearest.CopyFrom(considered_view(engine, explanation.nearest))
    closing = dict.fromkeys(policy.key for policy, spec in world.specs(subject.party) if direction in spec.default_deny)
    found.isolating.extend(rule_view(engine.policy_ref(key, direction)) for key in closing)
    found.conflicts.extend(str(conflict) for conflict in world.conflicts(subject.party))
    namespace = subject.party.view.value(SOURCE_K8S, POD_NAMESPACE)
    found.audited = engine.audit.everywhere or namespace in engine.audit.namespaces
    return found


class Replay:
    """A simulation that is ready to run: `run` touches nothing that others change, so it may run in a thread."""

    def __init__(self, knowledge: Knowledge, request: pb.SimulatePolicyRequest) -> None:
        if len(request.flows) > MAX_FLOWS:
            raise Invalid(f"flows: {len(request.flows)} are too many; at most {MAX_FLOWS}")
        if len(request.documents) > MAX_DOCUMENTS:
            raise Invalid(f"documents: {len(request.documents)} are too many; at most {MAX_DOCUMENTS}")
        self._before = knowledge.engine.world()
        known = {*knowledge.engine.policies(), *knowledge.engine.cidr_groups()}
        deleted = list(_keys(request.deletions, known))
        try:
            self._after = knowledge.engine.world_with(_documents(request.documents), deleted)
        except PolicyInvalid as invalid:
            raise Invalid(f"documents: {invalid}") from invalid
        self._cast = Cast(knowledge, self._before)
        self._flows = list(request.flows)
        self._audit = str(knowledge.engine.audit)

    def run(self) -> pb.SimulatePolicyResponse:
        """Every flip and every recorded flow that would meet another verdict."""
        found: Simulation = simulate(self._before, self._after, self._cast.everybody(self._before, self._after))
        response = pb.SimulatePolicyResponse(
            complete=found.complete, enforcement=self._before.mode.value, audit=self._audit
        )
        room = FLIP_BYTES
        for flip in found.flips:
            view = _flip_view(flip)
            room -= view.ByteSize()
            if room < 0:
                response.complete = False
                break
            response.flips.append(view)
        for index, flow in enumerate(self._flows):
            answer = self._replayed(flow)
            if answer.passes != flow.forwarded:
                response.flows.add(flow=index, after=answer_view(answer))
        return response

    def _replayed(self, flow: pb.RecordedFlow) -> Answer:
        asked = flow.connection
        source = self._cast.find(asked.source, "flows.source")
        destination = self._cast.find(asked.destination, "flows.destination")
        direction = Direction.EGRESS if flow.direction == "egress" else Direction.INGRESS
        return self._after.answer(_question(self._after, source, destination, asked), direction)


def _flip_view(flip: Flip) -> pb.Flip:
    return pb.Flip(
        source=flip.source.names,
        destination=flip.destination.names,
        ports=str(flip.ports),
        before=answer_view(flip.before),
        after=answer_view(flip.after),
    )


def answer_view(answer: Answer) -> pb.Answer:
    """An answer as a message."""
    return pb.Answer(fate=answer.fate.value, passes=answer.passes, requests=answer.requests)


def _question(world: World, source: Actor, destination: Actor, asked: pb.Connection) -> Question:
    if asked.protocol > 255 or asked.port > 65535:
        raise Invalid(f"port: {asked.port} of protocol {asked.protocol} does not exist")
    request = _request(asked) if asked.http_method or asked.http_path else None
    return Question(source.within(world), destination.within(world), asked.protocol, asked.port, request)


def _request(asked: pb.Connection) -> Request:
    headers = []
    for index, text in enumerate(asked.http_headers[: MAX_HEADERS + 1]):
        name, colon, value = text.partition(":")
        if index == MAX_HEADERS or not colon or not HEADER_NAME.fullmatch(name):
            raise Invalid(f"http_headers[{index}]: at most {MAX_HEADERS}, written as 'Name: value'")
        headers.append((name, value.strip(" ")))
    return Request(asked.http_method, asked.http_path, asked.http_host, tuple(headers))


def _documents(texts: Iterable[str]) -> Iterator[PolicyObject]:
    for index, text in enumerate(texts):
        try:
            document = json.loads(text)
            metadata = document["metadata"]
            kind, name = str(document["kind"]), str(metadata["name"])
            namespace = "" if kind in CLUSTERWIDE else str(metadata.get("namespace") or "default")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise Invalid(f"documents[{index}]: is no policy document with a kind and metadata.name") from error
        yield PolicyObject(ObjectKey(kind, namespace, name), document)


def _keys(texts: Iterable[str], known: set[ObjectKey]) -> Iterator[ObjectKey]:
    by_name = {str(key): key for key in known}
    for text in texts:
        if text not in by_name:
            names = ", ".join(sorted(by_name)[:20]) or "none"
            raise NotFound(f"deletions: there is no policy {text!r} in force; there are: {names}")
        yield by_name[text]
