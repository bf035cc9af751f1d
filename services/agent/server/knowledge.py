"""Everything the agent knows, in one place to ask: for the flow pipeline (names) and for people (introspection).

Answers come from memory and are given at once. Nothing is kept here but the generation: it counts what was applied.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Set

from services.agent.calc.catalogue import RuleRef
from services.agent.calc.engine import Engine
from services.agent.endpoints.manager import EndpointManager
from services.agent.endpoints.pods import PodDirectory
from services.agent.endpoints.records import EndpointRecord
from services.agent.events.getters import PodRef
from services.agent.learned import LearnedNames
from services.agent.realised import Realised
from services.agent.sources.identities import IdentityClient
from services.common.errors import NotFound
from services.flows.entries import NearestRule, PolicyRef, ServiceRef
from services.model.addresses import IPAddress, from_bytes
from services.model.identity import Identity, is_cluster
from services.model.objects import IpEntry, LocalEndpoint
from services.model.verdict import Direction


class Knowledge:
    """The flow pipeline's `Names`, and look-ups of endpoints as people name them."""

    def __init__(
        self,
        engine: Engine,
        manager: EndpointManager,
        pods: PodDirectory,
        identities: IdentityClient,
        learned: LearnedNames,
        realised: Realised,
    ) -> None:
        self.learned = learned
        self.engine, self.manager, self.pods, self.identities = engine, manager, pods, identities
        self.realised = realised
        self._generation = 0
        self._local: dict[IPAddress, EndpointRecord] = {}
        self._counts: dict[str, int] = {}
        self._counted_at = -1

    # -- names for flows -------------------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """Changes whenever any answer may have changed."""
        return self._generation

    def changed(self) -> None:
        """Something was applied: earlier answers may be wrong."""
        self._generation += 1
        self._local = {
            address: record for record in self.manager.endpoints.values() for address in record.endpoint.addresses
        }

    def identity_labels(self, identity: int) -> tuple[str, ...]:
        """Sorted label texts; () for a number that is not known."""
        labels = self.engine.identity_labels(identity)
        return labels.texts() if labels else ()

    def dns_names(self, address: bytes) -> tuple[str, ...]:
        """The names that the kernel has learned an address under."""
        return self.learned.names_of(address)

    def pod_at(self, address: bytes) -> PodRef | None:
        """The pod that has this address, local or remote."""
        found = from_bytes(address)
        record = self._local.get(found)
        if record is not None:
            endpoint = record.endpoint
            return PodRef(endpoint.namespace, endpoint.pod, endpoint.id, self._workload(endpoint))
        entry = self.identities.entries.get(ipaddress.ip_network(found))
        if entry is None or not entry.pod:
            return None
        return PodRef(entry.namespace, entry.pod, 0, self._workload(entry))

    def rule_policy(self, rule_id: int) -> PolicyRef | None:
        """The policy object that a rule id belongs to."""
        ref = self.engine.catalogue.get(rule_id)
        return _policy_ref(ref) if ref else None

    def isolating(self, endpoint_id: int, direction: int) -> tuple[PolicyRef, ...]:
        """The policies because of which an endpoint denies by default in a direction."""
        return tuple(_policy_ref(ref) for ref in self.engine.isolating(endpoint_id, Direction(direction)))

    def divided(self) -> frozenset[int]:
        """Identities whose addresses rules tell apart: `part_at` says what policy knows one of them by."""
        return self.engine.divided()

    def part_at(self, identity: int, address: bytes) -> int:
        """What policy knows an address (16 bytes) of an identity by: the identity, or the part that has the address."""
        return self.engine.part_at(identity, from_bytes(address))

    def nearest(self, endpoint_id: int, direction: int, peer: int, protocol: int, port: int) -> NearestRule | None:
        """The allow rule that came nearest to letting a peer's connection pass; `peer` may be part of an identity."""
        side = Direction(direction)
        found = self.engine.explain(endpoint_id, side, peer, protocol, port)
        if found is None or found.nearest is None:
            return None
        ref = self.engine.policy_ref(found.nearest.policy.key, side, found.nearest.rule)
        return NearestRule(_policy_ref(ref), tuple(part.value for part in found.nearest.failed))

    def service_ref(self, service_id: int) -> ServiceRef | None:
        """The Service behind a datapath service id."""
        name = self.engine.service_name(service_id)
        return ServiceRef(*name) if name else None

    def _workload(self, known: LocalEndpoint | IpEntry) -> tuple[str, str]:
        pod = self.pods.get(known.namespace, known.pod)
        return pod.workload if pod else known.workload

    def live_backends(self) -> Set[bytes]:
        """Address and port (network order, 18 bytes) of every Service backend, whatever its state."""
        return self.engine.load_balancing.live_backends()

    def namespaces(self) -> list[str]:
        """Files of the local pods' network namespaces."""
        return [record.endpoint.netns for record in self.manager.endpoints.values() if record.endpoint.netns]

    # -- for people ------------------------------------------------------------------------------------------------

    def endpoint(self, text: str) -> EndpointRecord:
        """The endpoint meant by a number, an address, "namespace/pod" or "pod"; raises `NotFound`."""
        for record in self.manager.endpoints.values():
            endpoint = record.endpoint
            names = {
                str(endpoint.id),
                f"{endpoint.namespace}/{endpoint.pod}",
                endpoint.pod if endpoint.namespace == "default" else "",
                *(str(address) for address in endpoint.addresses),
            }
            if text in names - {""}:
                return record
        known = sorted(f"{r.endpoint.namespace}/{r.endpoint.pod}" for r in self.manager.endpoints.values())
        here = f"here are: {', '.join(known[:20])}" if known else "this node has none"
        raise NotFound(f"endpoint: {text!r} is no number, address or pod of this node; {here}")

    def map_entries(self) -> Mapping[str, int]:
        """How many entries every map should have; computed once per change."""
        if self._counted_at != self._generation:
            self._counted_at = self._generation
            self._counts = {str(name): count for name, count in self.engine.counts().items()}
        return self._counts

    def known_identities(self) -> Iterable[Identity]:
        """Cluster identities, sorted; the service tells the reserved ones as well."""
        found = (identity for identity in self.identities.identities.values() if is_cluster(identity.id))
        return sorted(found, key=lambda identity: identity.id)


def _policy_ref(ref: RuleRef) -> PolicyRef:
    return PolicyRef(ref.kind, ref.namespace, ref.name, ref.uid, ref.path, ref.revision)
