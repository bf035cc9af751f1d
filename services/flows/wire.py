"""Column batches and dictionary entries <-> `ciliate.ingest.v1` messages. Pure; what comes in is hostile input.

A column of zeros does not travel. Entries travel once per stream and meaning; see `ingest.proto`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import numpy as np

from services.common.pb.ingest.v1 import ingest_pb2 as pb
from services.flows.columns import DTYPES, TRACE, WIRE, Columns, Kind, zeros
from services.flows.entries import (
    Decision,
    HttpRequest,
    NameRecord,
    NearestRule,
    Party,
    PolicyRef,
    ProcessRef,
    ServiceRef,
)

MAX_ROWS = 65_536
MAX_NUMBER = 1 << 22
"""Dictionary numbers above are refused: one stream cannot make the relay allocate more than this many slots."""
MAX_TEXTS = 512
MAX_TEXT = 4096

Content = Party | Decision | ServiceRef | HttpRequest | NameRecord | ProcessRef

_NAMES = {number: name for name, (number, _) in WIRE.items()}


class WireError(ValueError):
    """A message that cannot be read; names the column or the entry."""


def put_columns(batch: pb.Batch, columns: Columns) -> None:
    """Fill a batch's columns and row count."""
    batch.rows = len(columns["time_ns"])
    for name, (number, _) in WIRE.items():
        values = columns.get(name)
        if values is not None and values.any():
            batch.columns.add(id=number, values=np.ascontiguousarray(values, DTYPES[name]).tobytes())


def get_columns(batch: pb.Batch) -> Columns:
    """A batch's columns, read-only and without copying, those of `TRACE` where they came; raises `WireError`."""
    if batch.rows > MAX_ROWS:
        raise WireError(f"rows: {batch.rows} is more than {MAX_ROWS}")
    columns = {name: zeros(name, batch.rows) for name in WIRE if name not in TRACE}
    for column in batch.columns:
        name = _NAMES.get(column.id)
        if name is None:
            continue
        if len(column.values) != batch.rows * DTYPES[name].itemsize:
            raise WireError(f"column {name}: {len(column.values)} bytes for {batch.rows} rows")
        columns[name] = np.frombuffer(column.values, DTYPES[name])
    kinds = columns["kind"]
    if batch.rows and (int(kinds.min()) < Kind.NEW or int(kinds.max()) > Kind.TLS):
        raise WireError(f"column kind: holds a value outside {int(Kind.NEW)} to {int(Kind.TLS)}")
    return columns


def put_entry(batch: pb.Batch, number: int, content: Content) -> None:
    """Add a dictionary entry to a batch."""
    entry = batch.entries.add(number=number)
    match content:
        case Party():
            party = entry.party
            party.address, party.identity, party.endpoint_id = content.address, content.identity, content.endpoint_id
            party.labels.extend(content.labels)
            party.namespace, party.pod, party.cluster = content.namespace, content.pod, content.cluster
            party.workload_kind, party.workload = content.workload_kind, content.workload
            party.names.extend(content.names)
        case Decision():
            entry.decision.matched = content.matched
            entry.decision.SetInParent()
            entry.decision.policies.extend(_put_policy(policy) for policy in content.policies)
            if content.nearest is not None:
                entry.decision.nearest.rule.CopyFrom(_put_policy(content.nearest.rule))
                entry.decision.nearest.failed.extend(content.nearest.failed)
        case ServiceRef():
            entry.service.namespace, entry.service.name = content.namespace, content.name
            entry.service.SetInParent()
        case HttpRequest():
            entry.http.method, entry.http.path = content.method, content.path
            entry.http.version, entry.http.path_length = content.version, content.path_length
            entry.http.SetInParent()
        case NameRecord():
            entry.name.query, entry.name.qtype, entry.name.rcode = content.query, content.qtype, content.rcode
            entry.name.ttl, entry.name.answers = content.ttl, content.answers
            entry.name.addresses.extend(content.addresses)
            entry.name.aliases.extend(content.aliases)
            entry.name.SetInParent()
        case ProcessRef():
            entry.process.pid, entry.process.name = content.pid, content.name
            entry.process.executable, entry.process.container = content.executable, content.container
            entry.process.SetInParent()


def get_entry(entry: pb.Entry) -> tuple[str, int, Content]:
    """(dictionary, number, content); raises `WireError`."""
    if not 0 < entry.number <= MAX_NUMBER:
        raise WireError(f"entry number: {entry.number} is not within 1 to {MAX_NUMBER}")
    match entry.WhichOneof("content"):
        case "party":
            return "parties", entry.number, _party(entry.party)
        case "decision":
            return "decisions", entry.number, _decision(entry.decision)
        case "service":
            namespace, name = _texts("service", (entry.service.namespace, entry.service.name))
            return "services", entry.number, ServiceRef(namespace, name)
        case "http":
            method, path = _texts("http", (entry.http.method, entry.http.path))
            return "requests", entry.number, HttpRequest(method, path, entry.http.version, entry.http.path_length)
        case "name":
            return "requests", entry.number, _name(entry.name)
        case "process":
            given = entry.process
            texts = _texts("process", (given.name, given.executable, given.container))
            return "processes", entry.number, ProcessRef(given.pid, *texts)
        case _:
            raise WireError(f"entry {entry.number}: has no content")


def _party(given: pb.Party) -> Party:
    if len(given.address) != 16:
        raise WireError(f"party: an address has 16 bytes, not {len(given.address)}")
    labels = _texts("party.labels", given.labels)
    namespace, pod, kind, workload, cluster = _texts(
        "party", (given.namespace, given.pod, given.workload_kind, given.workload, given.cluster)
    )
    names = _texts("party.names", given.names)
    return Party(
        given.address, given.identity, labels, namespace, pod, kind, workload, given.endpoint_id, cluster, names
    )


def _name(given: pb.Name) -> NameRecord:
    (query,) = _texts("name", (given.query,))
    addresses = _texts("name.addresses", given.addresses)
    aliases = _texts("name.aliases", given.aliases)
    return NameRecord(query, given.qtype, given.rcode, given.ttl, addresses, given.answers, aliases)


def _decision(given: pb.Decision) -> Decision:
    if len(given.policies) > MAX_TEXTS:
        raise WireError(f"decision: {len(given.policies)} policies, at most {MAX_TEXTS}")
    nearest = None
    if given.HasField("nearest"):
        nearest = NearestRule(_policy(given.nearest.rule), _texts("nearest.failed", given.nearest.failed))
    return Decision(given.matched, tuple(_policy(each) for each in given.policies), nearest)


def _put_policy(policy: PolicyRef) -> pb.Policy:
    return pb.Policy(
        kind=policy.kind,
        namespace=policy.namespace,
        name=policy.name,
        uid=policy.uid,
        rule=policy.rule,
        revision=policy.revision,
    )


def _policy(given: pb.Policy) -> PolicyRef:
    kind, namespace, name, uid, rule = _texts(
        "policy", (given.kind, given.namespace, given.name, given.uid, given.rule)
    )
    return PolicyRef(kind, namespace, name, uid, rule, given.revision)


def _texts(what: str, values: Iterable[str]) -> tuple[str, ...]:
    """Interned: thousands of parties share a few label texts."""
    texts = tuple(values)
    if len(texts) > MAX_TEXTS:
        raise WireError(f"{what}: {len(texts)} texts, at most {MAX_TEXTS}")
    if any(len(text) > MAX_TEXT for text in texts):
        raise WireError(f"{what}: a text is longer than {MAX_TEXT} characters")
    return tuple(sys.intern(text) for text in texts)
