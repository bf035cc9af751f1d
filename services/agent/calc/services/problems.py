"""What is wrong with a Service, an EndpointSlice or a hostPort: typed, so that tools can count and people can act."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ProblemKind(StrEnum):
    """The kinds; a Service with a problem works as far as it can, and no other one is touched."""

    ADDRESS_TAKEN = "address-taken"
    NODE_PORT_TAKEN = "node-port-taken"
    PORT_OUT_OF_RANGE = "port-out-of-range"
    WRONG_FAMILY = "wrong-family"
    SLICE_WITHOUT_SERVICE = "slice-without-service"
    TOO_MANY_BACKENDS = "too-many-backends"
    NO_ROOM = "no-room"
    AMBIGUOUS_PORTS = "ambiguous-ports"
    BAD_ANNOTATION = "bad-annotation"
    TABLE_TOO_SMALL = "table-too-small"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One problem: what is wrong and what to do."""

    kind: ProblemKind
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"
