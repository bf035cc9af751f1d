"""What annotations ask to be told, and what is said of those that cannot be read."""

from __future__ import annotations

import pytest

from services.model.verdict import Direction
from services.model.visibility import FIELD_FORM, MOST, OWN_FORM, read_visibility

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS


@pytest.mark.parametrize(
    ("annotations", "ports"),
    [
        ({}, set()),
        ({FIELD_FORM: ""}, set()),
        ({FIELD_FORM: "<Ingress/80/TCP/HTTP>"}, {(INGRESS, 80)}),
        ({FIELD_FORM: "<Egress/8080/ANY/http>, <Ingress/80/TCP/HTTP>"}, {(EGRESS, 8080), (INGRESS, 80)}),
        ({OWN_FORM: "80, egress/65535,ingress/1"}, {(INGRESS, 80), (EGRESS, 65535), (INGRESS, 1)}),
        ({OWN_FORM: "80", FIELD_FORM: "<Ingress/80/TCP/HTTP>"}, {(INGRESS, 80)}),
    ],
)
def test_what_is_asked_for(annotations: dict[str, str], ports: set[tuple[Direction, int]]) -> None:
    assert read_visibility(annotations) == (frozenset(ports), ())


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        (FIELD_FORM, "Ingress/80/TCP/HTTP", "write <Ingress/80/TCP/HTTP>"),
        (FIELD_FORM, "<Egress/53/UDP/DNS>", "another protocol than HTTP"),
        (FIELD_FORM, "<Ingress/80/UDP/HTTP>", "over another protocol than TCP"),
        (FIELD_FORM, "<Ingress/0/TCP/HTTP>", "write a number from 1 to 65535"),
        (OWN_FORM, "http", "write a port, or egress/ and a port"),
        (OWN_FORM, "١", "write a port"),
        (OWN_FORM, "70000", "write a number from 1 to 65535"),
        (OWN_FORM, ",", "write a port"),
    ],
)
def test_what_cannot_be_read_is_named_and_the_rest_counts(name: str, text: str, told: str) -> None:
    good = "<Ingress/7/TCP/HTTP>" if name == FIELD_FORM else "7"
    ports, problems = read_visibility({name: f"{good},{text}"})
    assert ports == {(INGRESS, 7)}
    assert told in problems[0]
    assert name in problems[0]


def test_a_pod_has_so_many() -> None:
    ports, problems = read_visibility({OWN_FORM: ",".join(str(port) for port in range(1, 102))})
    assert sorted(port for _, port in ports) == list(range(1, MOST + 1))
    assert problems == ("metadata.annotations: 101 ports for HTTP visibility: 64 are told, the lowest first",)
