"""Addresses, identities, rules, Services, requests -> dictionary numbers, as they are called now.

Known things are found for whole columns at once (`FastIndex`); only what is new is asked from the getters.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from services.agent.events.getters import Names
from services.agent.events.index import FastIndex
from services.agent.events.processes import ProcessTable
from services.flows.columns import Array
from services.flows.dictionary import Dictionaries
from services.flows.entries import Decision, HttpRequest, NameRecord, NearestRule, Party
from services.model.addresses import from_bytes
from services.model.verdict import Direction, Protocol

KEEP_NAMES_NS = 30_000_000_000
"""How long a pod's name outlives the pod: its last events are read after it is gone."""
REMEMBERED = 16_384
SECOND_NS = 1_000_000_000
EXPLAINED_PER_SECOND = 200
"""Nearest rules looked for: each looks at all rules of an endpoint, a tenth of a millisecond or so."""

MESSAGE_WORDS = 52
"""64-bit words that a name, eight addresses, the numbers of a message and a digest of its aliases take."""

PartyKey = tuple[bytes, int]


class Enricher:
    """Turns raw key columns into numbers of `dictionaries`; answers are kept until `names.generation` changes."""

    def __init__(self, dictionaries: Dictionaries, names: Names, cluster: str) -> None:
        self._names, self._cluster = names, cluster
        self._dictionaries = dictionaries
        self._parties = FastIndex(3, dictionaries.parties, bits=16)
        self._decisions = FastIndex(2, dictionaries.decisions)
        self._services = FastIndex(1, dictionaries.services)
        self._requests = FastIndex(21, dictionaries.requests, bits=12)
        self._messages = FastIndex(MESSAGE_WORDS, dictionaries.requests, bits=10)
        self._taught: OrderedDict[tuple[bytes, bytes], None] = OrderedDict()
        """(address, name) pairs that answers gave: of those there is nothing new to tell."""
        self._generation = names.generation
        self.process_table: ProcessTable | None = None
        """None: nobody tells."""
        self._recent: OrderedDict[PartyKey, tuple[Party, int]] = OrderedDict()
        """Parties with a pod, and since when (monotonic) they are found to have it no more; 0 = they have it."""
        self._now = 0
        self._explained = 0
        self._explained_since = 0

    def refresh(self, now_ns: int) -> None:
        """Called before every batch with the monotonic time: ask again if the catalogues changed."""
        self._now = now_ns
        if self._generation != self._names.generation:
            self._generation = self._names.generation
            self._parties.clear()
            self._decisions.clear()
            self._services.clear()

    def parties(self, addresses: Array, identities: Array) -> Array:
        """Numbers of (n, 16) address bytes with (n,) identities."""
        words = np.ascontiguousarray(addresses).view(np.uint64).reshape(-1, 2)
        key = [words[:, 1].copy(), words[:, 0].copy(), identities.astype(np.uint64)]

        def resolve(row: int) -> int:
            return self._dictionaries.parties.intern(self._party(addresses[row].tobytes(), int(identities[row])))

        return _through(self._parties, key, resolve)

    def _party(self, address: bytes, identity: int) -> Party:
        key = (address, identity)
        pod = self._names.pod_at(address)
        if pod is None:
            kept = self._recent.get(key)
            if kept is not None:
                gone_since = kept[1] or self._now
                self._recent[key] = (kept[0], gone_since)
                if self._now - gone_since <= KEEP_NAMES_NS:
                    return kept[0]
        labels = self._names.identity_labels(identity)
        if pod is None:
            return Party(address, identity, labels, names=self._names.dns_names(address))
        kind, workload = pod.workload
        party = Party(address, identity, labels, pod.namespace, pod.pod, kind, workload, pod.endpoint_id, self._cluster)
        self._recent[key] = (party, 0)
        self._recent.move_to_end(key)
        if len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)
        return party

    def decisions(self, records: Array, denied: Array) -> Array:
        """Numbers of the policies behind verdicts: the rule's; for a denial without a rule, the isolating ones.

        Those come with the nearest rule, which depends on peer and port too: kept per case, made at a bounded rate.
        """
        rule_ids, endpoint_ids, directions = records["rule_id"], records["endpoint_id"], records["direction"]
        if not denied.any() and not rule_ids.any():
            return np.zeros(len(rule_ids), np.uint32)
        key = rule_ids.astype(np.uint64)
        ruleless = np.flatnonzero(denied & (rule_ids == 0))
        isolated = endpoint_ids[ruleless].astype(np.uint64) << np.uint64(8) | directions[ruleless]
        key[ruleless] = isolated | np.uint64(1 << 40)
        case = np.zeros(len(rule_ids), np.uint64)
        case[ruleless] = self._cases(records, ruleless)

        def resolve(row: int) -> int:
            if rule_ids[row]:
                policy = self._names.rule_policy(int(rule_ids[row]))
                return self._dictionaries.decisions.intern(Decision(True, (policy,))) if policy else 0
            policies = self._names.isolating(int(endpoint_ids[row]), int(directions[row]))
            if not policies:
                return 0
            return self._dictionaries.decisions.intern(
                Decision(False, policies, self._nearest(records, row, int(case[row])))
            )

        return _through(self._decisions, [key, case], resolve, key != 0)

    def _cases(self, records: Array, rows: Array) -> Array:
        """What the nearest rule depends on beside the endpoint: peer (32 bits), protocol (8), port or type (16)."""
        ingress = records["direction"][rows] == Direction.INGRESS
        peers = np.where(ingress, records["src_identity"][rows], records["dst_identity"][rows]).astype(np.uint64)
        divided = self._names.divided()
        if divided:
            # Of such an identity each part is a peer of its own to policy.
            for place in np.flatnonzero(np.isin(peers, list(divided))).tolist():
                address = records["saddr" if ingress[place] else "daddr"][rows[place]].tobytes()
                peers[place] = self._names.part_at(int(peers[place]), address)
        protocols = records["protocol"][rows]
        typed = (protocols == Protocol.ICMP) | (protocols == Protocol.ICMPV6)
        ports = np.where(typed, records["sport"][rows], records["dport"][rows]).astype(np.uint64)
        cases: Array = peers | protocols.astype(np.uint64) << np.uint64(32) | ports << np.uint64(40)
        return cases

    def _nearest(self, records: Array, row: int, case: int) -> NearestRule | None:
        """The rule that almost matched. A scan of ports makes a case of each: beyond the rate they go without."""
        if self._now - self._explained_since >= SECOND_NS:
            self._explained_since, self._explained = self._now, 0
        if self._explained >= EXPLAINED_PER_SECOND:
            return None
        self._explained += 1
        return self._names.nearest(
            int(records["endpoint_id"][row]),
            int(records["direction"][row]),
            case & 0xFFFF_FFFF,
            int(records["protocol"][row]),
            case >> 40,
        )

    def processes(self, records: Array, ports: Array) -> Array:
        """Numbers of the processes behind `ports` of the endpoints that saw the records."""
        if self.process_table is None:
            return np.zeros(len(records), np.uint32)
        return self.process_table.find(records["endpoint_id"], ports, records["protocol"])

    def services(self, service_ids: Array) -> Array:
        """Numbers of the Services that clients addressed."""
        if not service_ids.any():
            return np.zeros(len(service_ids), np.uint32)

        def resolve(row: int) -> int:
            found = self._names.service_ref(int(service_ids[row]))
            return self._dictionaries.services.intern(found) if found else 0

        return _through(self._services, [service_ids.astype(np.uint64)], resolve, service_ids != 0)

    def requests(self, records: Array) -> Array:
        """Numbers of the request lines in records of the HTTP ring."""
        words = np.zeros((len(records), 21), np.uint64)
        raw = words.view(np.uint8).reshape(len(records), 168)
        raw[:, :16] = np.ascontiguousarray(records["method"]).view(np.uint8).reshape(-1, 16)
        raw[:, 16:152] = np.ascontiguousarray(records["path"]).view(np.uint8).reshape(-1, 136)
        words[:, 19] = records["http_version"].astype(np.uint64)
        words[:, 20] = records["path_len"].astype(np.uint64) << np.uint64(8) | records["method_len"]

        def resolve(row: int) -> int:
            record = records[row]
            path_length = int(record["path_len"])
            request = HttpRequest(
                _text(raw[row, :16].tobytes()[: int(record["method_len"])]),
                _text(raw[row, 16:152].tobytes()[:path_length]),
                int(record["http_version"]),
                path_length,
            )
            return self._dictionaries.requests.intern(request)

        return _through(self._requests, [words[:, place].copy() for place in range(21)], resolve)

    def learn(self, records: Array) -> None:
        """Records of answers, before anything about the connections that follow: addresses have other names now."""
        fresh = False
        for record in records:
            name = bytes(record["name"])
            for address in record["addresses"][: min(int(record["answers"]), len(record["addresses"]))]:
                key = (address.tobytes(), name)
                fresh |= key not in self._taught
                self._taught[key] = None
                self._taught.move_to_end(key)
        while len(self._taught) > REMEMBERED:
            self._taught.popitem(last=False)
        if fresh:
            self._parties.clear()

    def messages(self, records: Array) -> Array:
        """Numbers of the messages in records of the name ring."""
        words = np.zeros((len(records), MESSAGE_WORDS), np.uint64)
        raw = words.view(np.uint8).reshape(len(records), MESSAGE_WORDS * 8)
        raw[:, :256] = np.ascontiguousarray(records["name"]).view(np.uint8).reshape(-1, 256)
        raw[:, 256:384] = records["addresses"].reshape(-1, 128)
        words[:, 48] = records["qtype"].astype(np.uint64) << np.uint64(32) | records["ttl"]
        words[:, 49] = records["answers"].astype(np.uint64) << np.uint64(16) | records["rcode"]
        words[:, 50] = records["name_len"].astype(np.uint64)
        for row in np.flatnonzero(records["aliases_len"]):
            digest = hashlib.blake2b(_aliases(records[row]), digest_size=8).digest()
            words[row, 51] = int.from_bytes(digest, "little")

        def resolve(row: int) -> int:
            record = records[row]
            shown = min(int(record["answers"]), len(record["addresses"]))
            message = NameRecord(
                _text(raw[row, : int(record["name_len"])].tobytes()),
                int(record["qtype"]),
                int(record["rcode"]),
                int(record["ttl"]),
                tuple(str(from_bytes(address.tobytes())) for address in record["addresses"][:shown]),
                int(record["answers"]),
                tuple(_text(alias) for alias in _aliases(record).split(b"\0") if alias),
            )
            return self._dictionaries.requests.intern(message)

        return _through(self._messages, [words[:, place].copy() for place in range(MESSAGE_WORDS)], resolve)


def _aliases(record: Any) -> bytes:
    """The names that an answer leads over, with a zero behind each."""
    return bytes(record["aliases"].tobytes()[: int(record["aliases_len"])])


def _text(raw: bytes) -> str:
    """Hostile bytes as text: what is not printable ASCII is escaped, so that a terminal stays a terminal."""
    return "".join(chr(byte) if 0x20 < byte < 0x7F else f"%{byte:02X}" for byte in raw)


def _through(index: FastIndex, key: list[Array], resolve: Callable[[int], int], wanted: Array | None = None) -> Array:
    """Numbers for the key columns: from the index, else one by one from `resolve` (once per key and batch)."""
    numbers, missing = index.find(key)
    if wanted is not None:
        missing = missing[wanted[missing]]
    if not len(missing):
        return numbers
    numbers = numbers.copy()
    made: dict[tuple[int, ...], int] = {}
    for row, words in zip(missing.tolist(), zip(*(word[missing].tolist() for word in key), strict=True), strict=True):
        number = made.get(words)
        if number is None:
            number = made[words] = resolve(row)
        numbers[row] = number
    found = missing[numbers[missing] != 0]
    if len(found):
        index.put([word[found] for word in key], numbers[found])
    return numbers
