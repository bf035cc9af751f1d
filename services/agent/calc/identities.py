"""Who is who: every identity this node knows, with labels, addresses and named ports, as policy sees it.

Fed by the identity service (labels), the address table (which addresses, port names), pods (port names) and by
policies themselves (prefixes, which get identities that only this node knows).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from services.agent.calc.numbers import StableNumbers
from services.agent.calc.refined import PortName, Ports, Refinements
from services.model.addresses import IPAddress, IPNetwork
from services.model.identity import FQDN_MIN, LOCAL_MIN, RESERVED_LABELS, NumericIdentity
from services.model.labels import SOURCE_CIDR, SOURCE_RESERVED, Label, Labels
from services.model.objects import FINISHED, ContainerPort, IpEntry, LocalEndpoint, Pod
from services.policy.peers import IpBlockPeer, Party, Peer, cidr_key
from services.policy.selectors import LabelView

PodName = tuple[str, str]
NO_PORTS: Ports = frozenset()


@lru_cache(4096)
def _shared(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Thousands of pods have the same identity."""
    return numbers


class Identities:
    """The parties, and which of them changed since they were last asked for."""

    def __init__(self) -> None:
        self._views: dict[int, LabelView] = {}
        self._endpoints: dict[int, LocalEndpoint] = {}
        self._ports: dict[PodName, tuple[ContainerPort, ...]] = {}
        self._holders: dict[int, dict[object, IpEntry | LocalEndpoint]] = {}
        self._pods: dict[PodName, tuple[int, ...]] = {}
        """The identities of a pod's rows and endpoints, one for each of them."""
        self._dirty: set[int] = set()
        self._parts: dict[int, frozenset[int]] = {}
        self.refinements = Refinements()
        self.parties: dict[int, Party] = {}
        """Every identity, and the parts of those that rules divide."""
        for number, labels in RESERVED_LABELS.items():
            self.set_labels(number, labels)

    def set_labels(self, number: int, labels: Labels | None) -> None:
        """An identity came, or went."""
        if labels is None:
            self._views.pop(number, None)
        else:
            self._views[number] = LabelView(labels)
        self._dirty.add(number)

    def labels(self, number: int) -> Labels | None:
        """The labels of an identity, or of the one that a part belongs to; None where it is not known."""
        view = self._views.get(number)
        if view is None and number in self.parties:
            view = self.parties[number].view
        return None if view is None else view.labels

    def view(self, number: int) -> LabelView | None:
        """The labels of an identity, for selectors; None where it is not known."""
        return self._views.get(number)

    def set_row(self, prefix: IPNetwork, before: IpEntry | None, entry: IpEntry | None) -> None:
        """A row of the address table came, changed or went."""
        if before is not None:
            self._release(prefix, before.identity)
        if entry is not None:
            self._hold(prefix, entry.identity, entry)

    def set_endpoint(self, number: int, endpoint: LocalEndpoint | None) -> None:
        """A local endpoint came, changed or went."""
        before = self._endpoints.pop(number, None)
        if before is not None:
            self._release(("endpoint", number), before.identity)
        if endpoint is not None:
            self._endpoints[number] = endpoint
            self._hold(("endpoint", number), endpoint.identity, endpoint)

    def set_pod(self, name: PodName, pod: Pod | None) -> None:
        """A pod came, changed or went: only its port names matter here."""
        ports = () if pod is None or pod.phase in FINISHED else tuple(port for port in pod.ports if port.name)
        if ports == self._ports.get(name, ()):
            return
        if ports:
            self._ports[name] = ports
        else:
            self._ports.pop(name, None)
        self._dirty.update(self._pods.get(name, ()))

    def pod_ports(self, endpoint: LocalEndpoint) -> tuple[ContainerPort, ...]:
        """The named ports of a local endpoint: as the pod says, else as it was told when it was made."""
        known = self._ports.get((endpoint.namespace, endpoint.pod))
        return known if known is not None else tuple(port for port in endpoint.ports if port.name)

    def refresh(self) -> list[tuple[int, Party | None, Party | None]]:
        """Bring the parties up to date; (identity, before, after) of those that changed, came or went, in order."""
        dirty, self._dirty = self._dirty, set()
        changed = []
        for number in sorted(dirty):
            parties = self._divided(number)
            for part in sorted({number, *self._parts.pop(number, ()), *parties}):
                party, before = parties.get(part), self.parties.get(part)
                if party != before:
                    changed.append((part, before, party))
                    if party is None:
                        del self.parties[part]
                    else:
                        self.parties[part] = party
            if len(parties) > 1:
                self._parts[number] = frozenset(parties) - {number}
        return changed

    def divided(self) -> frozenset[int]:
        """Identities that are there in parts."""
        return frozenset(self._parts)

    def watch(self, peer: Peer, *, on: bool) -> None:
        """Rules name a peer now, or do so no more: it may divide identities."""
        if isinstance(peer, IpBlockPeer):
            self._dirty.update(self.refinements.watch(peer) if on else self.refinements.unwatch(peer))

    def watch_names(self, names: Iterable[PortName], *, on: bool) -> None:
        """Rules for destinations name ports now, or do so no more."""
        change: Callable[[Iterable[PortName]], list[int]] = (
            self.refinements.watch_names if on else self.refinements.unwatch_names
        )
        self._dirty.update(change(names))

    def _divided(self, number: int) -> Mapping[int, Party]:
        """The party of an identity and of each of its parts; none where it is not known."""
        view = self._views.get(number)
        if view is None:
            self.refinements.forget(number)
            return {}
        ports: dict[IPAddress, Ports] = {}
        for holder in self._holders.get(number, {}).values():
            if isinstance(holder, IpEntry):
                whole = holder.prefix.prefixlen == holder.prefix.max_prefixlen
                addresses: Iterable[IPAddress] = (holder.prefix.network_address,) if whole else ()
                # A pod of this node as the API has it; of others as their agents say.
                named: Iterable[ContainerPort] = self._ports.get((holder.namespace, holder.pod), holder.ports)
            else:
                addresses, named = holder.addresses, self.pod_ports(holder)
            found = frozenset((port.name, port.protocol, port.port) for port in named)
            for address in addresses:
                ports[address] = ports.get(address, NO_PORTS) | found
        return self.refinements.divide(number, view, ports)

    def _hold(self, key: object, number: int, holder: IpEntry | LocalEndpoint) -> None:
        self._holders.setdefault(number, {})[key] = holder
        if holder.pod:
            name = (holder.namespace, holder.pod)
            self._pods[name] = _shared((*self._pods.get(name, ()), number))
        self._dirty.add(number)

    def _release(self, key: object, number: int) -> None:
        holder = self._holders[number].pop(key)
        if not self._holders[number]:
            del self._holders[number]
        if holder.pod:
            name = (holder.namespace, holder.pod)
            left = list(self._pods.pop(name))
            left.remove(number)
            if left:
                self._pods[name] = tuple(left)
        self._dirty.add(number)


class PrefixIdentities:
    """Identities for prefixes that policies name: counted, and the same number for the same prefix on every run."""

    def __init__(self) -> None:
        self._numbers = StableNumbers(LOCAL_MIN, FQDN_MIN - 1)
        self._users: dict[IPNetwork, int] = {}

    def acquire(self, prefix: IPNetwork) -> tuple[NumericIdentity, Labels] | None:
        """Count a user; (identity, labels) if it is the first. Raises OverflowError when no number is left."""
        self._users[prefix] = self._users.get(prefix, 0) + 1
        if self._users[prefix] > 1:
            return None
        number = self._numbers.take(str(prefix))
        if number is None:
            raise OverflowError("no identity is left for another prefix")
        return NumericIdentity(number), prefix_labels(prefix)

    def number(self, prefix: IPNetwork) -> NumericIdentity | None:
        """The identity of a prefix that is in use; None where no number was left for it."""
        found = self._numbers.take(str(prefix))
        return None if found is None else NumericIdentity(found)

    def release(self, prefix: IPNetwork) -> NumericIdentity | None:
        """Count a user less; the identity if that was the last."""
        self._users[prefix] -= 1
        if self._users[prefix]:
            return None
        del self._users[prefix]
        number = self._numbers.take(str(prefix))
        self._numbers.give_back(str(prefix))
        assert number is not None
        return NumericIdentity(number)


def prefix_labels(prefix: IPNetwork) -> Labels:
    """The labels of a prefix's identity (policy-semantics 4.6)."""
    return Labels([Label(SOURCE_CIDR, cidr_key(prefix)), Label(SOURCE_RESERVED, f"world-ipv{prefix.version}")])
