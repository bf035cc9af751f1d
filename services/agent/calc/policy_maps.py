"""Groups of endpoints and their policy entries, kept right while identities and policies come and go.

In: policies, identities and endpoints that changed. Out: changes of the policy map and the groups that have a new
revision. Only what is affected is compiled: a changed policy reaches the groups that it selects or
selected; a changed identity reaches the groups whose rules match it or matched it, one trie each.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.agent.calc.binding import ANY_RULE, Capabilities, Program, bind, with_local_host
from services.agent.calc.catalogue import Catalogue
from services.agent.calc.entries import Entries, keys_of
from services.agent.calc.group import ANY_IDENTITY, HOST_KEY, Group, GroupKey
from services.agent.calc.identities import Identities
from services.agent.calc.ipcache import Ipcache
from services.agent.calc.maps import NameRules
from services.agent.calc.numbers import StableNumbers
from services.agent.calc.peer_users import PeerUsers
from services.agent.calc.policies import Policies
from services.agent.calc.pressure import CLOSED, POLICY_CAPACITY, describe, overflowing
from services.agent.calc.rulesets import Rulesets
from services.agent.calc.sequencer import PolicyChanges
from services.model.labels import POD_NAMESPACE, SOURCE_K8S
from services.model.objects import ObjectKey
from services.model.verdict import Direction
from services.policy.compile import Template
from services.policy.conflicts import conflicts
from services.policy.l7 import L7
from services.policy.nodes import node_view
from services.policy.peers import Party, Peer
from services.policy.rules import Policy, Spec
from services.policy.selectors import LabelView
from services.policy.verdict import Mode, applying, is_closed, is_enforced

Loaded = dict[GroupKey, dict[Direction, dict[int, Template]]]
"""Of groups that were compiled from scratch: identity -> the template that it had before, where that changed."""


class PolicyMaps:
    """Owns the groups, the peer index and the HTTP rule sets."""

    def __init__(
        self,
        policies: Policies,
        identities: Identities,
        ipcache: Ipcache,
        mode: Mode,
        capabilities: Capabilities,
        capacity: int = POLICY_CAPACITY,
    ) -> None:
        self._policies, self._identities = policies, identities
        self._mode, self._capabilities, self._capacity = mode, capabilities, capacity
        self.catalogue = Catalogue()
        self.groups: dict[GroupKey, Group] = {}
        self._entries, self.peers = Entries(), PeerUsers(identities, ipcache)
        self._policy_ids = StableNumbers(1, (1 << 31) - 1)
        self._rebind: set[GroupKey] = set()
        self._host = node_view({})

    def set_host(self, view: LabelView) -> None:
        """The node has these labels."""
        self._host = view
        if HOST_KEY in self.groups:
            self._rebind.add(HOST_KEY)

    def selects_host(self) -> bool:
        """Whether a policy selects the node itself."""
        return self._mode is not Mode.NEVER and bool(self.specs(HOST_KEY))

    def subject(self, key: GroupKey) -> Party | None:
        """Who the endpoints of a group are to policy; None while their labels are not known."""
        if key.host:
            return Party(key.identity, self._host, node=self._host)
        return self._identities.parties.get(key.identity)

    @property
    def rulesets(self) -> Rulesets:
        """The HTTP rule sets that entries name."""
        return self._entries.rulesets

    def join(self, key: GroupKey, endpoint: int) -> None:
        """An endpoint obeys this group from now on."""
        group = self.groups.get(key)
        if group is None:
            number = self._policy_ids.take(key.name)
            assert number is not None
            group = self.groups[key] = Group(key, number)
            self._rebind.add(key)
        if endpoint not in group.endpoints:
            # Its connections may remember the same revision of the group that it comes from.
            group.endpoints.add(endpoint)
            self._entries.touched.add(key)

    def leave(self, key: GroupKey, endpoint: int) -> None:
        """An endpoint does not obey this group any more; `settle` drops groups that nobody obeys."""
        self.groups[key].endpoints.discard(endpoint)
        self._rebind.add(key)

    def policy_changed(self, before: Policy | None, after: Policy | None, revision: int) -> None:
        """A policy came into force, changed or went."""
        if after is not None:
            self.catalogue.add(after, revision)
        if before is not None:
            self.catalogue.remove(before, after)
        for group in self.groups.values():
            if group.key not in self._rebind and self._concerns(group, before, after):
                self._rebind.add(group.key)

    def settle(self, revision: int) -> tuple[PolicyChanges, set[GroupKey]]:
        """Compile what is dirty; (changes, groups whose entries are not what they were)."""
        dead = [self.groups.pop(key) for key in sorted_keys(self._rebind) if not self.groups[key].endpoints]
        rebound = [self.groups[key] for key in sorted_keys(self._rebind) if key in self.groups]
        released: list[Peer] = []
        programs = [(group, self._bind(group, released, revision)) for group in rebound]
        for group in dead:
            released += self._drop(group)
        self.peers.release(released)
        names_moved = self.peers.fqdn.settle()
        # Prefixes and names that came or went have changed what identities there are.
        for number, _, party in self._identities.refresh():
            self.identity_changed(number, party)
        self._rebind = set()
        loaded: Loaded = {}
        for group, program in programs:
            looked_at = group.flags()
            for direction, side in group.sides.items():
                former = side.load(program[direction], self.peers.index, self._identities.parties)
                loaded.setdefault(group.key, {})[direction] = former
            if looked_at != group.flags():
                self._entries.touched.add(group.key)
        self._fit(loaded)
        changes, entries, used = self._entries.take(), self._entries, self._l7_in_use()
        changes.rulesets = entries.rulesets.settle({l7.http_rules() for l7 in used if not l7.by_names})
        if entries.name_sets.settle(l7 for l7 in used if l7.by_names) or names_moved:
            changes.names, changes.names_moved = self.name_rules(), names_moved
            entries.name_sets.free_retired()
        touched = {key for key in entries.touched if key in self.groups} | {g.key for g in rebound if not g.revision}
        entries.touched = set()
        for key in touched:
            self.groups[key].revision = revision
        return changes, touched

    def identity_changed(self, number: int, party: Party | None) -> None:
        """An identity came, changed or went."""
        affected: set[GroupKey] = set()
        for peer in self.peers.index.update(number, party):
            affected.update(self.peers.of(peer))
        for key in sorted_keys(affected):
            group = self.groups.get(key)
            if group is None or key in self._rebind:
                # What is about to be compiled from scratch sees the change anyway.
                continue
            for direction, side in group.sides.items():
                former = side.update(number, self.peers.index, party)
                if former is not None and not group.full:
                    self._entries.write(group, direction, number, former, side.templates.get(number, ()))

    def endpoints_with(self, peer: Peer) -> frozenset[int]:
        """The endpoints whose rules name a peer."""
        groups = (self.groups[key] for key in self.peers.of(peer) if key in self.groups)
        return frozenset(number for group in groups for number in group.endpoints)

    def subject_changed(self, number: int) -> None:
        """The labels of an identity became known or went: its own endpoints' rules change."""
        self._rebind |= {key for key in self.groups if key.identity == number}

    def size(self) -> int:
        """How many entries the policy map should have."""
        return sum(len(Direction) if group.full else group.size() for group in self.groups.values())

    def desired(self, groups: Iterable[Group] | None = None) -> dict[bytes, bytes]:
        """Everything that the policy map should hold, or what of it belongs to some groups."""
        chosen = self.groups.values() if groups is None else groups
        return {key: self._entries.value(slot, number) for group in chosen for key, slot, number in keys_of(group)}

    def pressure(self) -> list[str]:
        """What people must know about groups that do not fit the map; empty = all do."""
        sizes = self.peers.index.sizes()
        return [
            describe(group, {(sizes[p], str(p)) for side in group.sides.values() for p in side.program.peers()})
            for group in self.groups.values()
            if group.full
        ]

    def specs(self, key: GroupKey) -> list[tuple[Policy, Spec]]:
        """The specs that select a group, in a fixed order."""
        party = self.subject(key)
        if party is None or (key.host and not self._capabilities.host_policies):
            return []
        if key.host:
            return applying(self._policies.candidates(None), party, host=True)
        namespace = party.view.value(SOURCE_K8S, POD_NAMESPACE)
        return applying(self._policies.candidates(namespace), party)

    def _bind(self, group: Group, released: list[Peer], revision: int) -> dict[Direction, Program]:
        """Look up the group's rules anew and count the peers they name; those it named before go to `released`."""
        party = self.subject(group.key)
        specs = self.specs(group.key)
        former = [peer for side in group.sides.values() for peer in side.program.peers()]
        released += former
        self.peers.leave(former, group.key)
        self._watch_names(group, on=False)
        group.applied = {policy.key for policy, _ in specs}
        group.conflicts = () if self._mode is Mode.NEVER else conflicts(specs)
        group.conflicting_since = (group.conflicting_since or revision) if group.conflicts else 0
        programs: dict[Direction, Program] = {}
        for direction in Direction:
            if group.conflicts:
                programs[direction] = self._kept(group, direction)
            else:
                programs[direction] = self._program(group, direction, party, specs)
            for peer in programs[direction].peers():
                self.peers.acquire(peer, group.key)
        group.realised |= party is not None and not group.conflicts
        group.names = programs[Direction.EGRESS].names()
        self._watch_names(group, on=True)
        return programs

    @staticmethod
    def _kept(group: Group, direction: Direction) -> Program:
        """The rules that a group keeps while there is no telling what the new ones mean; closed if it has none."""
        if group.realised:
            return group.sides[direction].program
        group.enforced[direction] = True
        group.isolating[direction] = tuple(sorted({key for c in group.conflicts for key in (c.first, c.second)}))
        return Program() if group.key.host else with_local_host(Program(), direction)

    def conflicts(self) -> dict[ObjectKey, dict[tuple[str, str], set[int]]]:
        """Policy -> (path, what is wrong) -> endpoints that therefore do not obey it as it is."""
        found: dict[ObjectKey, dict[tuple[str, str], set[int]]] = {}
        for group in self.groups.values():
            for conflict in group.conflicts:
                for key in (conflict.first, conflict.second):
                    found.setdefault(key, {}).setdefault(conflict.seen_by(key), set()).update(group.endpoints)
        return found

    def _watch_names(self, group: Group, *, on: bool) -> None:
        if group.names:
            self._identities.watch_names(group.names, on=on)

    def _program(
        self, group: Group, direction: Direction, party: Party | None, specs: list[tuple[Policy, Spec]]
    ) -> Program:
        if party is None:
            # An identity that nobody has told about yet: closed, until it is known what it may do.
            group.enforced[direction], group.isolating[direction] = True, ()
            return with_local_host(Program(), direction)
        host = group.key.host
        group.enforced[direction] = is_enforced(specs, direction, party, self._mode, host=host)
        closing = [policy.key for policy, spec in specs if direction in spec.default_deny]
        group.isolating[direction] = tuple(dict.fromkeys(closing))
        if not group.enforced[direction]:
            return Program((ANY_RULE,))
        rules = [
            (policy, rule, self.catalogue.number(policy.key, rule))
            for policy, spec in specs
            for rule in spec.rules
            if rule.direction == direction
        ]
        able = self._capabilities.of_nodes() if host else self._capabilities
        program = bind(rules, direction, group.key.port_names(), able)
        if not is_closed(specs, direction, party, self._mode, host=host):
            program = Program((*program.anyone, ANY_RULE), program.bound)
        return program if host else with_local_host(program, direction)

    def _drop(self, group: Group) -> list[Peer]:
        """Remove a group that no endpoint obeys; the peers it named."""
        peers = [peer for side in group.sides.values() for peer in side.program.peers()]
        self._entries.drop(group)
        self.peers.leave(peers, group.key)
        self._watch_names(group, on=False)
        self._policy_ids.give_back(group.key.name)
        return peers

    def _fit(self, loaded: Loaded) -> None:
        """Write what was compiled from scratch, unless it does not fit the map: such groups are closed, and those that
        fit again are opened. Sizes are known before a single entry is made."""
        full = set()
        if sum(group.size() for group in self.groups.values()) > self._capacity:
            full = overflowing(self.groups.values(), self._capacity)
        for key, group in self.groups.items():
            was, group.full = group.full, key in full
            formers = loaded.get(key, {})
            for direction, side in group.sides.items():
                former = formers.get(direction, {})
                if not was and not group.full:
                    for number, template in former.items():
                        self._entries.write(group, direction, number, template, side.templates.get(number, ()))
                elif was != group.full:
                    closed = {ANY_IDENTITY: CLOSED}
                    written = {n: template for n, template in {**side.templates, **former}.items() if template}
                    before, after = (closed, side.templates) if was else (written, closed)
                    for number in before.keys() | after.keys():
                        self._entries.write(group, direction, number, before.get(number, ()), after.get(number, ()))

    def _concerns(self, group: Group, before: Policy | None, after: Policy | None) -> bool:
        """Whether a changed policy selects the group, or did."""
        if before is not None and before.key in group.applied:
            return True
        party = self.subject(group.key)
        if after is None or party is None:
            return False
        if group.key.host:
            return bool(applying([after], party, host=True))
        if after.key.namespace not in {"", party.view.value(SOURCE_K8S, POD_NAMESPACE)}:
            return False
        return bool(applying([after], party))

    def name_rules(self) -> NameRules:
        """Everything that the datapath should know of names."""
        return NameRules(self._entries.name_sets.desired(), *self.peers.fqdn.rules())

    def _l7_in_use(self) -> set[L7]:
        sides = (side for group in self.groups.values() for side in group.sides.values())
        return {l7 for side in sides for l7 in side.l7()}


def sorted_keys(keys: Iterable[GroupKey]) -> list[GroupKey]:
    """A fixed order, so that the same updates give the same changes."""
    return sorted(keys, key=lambda key: (key.identity, key.ports))
