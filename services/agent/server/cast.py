"""Who people mean when they ask about policy: pods, workloads, addresses, entities, and sides of recorded flows."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterable, Sequence

from services.agent.server.knowledge import Knowledge
from services.common.errors import Invalid, NotFound
from services.common.pb.agent.v1 import agent_pb2 as pb
from services.model.addresses import IPAddress
from services.model.identity import RESERVED_LABELS, NumericIdentity, Reserved, is_cluster
from services.model.labels import LabelError, Labels
from services.model.objects import IpEntry, Pod
from services.policy.nodes import node_view
from services.policy.peers import IpBlockPeer, Party
from services.policy.selectors import LabelView
from services.policy.simulate import Actor, actors_outside
from services.policy.world import World

_INSIDE: tuple[int, ...] = (Reserved.HOST, Reserved.REMOTE_NODE)
"""Host and remote nodes: they have addresses, but are known by their identity."""


class Cast:
    """Everybody that policy may be asked about, as of now."""

    def __init__(self, knowledge: Knowledge, world: World) -> None:
        self._world = world
        self._parties = dict(knowledge.engine.parties())
        self._parties[Reserved.HOST] = knowledge.engine.host()
        self._own, self._nodes = knowledge.engine.node, dict(knowledge.engine.nodes())
        self._numbers: dict[tuple[str, str], int] = {
            (entry.namespace, entry.pod): entry.identity for entry in knowledge.identities.entries.values() if entry.pod
        }
        for record in knowledge.manager.endpoints.values():
            endpoint = record.endpoint
            self._numbers[endpoint.namespace, endpoint.pod] = endpoint.identity
        self._addresses: dict[tuple[str, str], list[IPAddress]] = {}
        # Pods of other nodes are known by their rows alone.
        self._pods = {
            **{(row.namespace, row.pod): _pod_of(row) for row in knowledge.identities.entries.values() if row.pod},
            **{(pod.namespace, pod.name): pod for pod in knowledge.pods.all()},
        }
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
        self._engine = knowledge.engine
        self._node_at = {
            entry.prefix.network_address: entry.node
            for entry in knowledge.identities.entries.values()
            if entry.identity in _INSIDE
        }

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
        """Pods that are equal to policy as one actor, the nodes likewise, and the outside by the prefixes that policies
        name. A pod whose families a block tells apart is there once for each."""
        blocks = list(dict.fromkeys(block for world in worlds for block in world.blocks))
        alike: dict[object, list[Actor]] = {}
        for key, number in sorted(self._numbers.items()):
            if number not in self._parties:
                continue
            for actor in self._by_family(key, blocks):
                inside = tuple(place for place, block in enumerate(blocks) if block.matches(actor.party))
                case = (number, inside, actor.version, frozenset(actor.party.ports.items()))
                alike.setdefault(case, []).append(actor)
        for actor in self._all_nodes():
            selected = tuple(
                tuple((policy.key, policy.specs.index(spec)) for policy, spec in world.specs(actor.party))
                for world in worlds
            )
            alike.setdefault((actor.party.id, selected), []).append(actor)
        found = [
            dataclasses.replace(actors[0], names=tuple(name for actor in actors for name in actor.names))
            for actors in alike.values()
        ]
        for text in ("0.0.0.0/0", "::/0"):
            prefix = ipaddress.ip_network(text)
            found.append(Actor((f"world (IPv{prefix.version})",), self._world.outside(prefix), prefix))
        outside = [prefix for prefix in actors_outside(*worlds) if prefix.prefixlen]
        return found + [Actor((str(prefix),), self._world.outside(prefix), prefix) for prefix in outside]

    def _named(self, text: str, field: str) -> Actor:
        for number, labels in RESERVED_LABELS.items():
            if f"reserved:{text}" in labels.texts() and _reserved_name(number) == text and number in self._parties:
                if text.startswith("world"):
                    there = self._outside("::" if text.endswith("6") else "0.0.0.0", field)
                    return dataclasses.replace(there, names=(text,))
                return Actor((text,), self._parties[number])
        if text in self._nodes:
            return self._node(text)
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            key = self._pod_called(text)
            if key is None:
                known = ", ".join(f"{ns}/{name}" for ns, name in sorted(self._numbers)[:20]) or "none"
                raise NotFound(f"{field}: {text!r} is no pod, Deployment, address or entity; pods: {known}") from None
            return self._pod(key)
        at, node = self._at.get(address), self._node_at.get(address)
        if node is not None:
            return self._node(node)
        return self._pod(at, address) if at else self._outside(text, field)

    def _node(self, name: str) -> Actor:
        """A node: to others it is the host or a remote one, to host policies what its labels say."""
        if name == self._own:
            return Actor(("host",), self._parties[Reserved.HOST])
        labels = self._nodes.get(name)
        view = node_view(labels) if labels is not None else None
        own = tuple(address for address, node in self._node_at.items() if node == name)
        # A node that the API server is on has another identity: the one of its first address counts.
        row = self._engine.row(ipaddress.ip_network(own[0])) if own else None
        party = self._parties[row.identity if row else Reserved.REMOTE_NODE]
        return Actor((f"node {name}",), dataclasses.replace(party, addresses=own or party.addresses, node=view))

    def _all_nodes(self) -> list[Actor]:
        """Every node that is known, this one first; without Node objects the others as one."""
        others = [self._node(name) for name in sorted(self._nodes) if name != self._own]
        return [
            Actor(("host",), self._parties[Reserved.HOST]),
            *(others or [Actor(("remote-node",), self._parties[Reserved.REMOTE_NODE])]),
        ]

    def _by_family(self, key: tuple[str, str], blocks: Sequence[IpBlockPeer]) -> list[Actor]:
        """A pod, or where a block has its addresses of one family only, the pod by each."""
        own = self._addresses.get(key, ())
        actors = [
            (version, self._pod(key, *(each for each in own if each.version == version)))
            for version in sorted({each.version for each in own})
        ]
        if len(actors) < 2 or len({tuple(block.matches(a.party) for block in blocks) for _, a in actors}) == 1:
            return [self._pod(key)]
        return [
            dataclasses.replace(actor, names=tuple(f"{name} (IPv{version})" for name in actor.names), version=version)
            for version, actor in actors
        ]

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

    def _pod(self, key: tuple[str, str], *addresses: IPAddress) -> Actor:
        """A pod; one that is asked about by name and has addresses of both families is met by its IPv4 one."""
        number = self._numbers[key]
        party = self._parties.get(number)
        if party is None:
            raise NotFound(f"pod {key[0]}/{key[1]}: its identity {number} is not known here yet; try again")
        # An ipBlock or a port name may tell pods of one identity apart: the pod's own addresses and ports count.
        own = sorted(self._addresses.get(key, ()), key=lambda each: (each.version, int(each)))
        asked = addresses or tuple(each for each in own if each.version == own[0].version)
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


def _pod_of(row: IpEntry) -> Pod:
    return Pod(row.namespace, row.pod, node=row.node, ports=row.ports, workload=row.workload)


def _owner(pod: Pod) -> str:
    return pod.workload[1]


def _reserved_name(number: int) -> str:
    return next(iter(RESERVED_LABELS[NumericIdentity(number)])).key
