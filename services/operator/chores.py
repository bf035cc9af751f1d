"""The chores, each from the caches it looks at to its plan. What a plan says is decided in pure modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from services.common.kube import resources
from services.common.kube.reflector import Client
from services.common.kube.resources import Resource
from services.common.log import get_logger
from services.operator import certificates, endpoints, load_balancers, node_ranges, taints, trim
from services.operator.cache import Cache
from services.operator.chore import Chore, Followed
from services.operator.config import Config
from services.operator.events import Told
from services.operator.identities import IdentityTable
from services.operator.lost_ranges import addresses_of
from services.operator.writes import Write, Writer

CERTIFICATES_SECONDS = 600.0
"""How often certificates are looked at whose time runs out."""

Trim = Callable[[dict[str, Any]], dict[str, Any]]
_TRIMS: dict[Resource, Trim] = {
    resources.PODS: trim.pod,
    resources.NODES: trim.node,
    resources.NAMESPACES: trim.namespace,
}


@dataclass(slots=True)
class Caches:
    """Each kind is followed once, whoever looks at it."""

    client: Client
    by_resource: dict[Resource, Cache] = field(default_factory=dict)

    def of(self, resource: Resource, keep: Trim | None = None) -> Cache:
        """The cache of a kind."""
        if resource not in self.by_resource:
            self.by_resource[resource] = Cache(self.client, resource, keep or _TRIMS.get(resource, trim.whole))
        return self.by_resource[resource]


def _now() -> datetime:
    return datetime.now(UTC)


def chores(config: Config, caches: Caches, writer: Writer, table: IdentityTable | None = None) -> list[Chore]:
    """All that the configuration asks for, wired to their caches."""
    found: list[Chore] = []
    if config.ipam == "cluster-pool":
        found.append(_node_ranges(config, caches, writer))
    if config.ipam == "kubernetes":
        found.append(_host_scope(caches, writer))
    if config.load_balancers:
        found.append(_load_balancers(caches, writer))
    if config.remove_taints:
        found.append(_taints(config, caches, writer))
    if table and config.endpoint_objects == "endpoints":
        found.append(_endpoints(config, caches, writer, table))
    if table and config.endpoint_objects == "slices":
        found.append(_slices(config, caches, writer, table))
    if config.certificates != "off":
        found.append(_certificates(config, caches, writer))
    return found


def wire(found: list[Chore]) -> None:
    """Every change of a cache touches the chores that look at it."""
    watchers: dict[Followed, list[Chore]] = {}
    for chore in found:
        for cache in chore.caches:
            watchers.setdefault(cache, []).append(chore)
    for cache, chores_ in watchers.items():
        cache.changed = _touch_all(chores_)


def _touch_all(found: list[Chore]) -> Callable[[], None]:
    def touch() -> None:
        for chore in found:
            chore.touch()

    return touch


def _named(cache: Cache) -> Mapping[str, dict[str, Any]]:
    return {document["metadata"]["name"]: document for document in cache.all()}


def _node_ranges(config: Config, caches: Caches, writer: Writer) -> Chore:
    nodes, claims = caches.of(resources.NODES), caches.of(resources.CILIATE_NODES)
    pods, namespaces = caches.of(resources.PODS), caches.of(resources.NAMESPACES)
    pools, told, default = caches.of(resources.POD_POOLS), Told(), config.pool

    def plan() -> list[Write]:
        demand = node_ranges.demand_of(pods.all(), _named(namespaces), config.default_pool)
        lost = _named(nodes).keys() - _named(claims).keys()
        addresses = addresses_of(pods.all(), lost)
        found = node_ranges.plan(list(nodes.all()), _named(claims), _named(pools), default, demand, _now(), addresses)
        return found.writes + told.news(found.told, _named(nodes), _now())

    return Chore("node ranges", [nodes, claims, pods, namespaces, pools], writer, plan)


def _host_scope(caches: Caches, writer: Writer) -> Chore:
    nodes, told = caches.of(resources.NODES), Told()

    def plan() -> list[Write]:
        return told.news(node_ranges.host_scope_problems(nodes.all()), _named(nodes), _now())

    return Chore("node ranges", [nodes], writer, plan)


def _load_balancers(caches: Caches, writer: Writer) -> Chore:
    services, pools = caches.of(resources.SERVICES), caches.of(resources.LB_POOLS)

    def plan() -> list[Write]:
        return load_balancers.plan(list(services.all()), list(pools.all()), _now())

    return Chore("load balancers", [services, pools], writer, plan)


def _taints(config: Config, caches: Caches, writer: Writer) -> Chore:
    nodes = caches.of(resources.NODES)
    resource = replace(resources.PODS, label_selector=config.agent_labels)
    agents = caches.of(resource, trim.agent)

    def plan() -> list[Write]:
        return taints.plan(nodes.all(), taints.ready_nodes(agents.all()), _now())

    return Chore("taints", [nodes, agents], writer, plan)


def _endpoints(config: Config, caches: Caches, writer: Writer, table: IdentityTable) -> Chore:
    pods, present = caches.of(resources.PODS), caches.of(resources.CILIATE_ENDPOINTS)

    def plan() -> list[Write]:
        by_name = {(pod["metadata"].get("namespace") or "", pod["metadata"]["name"]): pod for pod in pods.all()}
        return endpoints.plan_endpoints(table.rows, table.labels, by_name, present.all())

    return Chore("endpoints", [table, pods, present], writer, plan, settle=0.5, pace=config.endpoint_writes)


def _slices(config: Config, caches: Caches, writer: Writer, table: IdentityTable) -> Chore:
    present = caches.of(resources.CILIATE_ENDPOINT_SLICES)

    def plan() -> list[Write]:
        return endpoints.plan_slices(table.rows, present.all())

    return Chore("endpoints", [table, present], writer, plan, settle=0.5, pace=config.endpoint_writes)


def _certificates(config: Config, caches: Caches, writer: Writer) -> Chore:
    roles: dict[str, list[str]] = {role: [] for role in ("identity", "relay", "operator", "client")}
    if config.etcd_addresses:
        roles["etcd"] = config.etcd_addresses
    days = timedelta(days=config.certificate_days)
    options = certificates.Options(config.namespace, roles, config.certificates == "authority", days)
    secrets, requests = caches.of(options.secrets), caches.of(resources.SIGNING_REQUESTS)
    log = get_logger("certificates")

    def plan() -> list[Write]:
        writes, problems = certificates.plan(options, _named(secrets), requests.all(), _now())
        for where, problem in problems.items():
            log.warning("nothing can be signed", object=where, problem=problem)
        return writes

    return Chore("certificates", [secrets, requests], writer, plan, period=CERTIFICATES_SECONDS)
