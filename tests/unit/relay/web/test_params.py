"""Query strings: every filter of the command line, times, and errors that name the parameter."""

from __future__ import annotations

import pytest

from services.flows.flags import FLAGS
from services.relay.web.groups import By
from services.relay.web.params import MAX_VALUES, InvalidParameter, parse

EXAMPLES = (
    "name", "80", "tcp", "10.0.0.0/8", "app=web", "DROPPED", "POLICY_DENIED", "drop", "ingress", "404",
    "key:value", "syn", "4", "IPv4",
    "8eaab03b-ca93-81bb-9b47-9a2af704a852", "true", "4bf92f3577b34da6a3ce929d0e0e4736",
)  # fmt: skip
"""One of them is a value of every filter."""


@pytest.mark.parametrize("flag", [flag.name for flag in FLAGS])
@pytest.mark.parametrize("prefix", ["", "not."])
def test_every_filter_of_the_command_line_is_taken(flag: str, prefix: str) -> None:
    def taken(example: str) -> bool:
        try:
            parse([(prefix + flag, example)])
        except InvalidParameter:
            return False
        return True

    assert any(map(taken, EXAMPLES))


def test_times() -> None:
    query = parse([("since", "2023-11-14T22:13:20Z"), ("until", "1700000060.5")])
    assert query.span(0) == (1_700_000_000_000_000_000, 1_700_000_060_500_000_000)
    assert parse([("window", "60")]).span(100_000_000_000) == (40_000_000_000, 100_000_000_000)
    assert parse([("by", "namespace")]).by is By.NAMESPACE


@pytest.mark.parametrize(
    ("pairs", "field", "says"),
    [
        ([("prt", "80")], "prt", "did you mean port?"),
        ([("not.prt", "80")], "not.prt", "did you mean port?"),
        ([("port", "80000")], "port", "is no port"),
        ([("port", "²")], "port", "is no port"),
        ([("identity", "99999999999")], "identity", "is no identity"),
        ([("type", "99999999999")], "type", "is no event type"),
        ([("type", "l7:99999999999")], "type", "is no sub-type"),
        ([("ip-trace-id", "9" * 30)], "ip-trace-id", "must be a number above 0"),
        ([("verdict", "MAYBE")], "verdict", "use one of"),
        ([("http-path", "(")], "http-path", "invalid regular expression '(': missing )"),
        ([("since", "yesterday")], "since", "is no time"),
        ([("since", "2023-11-14T22:13:20")], "since", "has no zone"),
        ([("since", "20"), ("until", "10")], "since", "later than until"),
        ([("since", "9" * 30)], "since", "outside"),
        ([("limit", "0")], "limit", "from 1 to 1000"),
        ([("limit", "nan")], "limit", "from 1 to 1000"),
        ([("window", "inf")], "window", "must be from"),
        ([("by", "colour")], "by", "use one of"),
        ([("by", "pod"), ("by", "pod")], "by", "once"),
        ([("pod", "a" * 2000)], "pod", "longer"),
        ([("pod", "\0x")], "pod", "no value may have"),
        ([("pod", "a")] * (MAX_VALUES + 1), "pod", "are the most"),
    ],
)
def test_what_is_wrong_is_named(pairs: list[tuple[str, str]], field: str, says: str) -> None:
    with pytest.raises(InvalidParameter) as error:
        parse(pairs)
    assert error.value.field == field
    assert says in str(error.value)
