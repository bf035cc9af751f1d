"""Kubernetes quantities: `10M`, `1.5Gi`, `2e6`, `500m`. Pure."""

from __future__ import annotations

import re
from fractions import Fraction

from services.common.errors import Invalid

_NUMBER = r"([+-]?)([0-9]+\.?[0-9]*|\.[0-9]+)"
_SUFFIX = r"(?:([eE][+-]?[0-9]{1,3})|(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E)?)"
_QUANTITY = re.compile(_NUMBER + _SUFFIX + r"\Z")
_BINARY = {suffix: 1024**power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_MAX_LENGTH = 64


def parse_quantity(text: str) -> Fraction:
    """The exact value; raises `Invalid` saying what would be right."""
    found = _QUANTITY.match(text) if len(text) <= _MAX_LENGTH else None
    if found is None:
        raise Invalid(f"{text[:40]!r} is no quantity: write a number and a suffix, such as 10M or 10Mi")
    sign, number, exponent, suffix = found.groups()
    value = Fraction(number)
    if exponent:
        value *= Fraction(10) ** int(exponent[1:])
    elif suffix in _BINARY:
        value *= _BINARY[suffix]
    elif suffix:
        value *= Fraction(10) ** _DECIMAL[suffix]
    return -value if sign == "-" else value
