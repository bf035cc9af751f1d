"""What the agent knows -> messages of the introspection API. Pure translation, nothing is decided here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.agent.abi.endpoints import HOST_ENDPOINT
from services.agent.abi.policy import PolicyEntry, PolicyFlags, PolicyKey
from services.agent.calc.answers import EndpointPolicy
from services.agent.calc.catalogue import RuleRef
from services.agent.calc.egress import EgressStatus
from services.agent.calc.engine import Engine
from services.agent.endpoints.records import EndpointRecord
from services.agent.realised import Realised
from services.agent.server.knowledge import Knowledge
from services.common.pb.agent.v1 import agent_pb2 as pb
from services.model.addresses import IPAddress
from services.model.identity import RESERVED_LABELS, is_cluster, is_reserved
from services.model.objects import ObjectKey
from services.model.verdict import Direction, Protocol
from services.policy.explain import Considered
from services.policy.l7 import HttpRule
from services.policy.label_keys import label_keys

_PROTOCOLS = {protocol: protocol.name for protocol in Protocol} | {Protocol.ICMPV6: "ICMPv6"}


def endpoint_view(record: EndpointRecord, policy: EndpointPolicy | None, realised: Realised) -> pb.Endpoint:
    """One endpoint; `policy` is None until it was first computed."""
    endpoint = record.endpoint
    found = pb.Endpoint(
        id=endpoint.id,
        namespace=endpoint.namespace,
        pod=endpoint.pod,
        container_id=endpoint.container_id,
        interface=endpoint.ifname,
        ifindex=endpoint.ifindex,
        mac=endpoint.mac.hex(":"),
        node_mac=endpoint.node_mac.hex(":"),
        addresses=[str(address) for address in endpoint.addresses],
        identity=endpoint.identity,
        labels=record.labels.texts(),
        state="ready" if policy else "waiting-for-policy",
        netns=endpoint.netns,
    )
    if policy is not None:
        _put_policy(found, policy, realised)
    return found


def host_view(knowledge: Knowledge) -> pb.Endpoint:
    """The node itself."""
    party, policy = knowledge.engine.host(), knowledge.engine.endpoint_policy(HOST_ENDPOINT)
    found = pb.Endpoint(
        id=HOST_ENDPOINT,
        addresses=[str(address) for address in party.addresses],
        identity=party.id,
        labels=(party.node or party.view).labels.texts(),
        state="ready",
        host=True,
        audit=knowledge.engine.audits(None),
    )
    if policy is not None:
        _put_policy(found, policy, knowledge.realised)
    return found


def _put_policy(found: pb.Endpoint, policy: EndpointPolicy, realised: Realised) -> None:
    found.policy_id = policy.policy_id
    found.policy_revision, found.policy_revision_pending = realised.of(policy)
    found.ingress_enforced = bool(policy.enforced.get(Direction.INGRESS))
    found.egress_enforced = bool(policy.enforced.get(Direction.EGRESS))
    found.audit = policy.audited
    if policy.closed:
        found.state, found.closed = "closed", policy.closed
    found.problems.extend(f"rules conflict: {conflict}" for conflict in policy.conflicts)
    if found.policy_revision_pending and not policy.conflicts:
        found.problems.append("the kernel's maps refuse entries; see: ciliate status")


def rule_view(ref: RuleRef, rule_id: int = 0) -> pb.Rule:
    """A rule, or with index 0 and id 0 a policy as a whole."""
    return pb.Rule(
        id=rule_id,
        kind=ref.kind,
        namespace=ref.namespace,
        name=ref.name,
        direction=ref.direction.name.lower(),
        index=max(ref.index, 0),
        uid=ref.uid,
        path=ref.path,
        revision=ref.revision,
    )


def considered_view(engine: Engine, one: Considered) -> pb.Considered:
    """A rule that was looked at, in words."""
    rule = one.rule
    ref = engine.policy_ref(one.policy.key, rule.direction, rule)
    return pb.Considered(
        rule=rule_view(ref),
        deny=rule.deny,
        peers=" or ".join(str(peer) for peer in rule.peers) or "nobody",
        traffic=" or ".join(str(traffic) for traffic in rule.traffic) or "nothing",
        failed=[part.value for part in one.failed],
    )


def policy_entries(
    engine: Engine, policy_id: int, entries: Mapping[bytes, bytes], rulesets: Mapping[int, tuple[HttpRule, ...]]
) -> Iterable[pb.PolicyEntry]:
    """The entries of one policy id, ingress first, any peer first."""
    found = []
    for raw_key, raw_value in entries.items():
        key = PolicyKey.unpack(raw_key)
        if key.policy_id == policy_id:
            found.append((key, PolicyEntry.unpack(raw_value)))
    found.sort(key=lambda pair: (pair[0].direction, pair[0].identity, pair[0].protocol, pair[0].pack()))
    for key, entry in found:
        labels = engine.identity_labels(key.identity) if key.identity else None
        ref = engine.catalogue.get(entry.rule_id)
        yield pb.PolicyEntry(
            direction=Direction(key.direction).name.lower(),
            identity=key.identity,
            identity_labels=labels.texts() if labels else (),
            protocol=protocol_name(key.protocol),
            port=_port(key.port) if key.port_bits else 0,
            port_prefix=key.port_bits,
            verdict=verdict_name(entry),
            precedence=entry.precedence,
            rule=rule_view(ref, entry.rule_id) if ref else None,
            l7_ruleset=entry.l7_ruleset,
            http_rules=[str(rule) for rule in rulesets.get(entry.l7_ruleset, ())],
        )


def verdict_name(entry: PolicyEntry) -> str:
    """ "allow", "deny", "http", or "closed" where one entry stands for a policy without room."""
    if entry.flags & PolicyFlags.FULL:
        return "closed"
    if entry.flags & PolicyFlags.DENY:
        return "deny"
    return "http" if entry.l7_ruleset else "allow"


def protocol_name(number: int) -> str:
    """ "TCP", or the number where it has no name here."""
    return _PROTOCOLS.get(Protocol(number), str(number)) if number in _PROTOCOLS else str(number)


def policies_view(knowledge: Knowledge) -> Iterable[pb.Policy]:
    """Every policy document, with the endpoints that it selects and those of them that do not obey it yet."""
    engine = knowledge.engine
    chosen: dict[ObjectKey, list[int]] = {}
    waiting: set[int] = set()
    for number in (*knowledge.manager.endpoints, HOST_ENDPOINT):
        for key in engine.selecting(number):
            chosen.setdefault(key, []).append(number)
        obeyed = engine.endpoint_policy(number)
        if obeyed is not None and (obeyed.closed or knowledge.realised.of(obeyed)[1]):
            waiting.add(number)
    in_force = engine.policies()
    for status in engine.policy_status():
        key, policy = status.key, in_force.get(status.key)
        directions = [rule.direction for spec in policy.specs for rule in spec.rules] if policy else []
        yield pb.Policy(
            kind=key.kind,
            namespace=key.namespace,
            name=key.name,
            uid=policy.uid if policy else "",
            origin=status.origin,
            error="; ".join(str(problem) for problem in status.problems),
            endpoints=sorted(chosen.get(key, ())),
            ingress_rules=directions.count(Direction.INGRESS),
            egress_rules=directions.count(Direction.EGRESS),
            warnings=[str(warning) for warning in (*status.warnings, *status.conflicts)],
            in_force=status.in_force,
            revision=status.revision,
            label_keys=label_keys(policy) if policy else (),
            pending=sorted(waiting & set(chosen.get(key, ()))),
        )


def egress_view(status: EgressStatus) -> pb.EgressGateway:
    """An egress gateway policy."""
    return pb.EgressGateway(
        name=status.name,
        pods=status.pods,
        gateways=[name for name in status.gateways if name],
        address=status.address,
        problems=status.problems,
    )


def identity_view(number: int, labels: Iterable[str], records: Iterable[EndpointRecord]) -> pb.Identity:
    """One identity and the local endpoints that carry it."""
    scope = "reserved" if is_reserved(number) else "cluster" if is_cluster(number) else "local"
    holders = sorted(record.endpoint.id for record in records if record.endpoint.identity == number)
    return pb.Identity(id=number, labels=labels, scope=scope, endpoints=holders)


def reserved_identities() -> Iterable[tuple[int, tuple[str, ...]]]:
    """The reserved identities, by number."""
    return sorted((int(number), labels.texts()) for number, labels in RESERVED_LABELS.items())


def socket_text(address: IPAddress, port: int) -> str:
    """ "10.0.0.1:80" or "[fd00::1]:80"."""
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def _port(stored: int) -> int:
    """A port as a little-endian host reads it from network order, the right way round."""
    return ((stored & 0xFF) << 8) | (stored >> 8)
