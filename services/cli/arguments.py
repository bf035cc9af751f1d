"""Arguments of `observe` before the parser sees them: `--not` in front of a flag, and flags without a value. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from services.common.errors import Invalid
from services.flows.flags import NOT

SWITCHES: dict[str, tuple[str, str]] = {
    "-4": ("--ip-version", "v4"),
    "--ipv4": ("--ip-version", "v4"),
    "-6": ("--ip-version", "v6"),
    "--ipv6": ("--ip-version", "v6"),
    "--encrypted": ("--encrypted", "true"),
    "--unencrypted": ("--encrypted", "false"),
    "--reply": ("--reply", "true"),
    "--not-reply": ("--reply", "false"),
    "-A": ("--all-namespaces", "true"),
    **{f"--{side}all-namespaces": (f"--{side}all-namespaces", "true") for side in ("", "from-", "to-")},
}
"""Flags that people give without a value -> flag and value."""


def _spelled_out(word: str) -> str:
    return "=".join(SWITCHES[word]) if word in SWITCHES else word


def mark_negations(arguments: Sequence[str]) -> list[str]:
    """Rewrite `--not --flag value` into `--flag NOT+value`, and `-4` into `--ip-version=v4`.

    A parser can read those which knows neither order nor lists of switches. Other commands are left alone.
    """
    if "observe" not in arguments:
        return list(arguments)
    found: list[str] = []
    rest = [_spelled_out(word) for word in arguments]
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*found, word, *rest]
        if word != "--not":
            found.append(word)
            continue
        flag = rest.pop(0) if rest else ""
        name, equals, value = flag.partition("=")
        if not name.startswith("-"):
            raise Invalid("--not: stands in front of the filter flag that it turns around: --not --verdict FORWARDED")
        if not equals:
            value = rest.pop(0) if rest else ""
        found += [name, NOT + value]
    return found
