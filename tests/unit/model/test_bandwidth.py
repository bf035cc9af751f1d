"""Kubernetes quantities and the limits that pods' annotations give."""

from __future__ import annotations

from fractions import Fraction

import pytest

from services.common.errors import Invalid
from services.model.bandwidth import EGRESS, INGRESS, Limits, read_limits
from services.model.quantity import parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("10", 10),
        ("1.5k", 1500),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("10M", 10**7),
        ("10Mi", 10 * 2**20),
        ("2e6", 2 * 10**6),
        ("2E3", 2000),
        ("2E", 2 * 10**18),
        ("1e-3", Fraction(1, 1000)),
        ("500m", Fraction(1, 2)),
        ("3u", Fraction(3, 10**6)),
        ("+4G", 4 * 10**9),
        ("-1Ki", -1024),
    ],
)
def test_quantities(text: str, value: Fraction) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    "text", ["", "M", "10 M", "10Mb", "10mi", "1e", "1e9999", "0x10", "1_000", "١٠M", "9" * 100, "1.2.3"]
)
def test_no_quantities(text: str) -> None:
    with pytest.raises(Invalid, match="no quantity"):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("annotations", "limits", "problem"),
    [
        ({}, Limits(), ""),
        ({EGRESS: "10M"}, Limits(egress=1_250_000), ""),
        ({EGRESS: " 8k ", INGRESS: "1Gi"}, Limits(1000, 2**30 // 8), ""),
        (
            {EGRESS: "10Mbit", INGRESS: "1M"},
            Limits(0, 125_000),
            "metadata.annotations['kubernetes.io/egress-bandwidth']",
        ),
        ({INGRESS: "10"}, Limits(), "10 is out of range: write 1k to 1P bits per second"),
        ({EGRESS: "-1M"}, Limits(), "out of range"),
        ({EGRESS: "2P"}, Limits(), "out of range"),
    ],
)
def test_limits(annotations: dict[str, str], limits: Limits, problem: str) -> None:
    found, problems = read_limits(annotations)
    assert found == limits
    assert (problem in problems[0]) if problem else not problems
