"""The checks of `./dev demo l7`, declared: L7 policy in the kernel, without a proxy. `scenario_l7.py` runs them."""

from __future__ import annotations

from dataclasses import dataclass

from services.sandbox.checks import REFUSED, Check
from services.sandbox.probes import NO_CONNECTION

EXAMPLE = "l7"
ITEM = "/api/v1/items/7"
RESET = "connection reset"
ALLOWED_NAME, OTHER_NAME = "api.world.test", "pay.world.test"
FORBIDDEN_NAME = "internal.corp.world.test"
ALIAS = "www.alias.test"
ROUND = 20
"""Names of a round of the race between an answer and the connection that follows it."""


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request of the client's, and what should come of it."""

    text: str
    method: str
    path: str
    expected: str
    options: tuple[str, ...] = ()

    @property
    def check(self) -> Check:
        """The line in the table."""
        return Check("HTTP by method, path, header and host", self.text, self.expected)


REQUESTS = (
    Request(f"GET {ITEM}", "GET", ITEM, "200"),
    Request("GET /api/v1/items/x", "GET", "/api/v1/items/x", REFUSED),
    Request(f"DELETE {ITEM}", "DELETE", ITEM, REFUSED),
    Request("PUT /admin/stock", "PUT", "/admin/stock", REFUSED),
    Request("PUT /admin/stock, X-Role: guest", "PUT", "/admin/stock", REFUSED, ("-H", "X-Role: guest")),
    Request("PUT /admin/stock, X-Role: admin", "PUT", "/admin/stock", "200", ("-H", "X-Role: admin")),
    Request("GET /reports/today", "GET", "/reports/today", REFUSED),
    Request(
        "GET /reports/today, Host: reports.shop.test",
        "GET",
        "/reports/today",
        "200",
        ("-H", "Host: reports.shop.test"),
    ),
    Request(f"GET {ITEM}/../8", "GET", f"{ITEM}/../8", REFUSED, ("--path-as-is",)),
)
_HTTP = REQUESTS[0].check.section
HTTP2 = Check(_HTTP, "HTTP/2 by prior knowledge", RESET)
KEPT_ALIVE = Check(_HTTP, "one connection: allowed, allowed, forbidden", f"200, 200, {REFUSED}")
SEEN = Check(_HTTP, "what the web server saw, and from whom", "what was allowed, from the client's own address")

_DNS = "DNS, read by the kernel"
RESOLVES = Check(_DNS, f"{ALLOWED_NAME}, UDP", "203.0.113.10")
RESOLVES_TCP = Check(_DNS, f"{ALLOWED_NAME}, TCP", "203.0.113.10")
RESOLVES_ALIAS = Check(_DNS, f"{ALIAS}, an alias", "203.0.113.10")
FORBIDDEN = Check(_DNS, f"{FORBIDDEN_NAME}, UDP", "REFUSED")
FORBIDDEN_TCP = Check(_DNS, f"{FORBIDDEN_NAME}, TCP", "REFUSED")

_FQDN = "toFQDNs, open before the answer arrives"
UNASKED = Check(_FQDN, "an address that nobody asked a name for", NO_CONNECTION)
RACE = Check(_FQDN, f"{ROUND} names, connected to the moment the answer is there", f"{ROUND} by their first SYN")
AGENT_AWAY = Check(_FQDN, f"{ROUND} more while the agent is stopped", f"{ROUND} by their first SYN")
NAMED = Check(_FQDN, f"GET http://{ALLOWED_NAME}/", "200")
UNNAMED = Check(_FQDN, "the same server by another port", NO_CONNECTION)

_TLS = "TLS server names, nothing decrypted"
SERVER_ALLOWED = Check(_TLS, f"https://{OTHER_NAME}/, verified against the server's own certificate", "200")
SERVER_FORBIDDEN = Check(_TLS, f"https://{ALLOWED_NAME}/", RESET)
SERVER_UNNAMED = Check(_TLS, "https://203.0.113.10/, which names nobody", RESET)

_FLOWS = "flows"
FLOW_RESPONSE = Check(_FLOWS, "an allowed request with its status and latency", f"GET {ITEM} 200, in … ms")
FLOW_REFUSED = Check(_FLOWS, "a refused request and the policy", f"DELETE {ITEM} DROPPED, shop-requests")
FLOW_HTTP2 = Check(_FLOWS, "HTTP/2 has a drop reason of its own", "HTTP/2 where HTTP/1 rules apply")
FLOW_ANSWER = Check(_FLOWS, "a DNS answer with its latency", f"{ALLOWED_NAME}. 203.0.113.10, in … ms")
FLOW_ALIAS = Check(_FLOWS, "an answer over an alias names it", f"{ALIAS}. over web.alias.test.")
FLOW_FORBIDDEN = Check(_FLOWS, "a refused name", f"{FORBIDDEN_NAME}. DROPPED")
FLOW_SERVER = Check(_FLOWS, "a server's name", f"{OTHER_NAME} FORWARDED")
FLOW_SERVER_FORBIDDEN = Check(_FLOWS, "a refused server's name", f"{ALLOWED_NAME} DROPPED")

CHECKS: tuple[Check, ...] = (
    *(request.check for request in REQUESTS),
    HTTP2,
    KEPT_ALIVE,
    SEEN,
    RESOLVES,
    RESOLVES_TCP,
    RESOLVES_ALIAS,
    FORBIDDEN,
    FORBIDDEN_TCP,
    UNASKED,
    RACE,
    AGENT_AWAY,
    NAMED,
    UNNAMED,
    SERVER_ALLOWED,
    SERVER_FORBIDDEN,
    SERVER_UNNAMED,
    FLOW_RESPONSE,
    FLOW_REFUSED,
    FLOW_HTTP2,
    FLOW_ANSWER,
    FLOW_ALIAS,
    FLOW_FORBIDDEN,
    FLOW_SERVER,
    FLOW_SERVER_FORBIDDEN,
)
