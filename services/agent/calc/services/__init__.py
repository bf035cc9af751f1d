"""Services: frontends -> backends, from Service, EndpointSlice, Pod and Node objects (policy-semantics 8).

`registry.Services` keeps the maps' desired content; everything else here is a pure function of a few objects:
`frontends` (where), `claims` (who has an address), `backends` (with whom), `sets` and `maglev` (how it is written).
"""

from services.agent.calc.services.options import LbOptions, NodeFacts
from services.agent.calc.services.registry import Services
from services.agent.calc.services.report import Frontend, HealthCheck, ServiceReport

__all__ = ["Frontend", "HealthCheck", "LbOptions", "NodeFacts", "ServiceReport", "Services"]
