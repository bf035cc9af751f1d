"""Which labels say who talks to whom: `sourceContext`, `destinationContext`, `labelsContext` of a metric group.

What a party is called is decided once per dictionary entry; rows are counted by the names' numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from services.flows.columns import Array
from services.flows.entries import Party
from services.flows.metrics.batch import Batch
from services.flows.metrics.names import Namer
from services.model.addresses import from_bytes
from services.model.verdict import Direction

APP_LABELS = ("k8s:app.kubernetes.io/name=", "k8s:k8s-app=", "k8s:app=")
KUBE_APISERVER = "reserved:kube-apiserver"


def _joined(first: str, second: str) -> str:
    return f"{first}/{second}" if first and second else second


def _reserved(party: Party) -> str:
    if KUBE_APISERVER in party.labels:
        return KUBE_APISERVER
    return next((label for label in party.labels if label.startswith("reserved:")), "")


def _app(party: Party) -> str:
    return next((label.partition("=")[2] for label in party.labels if label.startswith(APP_LABELS)), "")


IDENTIFIERS: dict[str, Callable[[Party], str]] = {
    "identity": lambda party: ",".join(party.labels),
    "namespace": lambda party: party.namespace,
    "pod": lambda party: _joined(party.namespace, party.pod),
    "pod-name": lambda party: party.pod,
    "dns": lambda party: ",".join(party.names),
    "ip": lambda party: str(from_bytes(party.address)),
    "reserved-identity": _reserved,
    "workload": lambda party: _joined(party.namespace, party.workload),
    "workload-name": lambda party: party.workload,
    "app": _app,
}
SIDE_LABELS: dict[str, Callable[[Party], str]] = {
    "ip": IDENTIFIERS["ip"],
    "pod": lambda party: party.pod,
    "namespace": IDENTIFIERS["namespace"],
    "workload": IDENTIFIERS["workload-name"],
    "workload_kind": lambda party: party.workload_kind,
    "app": _app,
}
LABELS = (*(f"{side}_{name}" for side in ("source", "destination") for name in SIDE_LABELS), "traffic_direction")
"""Values of `labelsContext`, in the order in which they appear."""

OTHER_SIDE = {"source": "destination", "destination": "source"}
_DIRECTIONS = {int(Direction.INGRESS): "ingress", int(Direction.EGRESS): "egress"}


@dataclass(frozen=True, slots=True)
class Context:
    """One label: its name, the column that it is about, and how parties are called."""

    label: str
    column: str
    namer: Namer[Party] | None = None
    """None: the column is the direction."""

    def key(self, batch: Batch, *, swapped: bool) -> Array:
        """A number per row."""
        values = batch[OTHER_SIDE.get(self.column, self.column) if swapped else self.column]
        return values if self.namer is None else self.namer.table(batch.dictionaries.parties)[values]

    def text(self, number: int) -> str:
        """What the number stands for."""
        return _DIRECTIONS.get(number, "unknown") if self.namer is None else self.namer.names[number]


@dataclass(frozen=True, slots=True)
class Contexts:
    """The labels that a group's options add to each of its series."""

    parts: tuple[Context, ...] = field(default=())

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(part.label for part in self.parts)

    def keys(self, batch: Batch, *, swapped: bool) -> list[Array]:
        """A column of numbers per label. `swapped`: a response is told as its request would be."""
        return [part.key(batch, swapped=swapped) for part in self.parts]

    def texts(self, numbers: Sequence[int]) -> tuple[str, ...]:
        """The labels' values."""
        return tuple(part.text(number) for part, number in zip(self.parts, numbers, strict=True))


def first_of(identifiers: Sequence[str]) -> Callable[[Party], str]:
    """The first name that is not empty."""
    found = [IDENTIFIERS[identifier] for identifier in identifiers]

    def name(party: Party) -> str:
        return next((text for each in found if (text := each(party))), "")

    return name


def build(source: Sequence[str], destination: Sequence[str], labels: Sequence[str]) -> Contexts:
    """The contexts of a group; names are checked by `config`."""
    parts = []
    for side, identifiers in (("source", source), ("destination", destination)):
        if identifiers:
            parts.append(Context(side, side, Namer(first_of(identifiers))))
    for label in LABELS:
        if label not in labels:
            continue
        side, _, name = label.partition("_")
        if label == "traffic_direction":
            parts.append(Context(label, "direction"))
        else:
            parts.append(Context(label, side, Namer(SIDE_LABELS[name])))
    return Contexts(tuple(parts))
