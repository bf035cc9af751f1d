"""What the kernel has learned of DNS, with the selectors and endpoints that it is for."""

from __future__ import annotations

from services.agent.calc.names import matches
from services.agent.server.knowledge import Knowledge
from services.common.errors import Invalid
from services.common.pb.agent.v1 import agent_pb2 as pb

MAX_PATTERN = 255


def names_view(knowledge: Knowledge, pattern: str) -> pb.ListNamesResponse:
    """Every address of every name; raises `Invalid` for a pattern that is none."""
    if pattern and (len(pattern) > MAX_PATTERN or not set(pattern.lower()) <= _ALLOWED):
        raise Invalid("pattern: must have at most 255 of a-z, 0-9, '-', '_', '.' and '*'")
    engine = knowledge.engine
    fqdn = engine.name_rules().fqdn
    users = {selector: engine.endpoints_by_name(selector) for selector in fqdn.selectors}
    found = []
    for each in knowledge.learned.all():
        if pattern and not matches(pattern, each.name):
            continue
        selectors = sorted(fqdn.matching(each.name))
        endpoints = sorted({number for selector in selectors for number in users[selector]})
        found.append(
            pb.LearnedName(
                name=each.name.rstrip("."),
                address=str(each.address),
                ttl=each.ttl,
                seconds_left=max(0.0, each.left),
                selectors=selectors,
                endpoints=endpoints,
            )
        )
    return pb.ListNamesResponse(names=found)


_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.*")
