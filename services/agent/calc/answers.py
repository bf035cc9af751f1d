"""What the engine knows, for people and for flows: every question, answered from memory, as of the last flush."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from services.agent.calc.binding import Capabilities
from services.agent.calc.catalogue import Catalogue, RuleRef, make_ref
from services.agent.calc.egress import EgressGateways, EgressStatus, NodeRole
from services.agent.calc.endpoints import Audit, EndpointTables
from services.agent.calc.group import HOST_KEY, Group, GroupKey
from services.agent.calc.identities import Identities
from services.agent.calc.ipcache import Ipcache
from services.agent.calc.maps import MapName, NameRules
from services.agent.calc.policies import Policies, PolicyStatus
from services.agent.calc.policy_maps import PolicyMaps
from services.agent.calc.requests import meets
from services.agent.calc.services import Frontend, Services
from services.agent.calc.visibility import Visibility
from services.model.addresses import IPAddress, IPNetwork
from services.model.identity import Reserved, is_cluster
from services.model.labels import Labels
from services.model.objects import IpEntry, LocalEndpoint, ObjectKey, PolicyObject
from services.model.verdict import Direction, DropReason
from services.policy.conflicts import Conflict, conflicts_anywhere
from services.policy.explain import Explanation, explain
from services.policy.l7 import HttpRule
from services.policy.nodes import node_view
from services.policy.options import PolicyOptions
from services.policy.peers import FqdnPeer, Party
from services.policy.problems import Problem
from services.policy.rules import Policy, Rule
from services.policy.verdict import Mode
from services.policy.world import World


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """What an endpoint obeys, for people and for flows."""

    endpoint_id: int
    policy_id: int
    revision: int
    enforced: Mapping[Direction, bool]
    isolating: Mapping[Direction, tuple[RuleRef, ...]]
    entries: int
    conflicts: tuple[Conflict, ...] = ()
    """Rules that cannot be merged: this is then not what the policies say now but what they said before, or nothing."""
    conflicting_since: int = 0
    """The revision since which they cannot; 0 = they can."""
    closed: str = ""
    """Why all its traffic is denied; empty = it is not."""
    audited: bool = False


class Answers:
    """The parts of the calculation, and what can be asked of them. `Engine` changes them."""

    def __init__(
        self,
        node: str,
        ipcache: Ipcache,
        tables: EndpointTables,
        services: Services,
        options: PolicyOptions,
        mode: Mode,
        capabilities: Capabilities,
        capacity: int,
        role: NodeRole,
    ) -> None:
        self._node, self._mode, self._capabilities = node, mode, capabilities
        self._services = services
        self._policies = Policies(options, self._services, capabilities)
        self._identities = Identities()
        self._egress = EgressGateways(role, self._identities.view, ipcache.rows)
        self._ipcache = ipcache
        self._maps = PolicyMaps(self._policies, self._identities, ipcache, mode, capabilities, capacity)
        self._tables = tables
        self._endpoints: dict[int, LocalEndpoint] = {}
        self._groups: dict[int, GroupKey] = {}
        self._nodes: dict[str, Mapping[str, str]] = {}

    @property
    def catalogue(self) -> Catalogue:
        """rule id -> rule."""
        return self._maps.catalogue

    def desired(self) -> dict[MapName, Mapping[bytes, bytes]]:
        """Everything that every map should hold as of the last flush, to compare a pinned map with."""
        return {
            "policy": self._maps.desired(),
            "ipcache": self._ipcache.in_order(),
            "refined": self._identities.refinements.table.desired,
            "egress_gateway": self._egress.table.desired,
            **{name: table.desired for name, table in self._tables.tables.items()},
            **{name: table.desired for name, table in self._services.tables.items()},
        }

    def counts(self) -> dict[MapName, int]:
        """How many entries each map should have; cheap, unlike `desired`."""
        tables = {**self._tables.tables, **self._services.tables}
        return {
            "policy": self._maps.size(),
            "ipcache": len(self._ipcache.desired),
            "refined": len(self._identities.refinements.table.desired),
            "egress_gateway": len(self._egress.table.desired),
            **{name: len(table.desired) for name, table in tables.items()},
        }

    def egress_gateways(self) -> list[EgressStatus]:
        """Every egress gateway policy, and what came of it on this node."""
        return self._egress.status()

    def policy_entries(self, endpoint_id: int) -> dict[bytes, bytes]:
        """The policy map entries that an endpoint obeys."""
        group = self._group(endpoint_id)
        return self._maps.desired([group]) if group else {}

    def explain(
        self, endpoint_id: int, direction: Direction, peer: int, protocol: int, port: int
    ) -> Explanation | None:
        """Why an endpoint's policy treats a peer's traffic as it does; None where either is not known."""
        party, key = self._identities.parties.get(peer), self._groups.get(endpoint_id)
        subject = self._maps.subject(key) if key else None
        if subject is None or party is None or key is None:
            return None
        subject = replace(subject, ports=key.port_names())
        specs = self._maps.specs(key)
        return explain(specs, direction, subject, party, protocol, port, self._mode, host=key.host)

    def world(self) -> World:
        """The policies in force and how they are enforced, to ask about any two parties."""
        return self._world(self._policies.in_force().values())

    def world_with(self, changed: Iterable[PolicyObject], deleted: Iterable[ObjectKey]) -> World:
        """As `world`, were these documents applied and these deleted; raises `PolicyInvalid`. Nothing is applied."""
        return self._world(self._policies.as_if(changed, deleted).values())

    def _world(self, policies: Iterable[Policy]) -> World:
        return World(policies, self._mode, meets, hosts=self._capabilities.host_policies)

    def rulesets(self) -> dict[int, tuple[HttpRule, ...]]:
        """Every HTTP rule set that entries may name."""
        return self._maps.rulesets.desired()

    def name_rules(self) -> NameRules:
        """Every rule about names, and which identities toFQDNs selectors have."""
        return self._maps.name_rules()

    def endpoints_by_name(self, selector: str) -> frozenset[int]:
        """The endpoints whose rules have a toFQDNs selector."""
        return self._maps.endpoints_with(FqdnPeer(selector))

    def policy_status(self) -> list[PolicyStatus]:
        """What became of every policy document, endpoints here that it cannot be computed for included."""
        found = self._maps.conflicts()
        return [replace(each, conflicts=_conflicts(found.get(each.key, {}))) for each in self._policies.status()]

    def policy_verdicts(self) -> list[PolicyStatus]:
        """The same for the whole cluster: every node that knows the same objects and identities says the same, whoever
        runs on it and whatever it has switched off."""
        told: dict[ObjectKey, dict[Problem, None]] = {}
        if self._mode is not Mode.NEVER:
            pods = [(party.view, False) for number, party in self._identities.parties.items() if is_cluster(number)]
            nodes = [(node_view(labels), True) for labels in self._nodes.values()]
            for conflict in conflicts_anywhere(self._policies.in_force().values(), [*pods, *nodes]):
                for key in (conflict.first, conflict.second):
                    told.setdefault(key, {})[Problem(*conflict.seen_by(key))] = None
        everything = replace(self._capabilities, host_policies=True)
        return [replace(each, conflicts=tuple(told.get(each.key, ()))) for each in self._policies.status(everything)]

    def pressure(self) -> list[str]:
        """Which endpoints are closed because the policy map has no room for them, and why; empty = none."""
        return self._maps.pressure()

    def identity_labels(self, number: int) -> Labels | None:
        """The labels of an identity, None where it is not known."""
        return self._identities.labels(number)

    def row(self, prefix: IPNetwork) -> IpEntry | None:
        """The row of the cluster's address table with exactly this prefix."""
        return self._ipcache.row(prefix)

    def party_at(self, identity: int, address: IPAddress) -> Party | None:
        """Who has an address, as policy sees it: of an identity that rules divide, the part with the address."""
        return self._identities.parties.get(self._identities.refinements.part_of(identity, address))

    def host(self) -> Party:
        """This node as pods see it and as host policies select it."""
        party, subject = self._identities.parties[int(Reserved.HOST)], self._maps.subject(HOST_KEY)
        return replace(party, node=subject.node if subject else None)

    @property
    def node(self) -> str:
        """This node's name."""
        return self._node

    def nodes(self) -> Mapping[str, Mapping[str, str]]:
        """The labels of every node that a Node object is known of."""
        return self._nodes

    def divided(self) -> frozenset[int]:
        """Identities that rules divide into parts."""
        return self._identities.divided()

    def part_at(self, identity: int, address: IPAddress) -> int:
        """What policy knows an address of an identity by."""
        return self._identities.refinements.part_of(identity, address)

    def parties(self) -> Mapping[int, Party]:
        """Every identity as policy sees it, as of the last flush: for explaining verdicts. Identities that rules divide
        are here as a whole and in parts, which `party_at` finds."""
        return self._identities.parties

    def outside_identity(self, prefix: IPNetwork) -> int:
        """What the kernel takes an outside prefix for."""
        return self._ipcache.outside(prefix)

    def service_name(self, service_id: int) -> tuple[str, str] | None:
        """(namespace, name) of the Service behind a datapath service id."""
        return self._services.name_of(service_id)

    def frontends(self) -> list[Frontend]:
        """Every Service frontend with its backends."""
        return self._services.frontends()

    @property
    def load_balancing(self) -> Services:
        """The Services, to be asked about: reports, problems, health checks."""
        return self._services

    def endpoint_policy(self, endpoint_id: int) -> EndpointPolicy | None:
        """What an endpoint obeys as of the last flush."""
        group = self._group(endpoint_id)
        if group is None:
            return None
        isolating = {direction: self.isolating(endpoint_id, direction) for direction in Direction}
        return EndpointPolicy(
            endpoint_id,
            group.policy_id,
            group.revision,
            dict(group.enforced),
            isolating,
            group.size(),
            group.conflicts,
            group.conflicting_since,
            _closed(group),
            self.audits(self._endpoints.get(endpoint_id)),
        )

    def policy_revision(self, endpoint_id: int) -> int | None:
        """The revision that an endpoint's policy was last computed at."""
        group = self._group(endpoint_id)
        return group.revision if group else None

    def audits(self, endpoint: LocalEndpoint | None) -> bool:
        """Whether an endpoint, or without one the node, is only audited."""
        return self._tables.audit.everywhere if endpoint is None else self._tables.audit.covers(endpoint)

    @property
    def visibility(self) -> Visibility:
        """What pods' annotations ask to be told."""
        return self._tables.visibility

    @property
    def audit(self) -> Audit:
        """Where policy is only watched."""
        return self._tables.audit

    @property
    def mode(self) -> Mode:
        """When policy is enforced."""
        return self._mode

    def isolating(self, endpoint_id: int, direction: Direction) -> tuple[RuleRef, ...]:
        """The policies because of which an endpoint drops what no rule allows in a direction."""
        group = self._group(endpoint_id)
        in_force = self._policies.in_force()
        return tuple(
            make_ref(in_force[key], direction, self._policies.revision(key))
            for key in (group.isolating.get(direction, ()) if group else ())
            if key in in_force
        )

    def policy_ref(self, key: ObjectKey, direction: Direction, rule: Rule | None = None) -> RuleRef:
        """The reference to a rule of a policy in force, or without one to the policy as a whole."""
        policy = self._policies.in_force().get(key) or Policy(key, ())
        return make_ref(policy, direction, self._policies.revision(key), rule)

    def cidr_groups(self) -> Iterable[ObjectKey]:
        """The CIDR groups that rules may refer to."""
        return self._policies.groups()

    def policies(self) -> Mapping[ObjectKey, Policy]:
        """Every policy in force."""
        return self._policies.in_force()

    def selecting(self, endpoint_id: int) -> frozenset[ObjectKey]:
        """The policies with a rule set that selects an endpoint, as of the last flush."""
        group = self._group(endpoint_id)
        return frozenset(group.applied) if group else frozenset()

    def _group(self, endpoint_id: int) -> Group | None:
        key = self._groups.get(endpoint_id)
        return None if key is None else self._maps.groups.get(key)


def _closed(group: Group) -> str:
    if group.full:
        return f"no room for its policy in the map (drop reason {DropReason.POLICY_MAP_FULL.name})"
    if group.conflicts and not group.realised:
        return f"rules conflict, and it never had others (drop reason {DropReason.POLICY_DENIED.name})"
    return ""


def _conflicts(found: Mapping[tuple[str, str], set[int]]) -> tuple[Problem, ...]:
    return tuple(
        Problem(path, f"policy computation error: {text}; endpoints {_numbers(numbers)} keep what they had")
        for (path, text), numbers in sorted(found.items())
    )


def _numbers(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
