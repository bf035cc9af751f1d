"""Talking to a sandbox's supervisor from another process: blocking, standard library only, so that it starts fast."""

from __future__ import annotations

import json
import socket
from typing import Any

from services.common import errors
from services.common.errors import CiliateError, Internal, Unavailable
from services.sandbox import state


class SandboxClient:
    """Requests to the sandbox `name`. Raises `NotFound` (never started), `Unavailable` (dead)."""

    def __init__(self, name: str = state.DEFAULT_NAME) -> None:
        self.state = state.load(name)
        if not self.state.alive:
            raise Unavailable(
                f"sandbox {name!r} is not running (its process {self.state.pid} is gone); "
                f"clear what it left with: ciliate sandbox down --name {name}"
            )

    def call(self, operation: str, timeout: float = 30.0, **fields: Any) -> dict[str, Any]:
        """One request; raises the error that the supervisor answered with."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            try:
                connection.connect(self.state.control)
                connection.sendall(json.dumps({"op": operation, **fields}).encode() + b"\n")
                with connection.makefile("rb") as stream:
                    line = stream.readline()
            except OSError as error:
                raise Unavailable(
                    f"sandbox {self.state.name!r} does not answer on {self.state.control}: {error}"
                ) from error
        if not line:
            raise Unavailable(f"sandbox {self.state.name!r} closed the connection; see {self.state.control}")
        answer = json.loads(line)
        if "error" in answer:
            raise _error(answer["error"])
        return dict(answer["ok"])


def _error(answer: dict[str, str]) -> CiliateError:
    kind = getattr(errors, answer["kind"], Internal)
    return kind(answer["message"]) if issubclass(kind, CiliateError) else Internal(answer["message"])
