"""Policies in force: documents are read when they come, references followed, rejected versions kept out and reported.

A document that cannot be read changes nothing: the last accepted version of that policy stays in force, and the status
says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.agent.calc.binding import Capabilities, unenforceable
from services.agent.calc.services import Services
from services.model.addresses import IPAddress
from services.model.objects import ObjectKey, PolicyObject, Service
from services.policy.cidr_group import KIND as CIDR_GROUP
from services.policy.cidr_group import read_cidr_group
from services.policy.options import PolicyOptions
from services.policy.problems import PolicyInvalid, Problem
from services.policy.read import read_policy
from services.policy.references import CidrGroup, has_references, resolve
from services.policy.rules import Policy


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """What became of a policy document."""

    key: ObjectKey
    in_force: bool
    """Whether some version of it is enforced."""
    revision: int
    """Of the engine, when that version came into force; 0 where none is."""
    problems: tuple[Problem, ...] = ()
    """Why the newest version was rejected; an older one may still be in force."""
    warnings: tuple[Problem, ...] = ()
    """What is in force, but perhaps not as its author thinks."""
    origin: str = ""
    conflicts: tuple[Problem, ...] = ()
    """Rules that cannot be merged with other policies': whom both select keeps what it had."""


@dataclass(frozen=True, slots=True)
class _Referents:
    """What references lead to, with these CIDR groups."""

    known: Services
    groups: Mapping[str, CidrGroup]

    def services(self) -> Iterable[Service]:
        return self.known.services()

    def backends(self, service: Service) -> Iterable[IPAddress]:
        return self.known.backends(service)

    def cidr_groups(self) -> Iterable[CidrGroup]:
        return self.groups.values()


class Policies:
    """Documents in, resolved policies out."""

    def __init__(self, options: PolicyOptions, services: Services, capabilities: Capabilities) -> None:
        self._options, self._capabilities = options, capabilities
        self._services = services
        self._accepted: dict[ObjectKey, Policy] = {}
        self._resolved: dict[ObjectKey, Policy] = {}
        self._rejected: dict[ObjectKey, tuple[Problem, ...]] = {}
        self._origins: dict[ObjectKey, str] = {}
        self._revisions: dict[ObjectKey, int] = {}
        self._groups: dict[str, CidrGroup] = {}
        self._referring: set[ObjectKey] = set()
        self._dirty: set[ObjectKey] = set()
        self._by_namespace: dict[str, dict[ObjectKey, Policy]] = {}

    def set_document(self, key: ObjectKey, source: PolicyObject | None) -> None:
        """A policy document came, changed or went."""
        if key.kind == CIDR_GROUP:
            self._set_group(key, source)
            return
        self._rejected.pop(key, None)
        if source is None:
            self._accepted.pop(key, None)
            self._origins.pop(key, None)
            self._dirty.add(key)
            return
        self._origins[key] = source.origin
        try:
            policy = read_policy(source, self._options)
        except PolicyInvalid as invalid:
            self._rejected[key] = invalid.problems
            return
        self._accepted[key] = policy
        self._dirty.add(key)

    def settle(self, revision: int, *, references_moved: bool) -> list[tuple[Policy | None, Policy | None]]:
        """(before, after) of every policy in force that changed, in order; references are followed anew if asked."""
        dirty, self._dirty = self._dirty, set()
        if references_moved:
            dirty |= self._referring
        changes = []
        for key in sorted(dirty):
            accepted = self._accepted.get(key)
            before = self._resolved.pop(key, None)
            self._referring.discard(key)
            after = None
            if accepted is not None:
                if has_references(accepted):
                    self._referring.add(key)
                after = self._resolved[key] = resolve(accepted, _Referents(self._services, self._groups))
            if before != after:
                self._revisions[key] = revision
                self._index(key, before, after)
                changes.append((before, after))
            if after is None:
                self._revisions.pop(key, None)
        return changes

    def as_if(self, changed: Iterable[PolicyObject], deleted: Iterable[ObjectKey]) -> dict[ObjectKey, Policy]:
        """What would be in force, were these documents applied and these deleted, CIDR groups included; raises
        `PolicyInvalid`. Nothing is kept."""
        gone = frozenset(deleted)
        groups = {name: group for name, group in self._groups.items() if ObjectKey(CIDR_GROUP, "", name) not in gone}
        accepted = {key: policy for key, policy in self._accepted.items() if key not in gone}
        for source in changed:
            if source.key.kind == CIDR_GROUP:
                groups[source.key.name] = read_cidr_group(source)
            else:
                accepted[source.key] = read_policy(source, self._options)
        referents = _Referents(self._services, groups)
        return {key: resolve(policy, referents) for key, policy in accepted.items()}

    def groups(self) -> Iterable[ObjectKey]:
        """The CIDR groups that are known."""
        return [ObjectKey(CIDR_GROUP, "", name) for name in self._groups]

    def candidates(self, namespace: str | None) -> Iterable[Policy]:
        """Policies that may apply to endpoints of a namespace, in a fixed order."""
        spaces = {"", namespace or ""}
        return [policy for space in sorted(spaces) for _, policy in sorted(self._by_namespace.get(space, {}).items())]

    def in_force(self) -> Mapping[ObjectKey, Policy]:
        """Every policy in force, references followed."""
        return self._resolved

    def revision(self, key: ObjectKey) -> int:
        """When the version in force came into force."""
        return self._revisions.get(key, 0)

    def status(self, capabilities: Capabilities | None = None) -> list[PolicyStatus]:
        """What became of every document, sorted; by what this node can enforce, or one with these capabilities."""
        keys = sorted({*self._accepted, *self._rejected})
        return [
            PolicyStatus(
                key,
                key in self._accepted or (key.kind == CIDR_GROUP and key.name in self._groups),
                self.revision(key),
                self._rejected.get(key, ()),
                self._warnings(key, capabilities or self._capabilities),
                self._origins.get(key, ""),
            )
            for key in keys
        ]

    def _warnings(self, key: ObjectKey, capabilities: Capabilities) -> tuple[Problem, ...]:
        policy = self._accepted.get(key)
        return (*policy.warnings, *unenforceable(policy, capabilities)) if policy else ()

    def _index(self, key: ObjectKey, before: Policy | None, after: Policy | None) -> None:
        # Subjects of namespaced policies are in their namespace; cluster-wide ones may be anywhere ('').
        bucket = self._by_namespace.setdefault(key.namespace, {})
        if before is not None:
            bucket.pop(key, None)
        if after is not None:
            bucket[key] = after
        if not bucket:
            del self._by_namespace[key.namespace]

    def _set_group(self, key: ObjectKey, source: PolicyObject | None) -> None:
        self._rejected.pop(key, None)
        self._dirty |= self._referring
        if source is None:
            self._groups.pop(key.name, None)
            return
        try:
            self._groups[key.name] = read_cidr_group(source)
        except PolicyInvalid as invalid:
            self._rejected[key] = invalid.problems
