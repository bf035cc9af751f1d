"""HTTP requests that are asked about on the command line."""

from __future__ import annotations

from services.common.errors import Invalid
from services.policy.l7 import Request


def read_request(text: str) -> tuple[str, str]:
    """(method, path) of `GET /x`; raises `Invalid`."""
    if not text:
        return "", ""
    method, _, path = text.strip().partition(" ")
    if not path.startswith("/") or not text.isascii() or not text.isprintable():
        raise Invalid(f"--http: write it as 'GET /path', not {text!r}")
    return method, path


def request_of(http: str, method: str, path: str, host: str, headers: list[str]) -> Request:
    """A request, given as 'GET /x' or in parts; without a path there is none. Raises `Invalid`."""
    if http and (method or path):
        raise Invalid("--http says the same as --method and --path: give one of them")
    if http:
        method, path = read_request(http)
    if (method or host or headers) and not path:
        raise Invalid("--path is needed to ask about a request")
    for option, text in (("--method", method), ("--path", path), ("--host", host)):
        if not text.isascii() or any(not 0x20 < ord(char) < 0x7F for char in text):
            raise Invalid(f"{option}: {text!r} has characters that no request can have there")
    if path and not path.startswith(("/", "*")):
        raise Invalid(f"--path: it begins with '/', unlike {path!r}")
    pairs = []
    for text in headers:
        name, colon, value = text.partition(":")
        if not colon or not name.strip() or not text.isprintable():
            raise Invalid(f"--header: write it as 'Name: value', not {text!r}")
        pairs.append((name.strip(), value.strip(" ")))
    return Request(method or ("GET" if path else ""), path, host, tuple(pairs))
