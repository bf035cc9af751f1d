"""Server names beside plain rules: if one rule for a selector and port asks for them, all traffic there needs a listed
name (policy-semantics 3.4), unlike HTTP rules, which a plain rule beside them opens.

A plain rule for another selector or other ports is another place; where both fit a connection it opens as ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from services.policy.l7 import L7, TLS
from services.policy.peers import Peer
from services.policy.rules import Rule, Traffic

T = TypeVar("T")
_Place = tuple[Peer, int, int, int, str]


def asking_everywhere(rules: Iterable[tuple[T, Rule]]) -> list[tuple[T, Rule]]:
    """The rules of one direction, with the server names that other rules ask for in the same place. A rule whose peers
    get different ones comes once for each."""
    given = list(rules)
    asked: dict[_Place, L7] = {}
    for _, rule in given:
        for traffic in rule.traffic:
            if not rule.deny and traffic.l7 is not None and traffic.l7.kind == TLS and traffic.l7.by_names:
                for peer in rule.peers:
                    place = _place(peer, traffic)
                    asked[place] = traffic.l7.union(asked[place]) if place in asked else traffic.l7
    if not asked:
        return given
    return [(owner, part) for owner, rule in given for part in _parts(rule, asked)]


def _parts(rule: Rule, asked: dict[_Place, L7]) -> list[Rule]:
    if rule.deny or all(traffic.l7 is not None for traffic in rule.traffic):
        return [rule]
    peers: dict[tuple[Traffic, ...], list[Peer]] = {}
    for peer in rule.peers:
        peers.setdefault(tuple(_asked(peer, traffic, asked) for traffic in rule.traffic), []).append(peer)
    if len(peers) <= 1 and rule.traffic in (*peers, ()):
        return [rule]
    return [replace(rule, peers=tuple(some), traffic=traffic) for traffic, some in peers.items()] or [rule]


def _asked(peer: Peer, traffic: Traffic, asked: dict[_Place, L7]) -> Traffic:
    l7 = asked.get(_place(peer, traffic)) if traffic.l7 is None else None
    return traffic if l7 is None else replace(traffic, l7=l7)


def _place(peer: Peer, traffic: Traffic) -> _Place:
    return peer, int(traffic.protocol), traffic.low, traffic.high, traffic.name
