"""What a flow's numbers stand for: dictionary entries, small, frozen, compared by content.

A flow row holds numbers; the things that repeat in every row (who, which policy, which Service, which request) are
entries that are made once, travel once, and are found again by equality.
"""

from __future__ import annotations

from dataclasses import dataclass

TLS_DOMAIN = "hubble-grpc.cilium.io"
"""Of the names that nodes have in their certificates."""


@dataclass(frozen=True, slots=True)
class Party:
    """One side of a flow, as it was when the flow was seen."""

    address: bytes
    """16 bytes, IPv4 as v4-mapped."""
    identity: int = 0
    labels: tuple[str, ...] = ()
    """Sorted `source:key=value` texts."""
    namespace: str = ""
    pod: str = ""
    workload_kind: str = ""
    workload: str = ""
    endpoint_id: int = 0
    """The node's own number; 0 where the party is not local to the node that saw the flow."""
    cluster: str = ""
    names: tuple[str, ...] = ()
    """DNS names that pods of the node have learned the address under, without final dots."""


@dataclass(frozen=True, slots=True)
class PolicyRef:
    """A policy object by name, or with `rule` one of its rules."""

    kind: str
    namespace: str
    name: str
    uid: str = ""
    rule: str = ""
    """Where the rule stands in the document: `spec.ingress[0]`."""
    revision: int = 0
    """Of the node's policy engine, when this version of the policy came into force."""

    @property
    def place(self) -> str:
        """The policy and the rule in it."""
        return f"{self} {self.rule}" if self.rule else str(self)

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class NearestRule:
    """An allow rule that almost matched, and what did not fit: "peer", "protocol", "port"."""

    rule: PolicyRef
    failed: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.rule.place}, other {' and '.join(self.failed)}"


@dataclass(frozen=True, slots=True)
class Decision:
    """The policies behind a verdict.

    `matched`: a rule of theirs matched (allow or deny). Otherwise nothing matched, and they are the policies that
    isolate the endpoint, so that default deny applies.
    """

    matched: bool
    policies: tuple[PolicyRef, ...]
    nearest: NearestRule | None = None
    """Where nothing matched: the rule that came nearest."""


@dataclass(frozen=True, slots=True)
class ServiceRef:
    """The Service that a client addressed."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request line. `path` is hostile input, cut where `path_length` (bytes of the whole) says more."""

    method: str
    path: str
    version: int = 0
    """10, 11; 0 = unknown."""
    path_length: int = 0


@dataclass(frozen=True, slots=True)
class NameRecord:
    """A DNS question or answer, or the server that a TLS client named. `query` is hostile input, made printable."""

    query: str
    """Of DNS with a final dot."""
    qtype: int = 0
    rcode: int = 0
    ttl: int = 0
    """Seconds, the lowest of the answer."""
    addresses: tuple[str, ...] = ()
    answers: int = 0
    """Addresses in the answer; more than `addresses` has = cut."""
    aliases: tuple[str, ...] = ()
    """Names that the answer leads over (CNAME), in its order, up to four."""


L7Record = HttpRequest | NameRecord


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """Whose socket it is that an endpoint talks through. Texts are hostile input."""

    pid: int
    """In the process namespace of the node's agent."""
    name: str
    """As the kernel calls it: at most 15 characters."""
    executable: str = ""
    """Empty where it had ended before anybody looked."""
    container: str = ""
    """As the container runtime names it; empty for the node's own."""


@dataclass(frozen=True, slots=True)
class NodeRef:
    """A node that flows were seen on."""

    name: str
    cluster: str = "default"
    labels: tuple[str, ...] = ()
    """Sorted `key=value` texts."""

    @property
    def absolute(self) -> str:
        """`<cluster>/<node>`, or the bare node in the default cluster (Hubble API, 4.6)."""
        return self.name if self.cluster in ("", "default") else f"{self.cluster}/{self.name}"

    @property
    def tls_name(self) -> str:
        """What the node's certificate is checked for by Hubble's relay (Hubble API, 2.1); empty without a name."""
        parts = [part.replace(".", "-") for part in (self.name, self.cluster or "default")]
        return f"{parts[0]}.{parts[1]}.{TLS_DOMAIN}" if self.name else ""
