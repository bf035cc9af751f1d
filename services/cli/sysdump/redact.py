"""What must not leave a cluster: keys, tokens, passwords, environments. Pure; for everything that is collected."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "[redacted]"
_WORDS = (
    r"pass(?:word|wd|phrase)?|secret|token|credentials?|authorization|cookie|set-cookie|"
    r"private[-_. ]?key|api[-_. ]?key|access[-_. ]?key|client[-_. ]?key[-_. ]?data|bearer"
)
_NAME = re.compile(
    rf"(?:^|[-_. ])(?:{_WORDS})s?(?:$|[-_. ])|(?:Password|Secret|Token|ApiKey|PrivateKey)$", re.IGNORECASE
)
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_TOKEN = re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")
"""A JSON Web Token: service accounts have them."""
_BEARER = re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_USER = re.compile(r"(\b[a-z][a-z0-9+.-]{0,30}://)[^/\s:@]{1,256}:[^/\s@]{1,1024}@")
_PAIR = re.compile(
    # Begins where a name begins and is bounded: text is megabytes, and may be one word.
    rf"(?<![\w.-])(?P<name>[\"']?[\w.-]{{0,96}}?(?:{_WORDS})[\w.-]{{0,96}}[\"']?\s{{0,8}}[:=]\s{{0,8}})(?P<value>\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&\"'}}]+)",
    re.IGNORECASE,
)
_PATHS = ("/", "./", "unix:")
"""A value that is a file's name says where a secret is, not what it is."""


def text(value: str) -> str:
    """Text without secrets: PEM keys, tokens, users in URLs, and what stands behind a name that means one."""
    for pattern in (_PEM, _TOKEN):
        value = pattern.sub(HIDDEN, value)
    value = _BEARER.sub(rf"\1 {HIDDEN}", value)
    value = _USER.sub(rf"\1{HIDDEN}@", value)
    return _PAIR.sub(_pair, value)


def _pair(match: re.Match[str]) -> str:
    value = match["value"].strip("\"'")
    harmless = value.startswith(_PATHS) or value.lower() in (
        "true",
        "false",
        "null",
        "none",
        "",
        HIDDEN,
        "bearer",
        "basic",
    )
    if harmless or HIDDEN in value or value.isdecimal():
        return match[0]
    quote = match["value"][0] if match["value"][0] in "\"'" else ""
    return f"{match['name']}{quote}{HIDDEN}{quote}"


def document(value: Any, name: str = "") -> Any:
    """A JSON-like value without secrets: environments, data of Secrets, values whose names say what they are."""
    if isinstance(value, dict):
        if value.get("kind") == "Secret":
            return {
                key: HIDDEN if key in ("data", "stringData") else document(each, key) for key, each in value.items()
            }
        named = str(value.get("name") or value.get("key") or "")
        hide = {"value"} if name == "env" or _NAME.search(named) else set()
        return {key: HIDDEN if key in hide else document(each, str(key)) for key, each in value.items()}
    if isinstance(value, list):
        return [document(each, name) for each in value]
    if isinstance(value, str):
        harmless = not value or value.isdecimal() or value.startswith(_PATHS)
        return HIDDEN if _NAME.search(name) and not harmless else text(value)
    return value
