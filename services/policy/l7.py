"""Layer-7 rules of a port: HTTP, DNS, Kafka, generic parsers, TLS server names and listeners, as values.

HTTP, DNS and TLS server names are enforced by the datapath; the others are kept, so that the compiler can refuse what
it cannot enforce instead of letting it pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class HeaderMatch:
    """A header that a request must carry; `value` None = any value."""

    name: str
    value: str | None = None


@dataclass(frozen=True, slots=True)
class HttpRule:
    """One HTTP rule: every given field must match the whole text (regular expressions); None matches everything."""

    method: str | None = None
    path: str | None = None
    host: str | None = None
    headers: tuple[HeaderMatch, ...] = ()

    @property
    def sort_key(self) -> tuple[str, str, str, str]:
        """Any fixed order will do: it makes equal rule sets equal values."""
        return (self.method or "", self.path or "", self.host or "", repr(self.headers))

    def __str__(self) -> str:
        parts = [text for text in (self.method, self.host, self.path) if text]
        return " ".join(parts) or "any request"


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request, as far as rules look at it. `headers`: (name, value); recorded requests have none."""

    method: str
    path: str
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


RequestMatcher = Callable[[HttpRule, Request], bool]
"""Whether a request meets a rule; the regular expressions' engine is the caller's business."""


@dataclass(frozen=True, slots=True)
class DnsRule:
    """A DNS name (`pattern` False) or pattern that may be asked for."""

    name: str
    pattern: bool = False

    @property
    def everything(self) -> bool:
        """Whether every name matches."""
        return self.pattern and set(self.name.rstrip(".")) == {"*"}

    def __str__(self) -> str:
        return self.name


ANY_NAME = DnsRule("*", pattern=True)


@dataclass(frozen=True, slots=True)
class OtherRule:
    """A rule of another kind: TLS server names, which the datapath enforces, or Kafka, a generic parser, a listener."""

    kind: str
    fields: tuple[tuple[str, str], ...] = ()


HTTP, DNS, TLS, LISTENER = "http", "dns", "tls", "listener"
TERMINATING, ORIGINATING = "tls-terminating", "tls-originating"
"""Kinds of the rules that stand for TLS contexts: equal fields, equal context."""
CONTEXTS = frozenset({TERMINATING, ORIGINATING})


@dataclass(frozen=True, slots=True)
class L7:
    """The L7 rules of one port entry: any one of them allows."""

    kind: str
    http: frozenset[HttpRule] = frozenset()
    dns: frozenset[DnsRule] = frozenset()
    other: frozenset[OtherRule] = frozenset()

    def union(self, more: L7) -> L7:
        """What either allows. Different kinds on one port cannot be enforced together and stay visibly mixed."""
        kind = self.kind if self.kind == more.kind else "mixed"
        return L7(kind, self.http | more.http, self.dns | more.dns, self.other | more.other)

    @property
    def everything(self) -> bool:
        """Whether no request is ever refused."""
        return HttpRule() in self.http or any(rule.everything for rule in self.dns)

    def http_rules(self) -> tuple[HttpRule, ...]:
        """The HTTP rules in a fixed order."""
        return tuple(sorted(self.http, key=lambda rule: rule.sort_key))

    def names(self) -> frozenset[str]:
        """The names and patterns of DNS rules, or of TLS server names."""
        tls = {name for rule in self.other if rule.kind == TLS for name, _ in rule.fields}
        return frozenset(tls | {rule.name for rule in self.dns})

    @property
    def by_names(self) -> bool:
        """Whether names are all there is to compare: DNS rules alone, or TLS server names alone."""
        if self.kind == DNS:
            return not self.http and not self.other
        return self.kind == TLS and not self.http and not self.dns and {rule.kind for rule in self.other} == {TLS}

    def texts(self) -> tuple[str, ...]:
        """What is allowed, one text each, in a fixed order."""
        return tuple(str(rule) for rule in self.http_rules()) or tuple(sorted(self.names()))

    def __str__(self) -> str:
        return f"{self.kind} [{', '.join(self.texts())}]" if self.texts() else self.kind
