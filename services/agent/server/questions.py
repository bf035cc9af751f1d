"""Who people mean, and questions to policy about them: explained, and replayed against policies that are not in force.

In: requests of the introspection API and what the agent knows. Out: its answers. Computed on values that nothing else
changes, so that a long simulation can run beside the event loop.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Iterator

from services.agent.server.knowledge import Knowledge
from services.agent.server.views import considered_view, rule_view
from services.common.errors import Invalid, NotFound
from services.common.pb.agent.v1 import agent_pb2 as pb
from services.model.addresses import IPAddress
from services.model.identity import RESERVED_LABELS, NumericIdentity, is_cluster
from services.model.labels import LabelError, Labels
from services.model.objects import ObjectKey, Pod, PolicyObject
from services.model.verdict import Direction
from services.policy.l7 import Request
from services.policy.peers import Party
from services.policy.problems import PolicyInvalid
from services.policy.selectors import LabelView
from services.policy.simulate import Actor, Flip, Simulation, actors_outside, simulate
from services.policy.verdict import Outcome
from services.policy.world import Answer, Question, World, is_endpoint

MAX_FLOWS = 50_000
MAX_DOCUMENTS = 1000
FLIP_BYTES = 8 << 20
"""Of flips in an answer: more than anybody reads, and little of an agent's memory."""
CLUSTERWIDE = frozenset({"CiliumClusterwideNetworkPolicy"})


class Cast:
    """Everybody that policy may be asked about, as of now."""

    def __init__(self, knowledge: Knowledge, world: World) -> None:
        self._world = world
        self._parties = dict(knowledge.engine.parties())
        self._labels = knowledge.engine.identity_labels
        self._numbers: dict[tuple[str, str], int] = {
            (entry.namespace, entry.pod): entry.identity for entry in knowledge.identities.entries.values() if entry.pod
        }
        for record in knowledge.manager.endpoints.values():
            endpoint = record.endpoint
            self._numbers[endpoint.namespace, endpoint.pod] = endpoint.identity
        self._addresses: dict[tuple[str, str], list[IPAddress]] = {}
        self._pods = {(pod.namespace, pod.name): pod for pod in knowledge.pods.all()}
        self._at = {
            **{e.prefix.network_address: (e.namespace, e.pod) for e in knowledge.identities.entries.values() if e.pod},
            **{
                address: (record.endpoint.namespace, record.endpoint.pod)
                for record in knowledge.manager.endpoints.values()
                for address in record.endpoint.addresses
            },
        }
        for address, key in self._at.items():
            self._addresses.setdefault(key, []).append(address)

    def find(self, peer: pb.Peer, field: str) -> Actor:
        """Who is meant; raises `NotFound` or `Invalid` naming the field."""
        if peer.name:
            return self._named(peer.name, field)
        if peer.pod:
            key = _pod_key(peer.pod)
            if self._numbers.get(key) == peer.identity:
                return self._pod(key)
        if peer.address and not is_cluster(peer.identity) and peer.identity not in _INSIDE:
            return self._outside(peer.address, field)
        party = self._parties.get(peer.identity)
        if party is None:
            party = Party(peer.identity, LabelView(_labels(peer.labels, field)))
        return Actor((peer.pod or f"identity {peer.identity}",), party)

    def everybody(self, *worlds: World) -> list[Actor]:
        """Pods that are equal to policy as one actor, the nodes, and the outside by the prefixes that policies name."""
        blocks = list(dict.fromkeys(block for world in worlds for block in world.blocks))
        alike: dict[object, list[tuple[tuple[str, str], Party]]] = {}
        for key, number in sorted(self._numbers.items()):
            if number in self._parties:
                party = self._pod(key).party
                inside = tuple(place for place, block in enumerate(blocks) if block.matches(party))
                alike.setdefault((number, inside, frozenset(party.ports.items())), []).append((key, party))
        found = [
            Actor(tuple(f"{namespace}/{name}" for (namespace, name), _ in pods), pods[0][1]) for pods in alike.values()
        ]
        found += [Actor((_reserved_name(n),), self._parties[n]) for n in _INSIDE if n in self._parties]
        for text in ("0.0.0.0/0", "::/0"):
            prefix = ipaddress.ip_network(text)
            found.append(Actor((f"world (IPv{prefix.version})",), self._world.outside(prefix), prefix))
        outside = [prefix for prefix in actors_outside(*worlds) if prefix.prefixlen]
        return found + [Actor((str(prefix),), self._world.outside(prefix), prefix) for prefix in outside]

    def _named(self, text: str, field: str) -> Actor:
        for number, labels in RESERVED_LABELS.items():
            if f"reserved:{text}" in labels.texts() and _reserved_name(number) == text and number in self._parties:
                if text.startswith("world"):
                    return self._outside("::" if text.endswith("6") else "0.0.0.0", field)
                return Actor((text,), self._parties[number])
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            key = self._pod_called(text)
            if key is None:
                known = ", ".join(f"{ns}/{name}" for ns, name in sorted(self._numbers)[:20]) or "none"
                raise NotFound(f"{field}: {text!r} is no pod, Deployment, address or entity; pods: {known}") from None
            return self._pod(key)
        at = self._at.get(address)
        return self._pod(at, address) if at else self._outside(text, field)

    def _pod_called(self, text: str) -> tuple[str, str] | None:
        """A pod by name, or the first one of a workload."""
        key = _pod_key(text)
        if key in self._numbers:
            return key
        owned = (
            name
            for name in sorted(self._numbers)
            if name[0] == key[0] and (pod := self._pods.get(name)) is not None and _owner(pod) == key[1]
        )
        return next(owned, None)

    def _pod(self, key: tuple[str, str], address: IPAddress | None = None) -> Actor:
        """A pod; one that is asked about by name and has addresses of both families is met by its IPv4 one."""
        number = self._numbers[key]
        party = self._parties.get(number)
        if party is None:
            raise NotFound(f"pod {key[0]}/{key[1]}: its identity {number} is not known here yet; try again")
        # An ipBlock or a port name may tell pods of one identity apart: the pod's own addresses and ports count.
        own = sorted(self._addresses.get(key, ()), key=lambda each: (each.version, int(each)))
        asked = (address,) if address else tuple(each for each in own if each.version == own[0].version)
        ports = _ports(self._pods[key]) if key in self._pods else party.ports
        return Actor((f"{key[0]}/{key[1]}",), Party(number, party.view, asked or party.addresses, ports))

    def _outside(self, text: str, field: str) -> Actor:
        try:
            prefix = ipaddress.ip_network(text)
        except ValueError:
            raise Invalid(f"{field}: {text!r} is no address") from None
        return Actor((text,), self._world.outside(prefix), prefix)


_INSIDE = (1, 6)
"""Host and remote nodes: they have addresses, but are known by their identity."""


def explain(knowledge: Knowledge, asked: pb.Connection) -> pb.ExplainPolicyResponse:
    """Both directions of a connection, every rule considered."""
    world = knowledge.engine.world()
    cast = Cast(knowledge, world)
    source, destination = cast.find(asked.source, "source"), cast.find(asked.destination, "destination")
    question = _question(world, source, destination, asked)
    response = pb.ExplainPolicyResponse(
        source=source.names[0],
        destination=destination.names[0],
        source_identity=max(question.source.id, 0),
        destination_identity=max(question.destination.id, 0),
        passes=all(world.answer(question, direction).passes for direction in Direction),
    )
    for direction, subject in ((Direction.EGRESS, source), (Direction.INGRESS, destination)):
        response.directions.append(_explained(knowledge, world, question, direction, subject))
    return response


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
    if not answer.passes and explanation.decision.outcome is not Outcome.DENY and explanation.nearest is not None:
        found.nearest.CopyFrom(considered_view(engine, explanation.nearest))
    closing = dict.fromkeys(policy.key for policy, spec in world.specs(subject.party) if direction in spec.default_deny)
    found.isolating.extend(rule_view(engine.policy_ref(key, direction)) for key in closing)
    return found


class Replay:
    """A simulation that is ready to run: `run` touches nothing that others change, so it may run in a thread."""

    def __init__(self, knowledge: Knowledge, request: pb.SimulatePolicyRequest) -> None:
        if len(request.flows) > MAX_FLOWS:
            raise Invalid(f"flows: {len(request.flows)} are too many; at most {MAX_FLOWS}")
        if len(request.documents) > MAX_DOCUMENTS:
            raise Invalid(f"documents: {len(request.documents)} are too many; at most {MAX_DOCUMENTS}")
        self._before = knowledge.engine.world()
        deleted = list(_keys(request.deletions, {policy.key for policy in self._before.policies}))
        try:
            self._after = knowledge.engine.world_with(_documents(request.documents), deleted)
        except PolicyInvalid as invalid:
            raise Invalid(f"documents: {invalid}") from invalid
        self._cast = Cast(knowledge, self._before)
        self._flows = list(request.flows)

    def run(self) -> pb.SimulatePolicyResponse:
        """Every flip and every recorded flow that would meet another verdict."""
        found: Simulation = simulate(self._before, self._after, self._cast.everybody(self._before, self._after))
        response = pb.SimulatePolicyResponse(complete=found.complete)
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
    request = Request(asked.http_method, asked.http_path) if asked.http_method or asked.http_path else None
    return Question(source.within(world), destination.within(world), asked.protocol, asked.port, request)


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


def _labels(texts: Iterable[str], field: str) -> Labels:
    try:
        return Labels.parse(texts)
    except LabelError as error:
        raise Invalid(f"{field}.labels: {error}") from error


def _pod_key(text: str) -> tuple[str, str]:
    namespace, _, name = text.rpartition("/")
    return namespace or "default", name


def _ports(pod: Pod | None) -> dict[tuple[str, int], frozenset[int]]:
    found: dict[tuple[str, int], frozenset[int]] = {}
    for port in pod.ports if pod else ():
        if port.name:
            found[port.name, port.protocol] = found.get((port.name, port.protocol), frozenset()) | {port.port}
    return found


def _owner(pod: Pod) -> str:
    return pod.workload[1]


def _reserved_name(number: int) -> str:
    return next(iter(RESERVED_LABELS[NumericIdentity(number)])).key
