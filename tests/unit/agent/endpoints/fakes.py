"""Stand-ins for what the endpoint manager works with: netlink, the identity service, the datapath."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from services.agent.endpoints.links import Attachment, VethPair
from services.client.identities import Claim
from services.common.errors import CiliateError, NotFound, Unavailable
from services.model.addresses import IPAddress, IPNetwork
from services.model.identity import Identity, NumericIdentity
from services.model.labels import Labels
from services.model.objects import IpEntry, LocalEndpoint, Update


class FakeLinks:
    """Interfaces in a dict; `fail` is raised by the next `create`."""

    def __init__(self) -> None:
        self.present: dict[str, int] = {}
        self.started: list[int] = []
        self.fail: Exception | None = None
        self._indices = itertools.count(10)

    async def create(self, attachment: Attachment, addresses: tuple[IPAddress, ...]) -> VethPair:
        if self.fail:
            error, self.fail = self.fail, None
            raise error
        index = next(self._indices)
        self.present[attachment.host_ifname] = index
        return VethPair(index, attachment.host_ifname, b"\x02aaaaa", b"\x02bbbbb")

    async def start(self, veth: VethPair, addresses: tuple[IPAddress, ...]) -> None:
        self.started.append(veth.ifindex)

    async def delete(self, ifname: str) -> None:
        self.present.pop(ifname, None)

    async def ours(self) -> dict[str, int]:
        return dict(self.present)

    async def check(self, endpoint: LocalEndpoint) -> None:
        if self.present.get(endpoint.ifname) != endpoint.ifindex:
            raise NotFound(f"interface {endpoint.ifname} is gone")


class FakeIdentities:
    """The identity service of one node; `away` makes every call fail."""

    def __init__(self) -> None:
        self.away = False
        self.ids: dict[Labels, int] = {}
        self.claims: dict[int, int] = {}
        self.rows: dict[IPNetwork, IpEntry] = {}
        self._numbers, self._revisions = itertools.count(256), itertools.count(1)

    def _answer(self) -> None:
        if self.away:
            raise Unavailable("identity service: away")

    @property
    def held(self) -> set[int]:
        return set(self.claims)

    async def allocate(self, labels: Labels) -> Claim:
        self._answer()
        number = self.ids.setdefault(labels, next(self._numbers))
        self.claims[number] = next(self._revisions)
        return Claim(Identity(NumericIdentity(number), labels), self.claims[number])

    async def release(self, identity: NumericIdentity, claim: int) -> bool:
        self._answer()
        if claim not in (0, self.claims.get(identity)):
            return False
        return self.claims.pop(identity, None) is not None

    async def references(self) -> dict[NumericIdentity, int]:
        self._answer()
        return {NumericIdentity(number): claim for number, claim in self.claims.items()}

    async def register(self, entry: IpEntry) -> None:
        self._answer()
        self.rows[entry.prefix] = entry

    async def deregister(self, prefix: IPNetwork) -> None:
        self._answer()
        self.rows.pop(prefix, None)

    def forget_everything(self) -> None:
        """As when the node's lease expired and the identities were collected."""
        self.ids.clear()
        self.claims.clear()
        self.rows.clear()


class FakeDatapath:
    """Remembers what was attached and published; `fail` is raised by the next `publish`."""

    def __init__(self) -> None:
        self.attached: list[int] = []
        self.published: list[Update] = []
        self.fail: CiliateError | None = None

    async def attach(self, ifindexes: Sequence[int]) -> None:
        self.attached += ifindexes

    async def publish(self, updates: Sequence[Update]) -> None:
        if self.fail:
            error, self.fail = self.fail, None
            raise error
        self.published += updates
