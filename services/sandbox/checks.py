"""The checks of the demonstration, declared: what is asked of the example's policy, and what should come of it.

`scenario.py` runs them against a sandbox; the end-to-end test has a test for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.sandbox.manifests import Manifest, parse
from services.sandbox.probes import BY_KERNEL, CLOSED, NO_ANSWER, NO_CONNECTION

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
EXAMPLE = EXAMPLES / "my-webapp"
POLICY = "deny-all-ingress-to-webapp"
SERVICE = "my-webapp-svc"
ALLOWED_PATH = "/api/v1/users"
REFUSED = f"403 {BY_KERNEL}"
AT_ONCE_SECONDS = 0.5
"""A refusal that the kernel answers takes milliseconds; a dropped request would take a retransmission at least."""
CHANGE_SECONDS = 1.0

WAYS = (
    "pod on the same node",
    "pod on the other node",
    "pod on the same node, IPv6",
    "pod on the other node, IPv6",
    "Service address",
    "Service name",
)
FRONTEND_ASKS = (
    ("GET", ALLOWED_PATH, "200"),
    ("GET", "/", REFUSED),
    ("GET", f"{ALLOWED_PATH}/1", REFUSED),
    ("POST", ALLOWED_PATH, REFUSED),
)


@dataclass(frozen=True, slots=True)
class Check:
    """What should be; `section` groups checks in the table."""

    section: str
    name: str
    expected: str

    def __str__(self) -> str:
        return f"{self.section}: {self.name}"


@dataclass(frozen=True, slots=True)
class Result:
    """What was. `got` is for people, `ok` for machines."""

    check: Check
    got: str
    ok: bool


def client_checks() -> list[tuple[Check, str, str, str, str]]:
    """(check, client, way, method, path) for every request of the first round."""
    found = []
    for way in WAYS:
        for method, path, expected in FRONTEND_ASKS:
            found.append((Check(f"frontend to {way}", f"{method} {path}", expected), "frontend", way, method, path))
        check = Check(f"visitor to {way}", f"GET {ALLOWED_PATH}", NO_CONNECTION)
        found.append((check, "visitor", way, "GET", ALLOWED_PATH))
    return found


UNSEEN = Check("web app", "requests that reached it", f"only GET {ALLOWED_PATH}")
OUTSIDE = Check("web app", "asks the world outside, gets the reply", "200")
RESOLVES = Check("web app", "asks the cluster DNS, gets the reply", "an address")
KEPT_ALIVE = Check("kept-alive connection", "allowed, allowed, forbidden path", f"200, 200, {REFUSED}")
FLOW_DROPPED = Check("flows", "the visitor's drop names the policy", POLICY)
FLOW_REFUSED = Check("flows", "the frontend's refused request", "GET / DROPPED")
FLOW_ALLOWED = Check("flows", "the frontend's allowed connection names the policy", POLICY)
FREE_VISITOR = Check("policy deleted", "visitor GET / within a second", "200")
FREE_FRONTEND = Check("policy deleted", "frontend GET / within a second", "200")
AGAIN_VISITOR = Check("policy applied again", "visitor GET / within a second", NO_CONNECTION)
AGAIN_FRONTEND = Check("policy applied again", "frontend GET / within a second", REFUSED)
OPEN_ALLOWED = Check(
    "policy applied again",
    f"frontend's open connection, GET {ALLOWED_PATH}",
    "200, or closed and then 200 on a new one",
)
OPEN_VISITOR = Check("policy applied again", "visitor's open connection", NO_ANSWER)
OPEN_FRONTEND = Check("policy applied again", "frontend's open connection, GET /", f"{REFUSED} or {CLOSED}")

CHECKS: tuple[Check, ...] = (
    *(check for check, *_ in client_checks()),
    UNSEEN,
    OUTSIDE,
    RESOLVES,
    KEPT_ALIVE,
    FLOW_DROPPED,
    FLOW_REFUSED,
    FLOW_ALLOWED,
    FREE_VISITOR,
    FREE_FRONTEND,
    AGAIN_VISITOR,
    AGAIN_FRONTEND,
    OPEN_ALLOWED,
    OPEN_VISITOR,
    OPEN_FRONTEND,
)


def example(name: str = "my-webapp") -> list[Manifest]:
    """The objects of a folder of deploy/examples."""
    paths = sorted((EXAMPLES / name).glob("*.yaml"))
    return [each for path in paths for each in parse(path.read_text(encoding="utf-8"), path.name)]
