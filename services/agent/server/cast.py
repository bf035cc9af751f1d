"""Who people mean when they ask about policy: pods, workloads, addresses, entities, and sides of recorded flows."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from services.agent.server.knowledge import Knowledge
from services.common.errors import Invalid, NotFound
from services.common.pb.agent.v1 import agent_pb2 as pb
from services.model.addresses import IPAddress
from services.model.identity import RESERVED_LABELS, NumericIdentity, Reserved, is_cluster
from services.model.labels import LabelError, Labels
from services.model.objects import Pod
from services.policy.peers import Party
from services.policy.selectors import LabelView
from services.policy.simulate import Actor, actors_outside
from services.policy.world import World

_INSIDE = (Reserved.HOST, Reserved.REMOTE_NODE)
"""Host and remote nodes: they have addresses, but are known by their identity."""


class Cast:
    """Everybody that policy may be asked about, as of now."""

    def __init__(self, knowledge: Knowledge, world: World) -> None:
        self._world = world
        self._parties = dict(knowledge.engine.parties())
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
