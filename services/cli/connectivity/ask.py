"""Requests that a case makes: the command line that asks, and what its output means. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from services.sandbox.probes import BY_KERNEL, NO_ANSWER, NO_CONNECTION, curl_command, read_curl

_UDP = """\
import socket, sys
address, port, size, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(seconds)
    client.sendto(b"x" * size, (address, port))
    try:
        data, server = client.recvfrom(65536)
    except TimeoutError:
        sys.exit(28)
    except ConnectionRefusedError:
        sys.exit(7)
print(len(data), server[0].removeprefix("::ffff:"), data.partition(b"\\n")[0].decode())
"""
_CURL_NAME, _CURL_REFUSED, _CURL_TIMED_OUT, _CURL_TLS, _CURL_RESET = 6, 7, 28, 35, 56


class Outcome(StrEnum):
    """What a request comes to."""

    ANSWERED = "answered"
    FORBIDDEN = "403 by the kernel"
    REFUSED = "refused at once"
    UNANSWERED = "no answer"
    NO_NAME = "name not resolved"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it; `text` is everything that was said, for people and for what a case wants to find in it."""

    outcome: Outcome
    text: str

    def __str__(self) -> str:
        words = " ".join(self.text.split())
        return self.outcome.value if self.outcome is not Outcome.FAILED else f"failed: {words[:160]}"


class Request(Protocol):
    """One way to ask. `seconds`: how long to wait for a connection, and again for the answer."""

    def command(self, seconds: float) -> Sequence[str]: ...

    def read(self, status: int, output: str, errors: str) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Http:
    """One HTTP request on a connection of its own. `at` connects there whatever the URL says ("host:port:address"),
    which is how TLS names are shown to servers that do not have them."""

    url: str
    method: str = "GET"
    at: str = ""
    headers: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.method} {self.url}"

    def command(self, seconds: float) -> Sequence[str]:
        more = [part for header in self.headers for part in ("-H", header)]
        more += ["--resolve", self.at] if self.at else []
        return [*curl_command(self.method, self.url, seconds, seconds + 1.0, body=True), "-k", *more]

    def read(self, status: int, output: str, errors: str) -> Answer:
        text = read_curl(status, output, errors).text
        special = {_CURL_NAME: Outcome.NO_NAME, _CURL_REFUSED: Outcome.REFUSED}
        if status in (_CURL_TLS, _CURL_RESET) or text in (NO_CONNECTION, NO_ANSWER):
            return Answer(Outcome.UNANSWERED, text)
        if status in special:
            return Answer(special[status], text)
        if text == f"403 {BY_KERNEL}":
            return Answer(Outcome.FORBIDDEN, text)
        return Answer(Outcome.ANSWERED if status == 0 and text[:1].isdigit() else Outcome.FAILED, output or text)


@dataclass(frozen=True, slots=True)
class Udp:
    """One datagram of `size` bytes, answered by as many; over 1,472 they travel in fragments."""

    address: str
    port: int
    size: int = 64

    def __str__(self) -> str:
        return f"UDP {self.address} port {self.port}, {self.size} bytes"

    def command(self, seconds: float) -> Sequence[str]:
        return ["python3", "-c", _UDP, self.address, str(self.port), str(self.size), f"{seconds:g}"]

    def read(self, status: int, output: str, errors: str) -> Answer:
        if status in (_CURL_REFUSED, _CURL_TIMED_OUT):
            return Answer(Outcome.REFUSED if status == _CURL_REFUSED else Outcome.UNANSWERED, output)
        whole = status == 0 and output.split()[:2] == [str(self.size), self.address]
        return Answer(Outcome.ANSWERED if whole else Outcome.FAILED, output if status == 0 else errors[-160:])


@dataclass(frozen=True, slots=True)
class Ping:
    """One ICMP echo of `size` bytes of data; `whole`: it must not be fragmented."""

    address: str
    size: int = 56
    whole: bool = False

    def __str__(self) -> str:
        return f"ping {self.address}, {self.size} bytes{', not to be fragmented' if self.whole else ''}"

    def command(self, seconds: float) -> Sequence[str]:
        options = ["-M", "do"] if self.whole else []
        return ["ping", "-n", "-c", "1", "-W", f"{seconds:g}", "-s", str(self.size), *options, self.address]

    def read(self, status: int, output: str, errors: str) -> Answer:
        if status == 0:
            return Answer(Outcome.ANSWERED, output)
        lost = "100% packet loss" in output and not errors.strip()
        return Answer(Outcome.UNANSWERED if lost else Outcome.FAILED, (errors or output)[-160:])


@dataclass(frozen=True, slots=True)
class Resolve:
    """A name, by the pod's own resolver."""

    name: str

    def __str__(self) -> str:
        return f"resolve {self.name}"

    def command(self, seconds: float) -> Sequence[str]:
        return ["timeout", f"{seconds + 1:g}", "getent", "ahosts", self.name]

    def read(self, status: int, output: str, errors: str) -> Answer:
        return Answer(Outcome.ANSWERED if status == 0 and output else Outcome.NO_NAME, output or errors)
