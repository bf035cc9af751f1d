"""The compiler by example: which entries come out, and what look-ups in them say. Random cases: tests/property."""

from __future__ import annotations

import pytest

from services.policy.compile import (
    NOTHING,
    Effect,
    Piece,
    Template,
    Value,
    function_of,
    lookup,
    precedence,
    prefixes,
    slots,
)
from services.policy.l7 import L7, HttpRule
from services.policy.rules import LAST_PORT, Traffic

GET = L7("http", http=frozenset({HttpRule("GET")}))
PATH = L7("http", http=frozenset({HttpRule(None, "/a")}))


def tcp(rule: int, low: int, high: int | None = None, **more: object) -> Piece:
    return Piece(rule, Traffic(6, low, high or low, l7=more.pop("l7", None)), **more)  # type: ignore[arg-type]


def everything(rule: int, **more: object) -> Piece:
    return Piece(rule, Traffic(), **more)  # type: ignore[arg-type]


def entries(template: Template) -> list[tuple[int, int, int, int]]:
    return [(slot.protocol, slot.port, slot.bits, slot.value.rule_id) for slot in template]


def both(anyone: list[Piece], peer: list[Piece]) -> tuple[Template, Template]:
    """(the peer's entries, the any-peer entries)."""
    common = function_of(anyone)
    return slots(function_of([*anyone, *peer]), common), slots(common)


@pytest.mark.parametrize(
    ("low", "high", "count"),
    [(80, 80, 1), (0, LAST_PORT, 1), (1, LAST_PORT, 16), (0, 65534, 16), (80, 444, 9), (1, 65534, 30), (8080, 8095, 1)],
)
def test_ranges_are_cut_into_few_blocks(low: int, high: int, count: int) -> None:
    assert len(list(prefixes(low, high))) == count


def test_a_broad_rule_swallows_narrow_ones() -> None:
    mine, common = both([], [tcp(1, 80), everything(2), tcp(3, 0, LAST_PORT)])
    assert entries(mine) == [(0, 0, 0, 2)]
    assert common == ()


def test_what_everyone_may_is_not_repeated_for_a_peer() -> None:
    mine, common = both([tcp(1, 80)], [tcp(2, 80), tcp(3, 443)])
    assert entries(common) == [(6, 80, 16, 1)]
    assert entries(mine) == [(6, 443, 16, 3)]


def test_a_deny_for_everyone_stands_above_what_a_peer_may() -> None:
    mine, common = both([tcp(1, 80, deny=True)], [everything(2)])
    assert entries(mine) == [(0, 0, 0, 2)]
    denied = lookup(mine, common, 6, 80)
    assert denied is not None
    assert denied.effect is Effect.DENY
    allowed = lookup(mine, common, 6, 81)
    assert allowed == Value(Effect.ALLOW, 2)


def test_a_deny_for_a_peer_stands_above_what_everyone_may_on_a_longer_prefix() -> None:
    mine, common = both([tcp(1, 80)], [everything(2, deny=True)])
    assert lookup(mine, common, 6, 80) == Value(Effect.DENY, 2)
    assert lookup(mine, common, 17, 53) == Value(Effect.DENY, 2)
    assert lookup((), common, 6, 80) == Value(Effect.ALLOW, 1)


def test_a_plain_rule_lifts_http_rules_only_where_it_reaches() -> None:
    mine, common = both([tcp(1, 80, 90, l7=GET)], [tcp(2, 85)])
    assert lookup(mine, common, 6, 85) == Value(Effect.ALLOW, 2)
    assert lookup(mine, common, 6, 84) == Value(Effect.ALLOW, 1, GET)
    assert lookup((), common, 6, 85) == Value(Effect.ALLOW, 1, GET)


def test_http_rules_of_everyone_and_of_a_peer_are_united() -> None:
    mine, common = both([tcp(1, 80, l7=GET)], [tcp(2, 80, l7=PATH)])
    found = lookup(mine, common, 6, 80)
    assert found is not None
    assert found.l7 is not None
    assert found.l7.http == GET.http | PATH.http


def test_refusing_is_not_denying() -> None:
    """A condition that cannot be enforced lets nothing through, but takes nothing away from other rules."""
    mine, common = both([tcp(1, 80, refuse=True)], [tcp(2, 80)])
    assert lookup((), common, 6, 80) == Value(Effect.REFUSE, 1)
    assert lookup(mine, common, 6, 80) == Value(Effect.ALLOW, 2)


def test_authentication_is_asked_for_unless_a_rule_waives_it() -> None:
    required = tcp(1, 80, refuse=True, authentication="required")
    assert lookup(*both([], [required, everything(2)]), 6, 80) == Value(Effect.REFUSE, 1)
    waived = everything(3, authentication="disabled")
    assert lookup(*both([], [required, waived]), 6, 80) == Value(Effect.ALLOW, 3)


def test_neighbouring_ranges_of_one_rule_are_one() -> None:
    mine, _ = both([], [tcp(1, 0, 32767), tcp(1, 32768, LAST_PORT)])
    assert entries(mine) == [(6, 0, 0, 1)]


def test_zero_is_a_port_and_an_icmp_type_like_any_other() -> None:
    echo_reply = Piece(1, Traffic(1, 0, 0))
    mine, common = both([], [echo_reply])
    assert entries(mine) == [(1, 0, 16, 1)]
    assert lookup(mine, common, 1, 0) is not None
    assert lookup(mine, common, 1, 8) is None


def test_ranks() -> None:
    assert precedence(Value(Effect.DENY, 1), any_peer=True) == 255
    ranked = [
        precedence(Value(Effect.ALLOW, 1), any_peer=True),
        precedence(Value(Effect.ALLOW, 1, GET), any_peer=True),
        precedence(Value(Effect.ALLOW, 1), any_peer=False),
    ]
    assert ranked == sorted(set(ranked))
    assert slots(NOTHING) == ()
