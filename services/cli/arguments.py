"""Arguments of `observe` before the parser sees them: `--not` in front of a flag, and flags without a value. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from services.cli import observe_options
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


def _spelled_out(word: str) -> list[str]:
    """A word as the parser takes it: switches with values get them, values of switches go."""
    if word in SWITCHES:
        return ["=".join(SWITCHES[word])]
    name, equals, value = word.partition("=")
    if equals and name in observe_options.SWITCHES and value in ("true", "false"):
        return [word for word in [name if value == "true" else observe_options.SWITCHES[name]] if word]
    return [word]


def mark_negations(arguments: Sequence[str]) -> list[str]:
    """Rewrite `--not --flag value` into `--flag NOT+value`, and `-4` into `--ip-version=v4`.

    A parser can read those which knows neither order nor lists of switches. Other commands are left alone.
    """
    if "observe" not in arguments:
        return list(arguments)
    found: list[str] = []
    rest = [part for word in arguments for part in _spelled_out(word)]
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
