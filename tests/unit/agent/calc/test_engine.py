"""The engine's promises beyond verdicts: gating, rejected versions, stable numbers, revisions, order, attribution."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import Any

from services.agent.abi.endpoints import EndpointFlags
from services.agent.abi.policy import FIXED_BITS, PolicyEntry, PolicyFlags, PolicyKey
from services.agent.calc.binding import Capabilities
from services.agent.calc.endpoints import Audit
from services.agent.calc.engine import Engine
from services.agent.calc.maps import Change, HttpRulesets, Put, Remove, policy_entry, policy_key
from services.model.identity import NumericIdentity
from services.model.objects import Deleted, ObjectKey, PolicyObject, Synced, Upserted
from services.model.verdict import Direction
from services.policy.compile import Effect, Slot, Value
from services.policy.l7 import HttpRule
from services.policy.verdict import Mode
from services.policy.world import Fate, Question
from tests.unit.agent.calc.kernel import Kernel
from tests.unit.agent.calc.states import (
    ALLOW_OTHER,
    FRONTEND,
    GROUP,
    GUARDED,
    HOST_CLOSED,
    HOST_OPEN,
    HTTP_POLICY,
    IN,
    NAMED,
    NODE,
    NODE_ITSELF,
    OTHER,
    PLAIN_80,
    RENUMBERED,
    WEB,
    WORLD,
    State,
    ccnp,
    cnp,
    difference,
    labels,
    pod,
    ports,
    remote,
)

KEY = ObjectKey("CiliumNetworkPolicy", "default", "deny-all-ingress")


def engine_at(state: State, **more: Any) -> tuple[Engine, Kernel]:
    engine, kernel = Engine("node1", sources=(), **more), Kernel()
    lead(engine, kernel, State(), state)
    return engine, kernel


def lead(engine: Engine, kernel: Kernel, before: State, after: State) -> list[Change]:
    for update in difference(before, after):
        engine.apply(update)
    changes = engine.flush()
    kernel.apply(changes)
    return changes


def broken(key: ObjectKey) -> Upserted:
    return Upserted(PolicyObject(key, {"spec": {"endpointSelektor": {}, "ingress": [{"fromEntities": ["moon"]}]}}))


def test_audit_is_a_flag_of_endpoints_and_changes_no_entry() -> None:
    strict, _ = engine_at(GUARDED)
    for audit, flagged in (
        (Audit(), set()),
        (Audit(everywhere=True), {1, 2}),
        (Audit(namespaces=frozenset({"default"})), {1, 2}),
        (Audit(namespaces=frozenset({"elsewhere"})), set()),
    ):
        engine, kernel = engine_at(GUARDED, audit=audit)
        found = {n: EndpointFlags(kernel.endpoint(n).flags) for n in (1, 2)}  # type: ignore[union-attr]
        assert {n for n, flags in found.items() if flags & EndpointFlags.AUDIT} == flagged
        assert engine.desired()["policy"] == strict.desired()["policy"]


def test_nothing_comes_out_before_every_source_is_complete() -> None:
    engine = Engine("node1", sources=("objects", "identities"))
    for update in difference(State(), GUARDED):
        engine.apply(update)
    engine.apply(Synced("objects"))
    assert engine.flush() == []
    assert engine.waiting_for == {"identities"}
    engine.apply(Synced("identities"))
    assert engine.in_sync
    assert engine.flush()


def test_a_rejected_version_leaves_the_accepted_one_in_force_and_says_so() -> None:
    engine, kernel = engine_at(GUARDED)
    engine.apply(broken(KEY))
    assert engine.flush() == []
    (status,) = engine.policy_status()
    assert status.in_force
    assert [problem.path for problem in status.problems] == [
        "spec.endpointSelektor",
        "spec",
        "spec.ingress[0].fromEntities[0]",
    ]
    assert "did you mean 'endpointSelector'" in str(status.problems[0])
    assert kernel.verdict(1, IN, OTHER, 6, 80)[0] == "drop"
    lead(engine, kernel, GUARDED, GUARDED + PLAIN_80)
    assert kernel.verdict(1, IN, OTHER, 6, 80)[0] == "allow"
    engine.apply(Deleted(KEY))
    engine.flush()
    assert [status.key.name for status in engine.policy_status()] == ["plain-80"]


def test_a_policy_that_was_never_valid_is_not_in_force() -> None:
    engine, _ = engine_at(NODE)
    engine.apply(broken(KEY))
    assert engine.flush() == []
    (status,) = engine.policy_status()
    assert not status.in_force
    assert status.revision == 0


def test_numbers_are_those_of_the_last_run() -> None:
    """Pinned maps keep their meaning over a restart: policy ids, rule ids, prefixes, services, rule sets."""
    state = GUARDED + cnp("cidr", egress=[{"toCIDR": ["10.1.0.0/16", "fd00::/8"]}])
    first, _ = engine_at(state)
    second = Engine("node1", sources=(), revision=0)
    for update in reversed(difference(State(), state)):
        second.apply(update)
    second.flush()
    assert first.desired() == second.desired()
    assert first.rulesets() == second.rulesets()


def test_a_new_run_begins_above_the_revisions_that_connections_remember() -> None:
    _, kernel = engine_at(GUARDED, revision=41)
    info = kernel.endpoint(1)
    assert info is not None
    assert info.policy_revision == 42


def test_a_revision_is_raised_only_where_something_changed() -> None:
    engine, kernel = engine_at(GUARDED)
    changes = lead(engine, kernel, GUARDED, GUARDED + ALLOW_OTHER)
    endpoints = {int.from_bytes(change.key, "little") for change in changes if is_put(change, "endpoints")}
    assert endpoints == {1}
    summary = engine.endpoint_policy(1)
    assert summary is not None
    assert summary.revision == engine.revision
    assert engine.endpoint_policy(77) is None


def test_connections_look_again_when_an_address_changes_hands() -> None:
    engine, kernel = engine_at(GUARDED)
    moved = GUARDED + remote(OTHER, "10.244.2.10/32", "frontend")
    changes = lead(engine, kernel, GUARDED, moved)
    assert {change.map for change in changes if isinstance(change, Put)} == {"ipcache", "endpoints"}


def is_put(change: Change, name: str) -> bool:
    return isinstance(change, Put) and change.map == name


def test_order_of_changes() -> None:
    engine, kernel = engine_at(NODE)
    changes = lead(engine, kernel, NODE, GUARDED + cnp("cidr", egress=[{"toCIDR": ["10.1.0.0/16"]}]))
    kinds = [
        "rulesets" if isinstance(c, HttpRulesets) else f"-{c.map}" if isinstance(c, Remove) else c.map for c in changes
    ]
    assert list(dict.fromkeys(kinds)) == ["rulesets", "policy", "ipcache", "-policy", "endpoints"]


def test_an_entry_taken_away_and_given_back_in_one_flush_stays() -> None:
    """The renumbered port frees 80/TCP for everyone; a new rule opens the same key for the same peers at once."""
    engine, kernel = engine_at(NAMED)
    both = RENUMBERED + PLAIN_80
    lead(engine, kernel, NAMED, both)
    assert kernel.maps == {name: dict(content) for name, content in engine.desired().items()}
    assert kernel.verdict(1, IN, OTHER, 6, 80)[0] == "allow"
    assert kernel.verdict(1, IN, OTHER, 6, 8080)[0] == "allow"


def test_replicas_share_entries() -> None:
    """Map size does not grow with endpoints of equal labels and ports."""
    engine, _ = engine_at(GUARDED)
    before = len(engine.desired()["policy"])
    (first,) = [u for u in GUARDED.updates.values() if type(u).__name__ == "EndpointUpserted" and u.endpoint.id == 1]  # type: ignore[union-attr]
    for number in range(50, 60):
        address = ipaddress.ip_address(f"10.244.1.{number}")
        copy = dataclasses.replace(first.endpoint, id=number, ifindex=number, addresses=(address,))  # type: ignore[union-attr]
        engine.apply(dataclasses.replace(first, endpoint=copy))  # type: ignore[arg-type]
    engine.flush()
    assert len(engine.desired()["policy"]) == before
    assert {engine.endpoint_policy(n).policy_id for n in (1, 50, 59)} == {engine.endpoint_policy(1).policy_id}  # type: ignore[union-attr]


def test_one_rule_set_is_one_number_and_a_retired_one_means_nothing_else_at_once() -> None:
    engine, kernel = engine_at(GUARDED)
    (number,) = engine.rulesets()
    again = cnp(
        "again",
        ingress=[
            {
                "fromEndpoints": labels(role="other"),
                "toPorts": ports("81", rules={"http": [{"path": "/api/v1/users", "method": "GET"}]}),
            }
        ],
    )
    assert not any(isinstance(c, HttpRulesets) for c in lead(engine, kernel, GUARDED, GUARDED + again))
    assert list(engine.rulesets()) == [number]
    lead(engine, kernel, GUARDED + again, NODE)
    assert kernel.rulesets == {number: (HttpRule("GET", "/api/v1/users"),)}
    assert not any(isinstance(c, HttpRulesets) for c in lead(engine, kernel, NODE, GUARDED))
    assert list(engine.rulesets()) == [number]


def test_rules_of_one_peer_and_port_are_united_and_a_plain_one_lifts_them() -> None:
    def http(name: str, path: str) -> State:
        rules = {"http": [{"path": path}]}
        return cnp(
            name, ingress=[{"fromEndpoints": labels(role="frontend"), "toPorts": ports("80", "90", rules=rules)}]
        )

    two = NODE + http("one", "/a") + http("two", "/b")
    engine, kernel = engine_at(two)
    united = (HttpRule(None, "/a"), HttpRule(None, "/b"))
    assert kernel.verdict(1, IN, FRONTEND, 6, 80)[:2] == ("allow", united)
    lead(
        engine,
        kernel,
        two,
        two + cnp("p", ingress=[{"fromEndpoints": labels(role="frontend"), "toPorts": ports("80")}]),
    )
    assert kernel.verdict(1, IN, FRONTEND, 6, 80)[:2] == ("allow", ())
    assert kernel.verdict(1, IN, FRONTEND, 6, 90)[:2] == ("allow", united)


def test_every_entry_leads_to_its_rule_and_every_closed_direction_to_its_policies() -> None:
    engine, kernel = engine_at(GUARDED + ALLOW_OTHER)
    rule = engine.catalogue.get(kernel.verdict(1, IN, OTHER, 6, 80)[2])
    assert rule is not None
    assert (rule.kind, rule.namespace, rule.name) == ("CiliumNetworkPolicy", "default", "allow-other")
    assert (rule.path, rule.index, rule.direction, rule.revision) == ("spec.ingress[0]", 0, Direction.INGRESS, 1)
    assert "k8s:io.cilium.k8s.policy.name=allow-other" in rule.labels
    assert [ref.name for ref in engine.isolating(1, Direction.INGRESS)] == ["allow-other", "deny-all-ingress"]
    assert engine.isolating(1, Direction.EGRESS) == ()
    assert engine.isolating(2, Direction.INGRESS) == ()
    for update in difference(GUARDED + ALLOW_OTHER, GUARDED):
        engine.apply(update)
    engine.flush()
    gone = kernel.verdict(1, IN, OTHER, 6, 80)[2]
    assert engine.catalogue.get(gone) == rule, "events about a rule may outlive it"
    assert engine.catalogue.get(12345) is None


def test_an_endpoint_of_an_unknown_identity_is_closed() -> None:
    late = pod(1, FRONTEND)
    updates = {key: update for key, update in late.updates.items() if key != ("identity", FRONTEND)}
    _, kernel = engine_at(State(updates))
    assert kernel.verdict(1, IN, OTHER, 6, 80)[0] == "drop"
    assert kernel.verdict(1, Direction.EGRESS, OTHER, 6, 80)[0] == "drop"
    assert kernel.endpoint(1) is not None


def test_policy_bytes_are_the_binary_interface() -> None:
    slot = Slot(6, 0x1F90, 12, Value(Effect.DENY, 0x01020304))
    key = PolicyKey.unpack(policy_key(7, 1, 300, slot))
    assert (key.prefixlen, key.policy_id, key.identity, key.direction, key.protocol) == (FIXED_BITS + 20, 7, 300, 1, 6)
    assert key == dataclasses_of(key)
    entry = PolicyEntry.unpack(policy_entry(slot, 0, any_peer=False))
    assert (entry.precedence, entry.rule_id, entry.flags, entry.prefix_bits) == (255, 0x01020304, 1, 20)


def dataclasses_of(key: PolicyKey) -> PolicyKey:
    """The same key by the interface's own constructor."""
    return PolicyKey.of(7, 1, 300, 6, 0x1F90, 12)


def test_http_policy_survives_a_relist() -> None:
    engine, kernel = engine_at(GUARDED)
    for update in HTTP_POLICY.updates.values():
        engine.apply(update)
    assert engine.flush() == []
    assert kernel.verdict(1, IN, FRONTEND, 6, 80)[1]


def test_what_finds_no_room_is_closed_as_a_whole_and_named() -> None:
    engine, kernel = engine_at(GUARDED, capacity=5)
    assert kernel.verdict(1, IN, FRONTEND, 6, 80)[0] == "allow"
    wide = GUARDED + cnp("wide", ingress=[{"fromEntities": ["cluster"], "toPorts": ports("81", "83", "85")}])
    lead(engine, kernel, GUARDED, wide)
    assert kernel.maps == {name: dict(content) for name, content in engine.desired().items()}
    assert len(kernel.maps["policy"]) <= 5
    outcome, _, rule_id = kernel.verdict(1, IN, FRONTEND, 6, 80)
    assert outcome == "deny"
    ref = engine.catalogue.get(rule_id)
    assert ref is not None
    assert ref.name == "policy-map-full"
    (closing, *_) = [
        PolicyEntry.unpack(raw) for raw in kernel.maps["policy"].values() if rule_id.to_bytes(4, "little") in raw
    ]
    assert closing.flags == PolicyFlags.DENY | PolicyFlags.FULL
    state = engine.endpoint_policy(1)
    assert state is not None
    assert state.closed == "no room for its policy in the map (drop reason POLICY_MAP_FULL)"
    assert kernel.verdict(2, IN, FRONTEND, 6, 80)[0] == "allow", "who fits is served"
    (message,) = engine.pressure()
    assert message.startswith("endpoints 1 need ")
    assert "k8s:io.cilium.k8s.policy.cluster=default" in message
    lead(engine, kernel, wide, GUARDED)
    assert kernel.maps == {name: dict(content) for name, content in engine.desired().items()}
    assert kernel.verdict(1, IN, FRONTEND, 6, 80)[0] == "allow"
    assert not engine.pressure()


def test_an_endpoint_that_joins_other_entries_makes_its_connections_look_again() -> None:
    """Both groups may have the same revision: what connections remember of one must not be taken for the other's."""
    state = GUARDED + pod(3, FRONTEND)
    engine, kernel = engine_at(state)
    before = kernel.endpoint(3)
    lead(engine, kernel, state, state + pod(3, WEB))
    after, sibling = kernel.endpoint(3), kernel.endpoint(1)
    assert before is not None
    assert after is not None
    assert sibling is not None
    assert after.policy_id != before.policy_id
    assert after.policy_revision > max(before.policy_revision, 1)
    assert after.policy_revision == sibling.policy_revision or after.policy_id != sibling.policy_id


def test_what_is_not_enforced_as_written_is_said() -> None:
    kafka = cnp(
        "kafka",
        ingress=[{"authentication": {"mode": "required"}, "toPorts": ports("9", rules={"kafka": [{"topic": "t"}]})}],
    )
    engine, _ = engine_at(NODE + kafka)
    (status,) = engine.policy_status()
    assert status.in_force
    assert [str(warning) for warning in status.warnings] == [
        "spec.ingress[0]: kafka rules on ingress are not enforced yet: the traffic is refused",
        "spec.ingress[0]: authentication is not done yet: the traffic is refused",
    ]


def test_explaining_names_the_nearest_rule() -> None:
    engine, _ = engine_at(GUARDED)
    found = engine.explain(1, IN, FRONTEND, 6, 81)
    assert found is not None
    assert found.nearest is not None
    assert (found.nearest.rule.path, [part.value for part in found.nearest.failed]) == ("spec.ingress[0]", ["port"])
    assert engine.explain(9, IN, FRONTEND, 6, 81) is None
    assert engine.counts() == {name: len(content) for name, content in engine.desired().items()}
    assert engine.policy_entries(1).items() < engine.desired()["policy"].items()


KAFKA = cnp(
    "kafka",
    ingress=[{"fromEndpoints": labels(role="frontend"), "toPorts": ports("80", rules={"kafka": [{"topic": "t"}]})}],
)


def test_rules_that_cannot_be_merged_leave_the_endpoint_what_it_had() -> None:
    engine, kernel = engine_at(GUARDED)
    before = dict(kernel.maps["policy"])
    changes = lead(engine, kernel, GUARDED, GUARDED + KAFKA + ALLOW_OTHER)
    assert not any(change.map == "policy" for change in changes if not isinstance(change, HttpRulesets))
    assert kernel.maps["policy"] == before == engine.desired()["policy"]
    found = engine.endpoint_policy(1)
    assert found is not None
    reason = "one port has http and kafka rules"
    assert [(c.first.name, c.second.name, c.reason) for c in found.conflicts] == [("deny-all-ingress", "kafka", reason)]
    told = {status.key.name: [str(w.message) for w in status.conflicts] for status in engine.policy_status()}
    other = "conflicts with CiliumNetworkPolicy default/{} spec.ingress[0]: " + reason
    for name, rival in (("deny-all-ingress", "kafka"), ("kafka", "deny-all-ingress")):
        message = f"policy computation error: {other.format(rival)}; endpoints 1 keep what they had"
        assert message in told[name]
    assert told["allow-other"] == []
    # Every node says the same on the policies themselves, whoever runs there.
    elsewhere, _ = engine_at(
        State({k: u for k, u in (GUARDED + KAFKA + ALLOW_OTHER).updates.items() if k != ("endpoint", 1)})
    )
    spoken = {status.key.name: [c.message for c in status.conflicts] for status in elsewhere.policy_verdicts()}
    assert spoken == {status.key.name: [c.message for c in status.conflicts] for status in engine.policy_verdicts()}
    assert spoken["kafka"] == [other.format("deny-all-ingress")]
    assert spoken["allow-other"] == []
    assert found.conflicting_since == engine.revision

    # New identities still meet the rules that it has.
    lead(engine, kernel, State(), remote(NumericIdentity(302), "10.244.2.77/32", "frontend-9"))
    assert kernel.verdict(1, IN, FRONTEND, 6, 80)[0] == "allow"

    # The conflict ends: everything that was said meanwhile holds.
    lead(engine, kernel, KAFKA, State())
    assert kernel.verdict(1, IN, OTHER, 6, 80)[0] == "allow"
    assert engine.endpoint_policy(1).conflicts == ()  # type: ignore[union-attr]
    fresh, _ = engine_at(GUARDED + ALLOW_OTHER)
    assert engine.desired()["policy"] == fresh.desired()["policy"]


def test_an_endpoint_that_never_had_a_policy_is_closed_by_a_conflict() -> None:
    engine, kernel = engine_at(GUARDED + KAFKA)
    assert kernel.verdict(1, IN, FRONTEND, 6, 80)[0] == "drop"
    assert kernel.verdict(1, Direction.EGRESS, OTHER, 6, 80)[0] == "drop"
    assert kernel.verdict(1, IN, NumericIdentity(1), 6, 80)[0] == "allow"
    assert {ref.name for ref in engine.isolating(1, IN)} == {"deny-all-ingress", "kafka"}
    found = engine.endpoint_policy(1)
    assert found is not None
    assert found.closed == "rules conflict, and it never had others (drop reason POLICY_DENIED)"
    assert kernel.verdict(2, IN, OTHER, 6, 80)[0] == "allow"


def test_where_nothing_is_enforced_nothing_conflicts() -> None:
    engine, kernel = engine_at(GUARDED + KAFKA, mode=Mode.NEVER)
    assert kernel.verdict(1, IN, FRONTEND, 6, 80)[0] == "allow"
    assert engine.endpoint_policy(1).conflicts == ()  # type: ignore[union-attr]


def test_the_node_is_attributed_and_explained_like_a_pod() -> None:
    engine, kernel = engine_at(HOST_CLOSED)
    outcome, _, rule_id = kernel.verdict(NODE_ITSELF, IN, WORLD, 6, 22)
    ref = engine.catalogue.get(rule_id)
    assert outcome == "allow"
    assert ref is not None
    assert (ref.name, ref.path) == ("nodes", "spec.ingress[0]")
    assert [ref.name for ref in engine.isolating(NODE_ITSELF, IN)] == ["nodes"]
    assert engine.isolating(NODE_ITSELF, Direction.EGRESS) == ()
    found = engine.explain(NODE_ITSELF, IN, WORLD, 6, 80)
    assert found is not None
    assert found.nearest is not None
    assert found.nearest.rule.path == "spec.ingress[0]"
    assert engine.selecting(NODE_ITSELF) == {ObjectKey("CiliumClusterwideNetworkPolicy", "", "nodes")}


def test_only_rules_close_a_node() -> None:
    _, kernel = engine_at(HOST_OPEN, mode=Mode.ALWAYS)
    assert kernel.endpoint(NODE_ITSELF) is None
    _, kernel = engine_at(HOST_CLOSED, mode=Mode.ALWAYS)
    assert kernel.verdict(NODE_ITSELF, IN, WORLD, 6, 80)[0] == "drop"
    assert kernel.verdict(NODE_ITSELF, Direction.EGRESS, WORLD, 6, 80)[0] == "allow"
    for off in (
        engine_at(HOST_CLOSED, mode=Mode.NEVER),
        engine_at(HOST_CLOSED, capabilities=Capabilities(host_policies=False)),
    ):
        assert off[1].endpoint(NODE_ITSELF) is None
    (status,) = off[0].policy_status()
    assert [str(warning) for warning in status.warnings] == [
        f"spec.ingress[{n}]: policies for nodes are not enforced here: host_firewall is off" for n in (0, 1)
    ]
    # That this node has it switched off is not what the whole cluster reads on the policy.
    assert off[0].policy_verdicts()[0].warnings == ()


def test_what_nobody_looks_into_at_a_node_is_refused() -> None:
    dns = {"toPorts": ports("53", protocol="UDP", rules={"dns": [{"matchPattern": "*.example"}]})}
    engine, kernel = engine_at(HOST_OPEN + ccnp("names", nodeSelector={}, egress=[dns]))
    assert kernel.verdict(NODE_ITSELF, Direction.EGRESS, WORLD, 17, 53)[0] == "deny"
    (status,) = engine.policy_status()
    assert [str(warning) for warning in status.warnings] == [
        "spec.egress[0]: dns rules on egress of nodes are not enforced yet: the traffic is refused"
    ]
    question = Question(engine.host(), engine.parties()[int(WORLD)], 17, 53)
    assert engine.world().answer(question, Direction.EGRESS).fate is Fate.REFUSED


def test_numbers_of_pods_policies_do_not_depend_on_what_nodes_have() -> None:
    pods, _ = engine_at(GUARDED)
    _, kernel = engine_at(GUARDED + HOST_CLOSED)
    info, host = kernel.endpoint(1), kernel.endpoint(NODE_ITSELF)
    assert info is not None
    assert host is not None
    before = pods.endpoint_policy(1)
    assert before is not None
    assert info.policy_id == before.policy_id != host.policy_id
    assert (host.id, host.identity, host.ifindex) == (NODE_ITSELF, 1, 0)


def test_the_node_is_audited_only_where_everything_is() -> None:
    for audit, flags in (
        (Audit(everywhere=True), EndpointFlags.AUDIT),
        (Audit(namespaces=frozenset({"", "default"})), 0),
    ):
        _, kernel = engine_at(HOST_CLOSED, audit=audit)
        host = kernel.endpoint(NODE_ITSELF)
        assert host is not None
        assert host.flags == flags


def test_a_rejected_group_leaves_the_accepted_one_in_force_and_says_so() -> None:
    engine, kernel = engine_at(GROUP)
    before = dict(kernel.maps["policy"])
    key = ObjectKey("CiliumCIDRGroup", "", "partners")
    wrong = {"metadata": {"name": "partners"}, "spec": {"externalCIDRs": ["10.0.0.0/40"], "extra": 1}}
    engine.apply(Upserted(PolicyObject(key, wrong, origin="groups.yaml:3")))
    assert not [change for change in engine.flush() if not isinstance(change, HttpRulesets)]
    assert engine.desired()["policy"] == before
    (status,) = [each for each in engine.policy_status() if each.key == key]
    assert (status.in_force, len(status.problems)) == (True, 2)
    assert {problem.path for problem in status.problems} == {"spec.externalCIDRs[0]", "spec.extra"}


def test_longer_prefixes_are_written_first_also_after_a_restart() -> None:
    engine, _ = engine_at(GROUP)
    lengths = [int.from_bytes(key[:4], "little") for key in engine.desired()["ipcache"]]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) > 3
