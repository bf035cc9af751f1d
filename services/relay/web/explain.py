"""Why a flow was refused, or let through, in sentences. Pure."""

from __future__ import annotations

from typing import Any

from services.flows.entries import Decision, PolicyRef
from services.flows.facets import AUDIT, DROPPED
from services.flows.summary import refusal
from services.model.verdict import Direction, DropReason

_DIFFERS = {
    "peer": "it allows another peer",
    "protocol": "it allows another protocol",
    "port": "it allows other ports",
}

DEFAULT_DENY = "default deny"
"""What `summary.refusal` says of a policy's drop where no policy is known."""


def explain(kind: int, verdict: int, reason: int, direction: int, decision: Decision | None) -> dict[str, Any] | None:
    """The explanation of a row; None where no policy had a say.

    Keys: `title`, `text`, `reason` (of a drop), `policies` and `nearest` (each with kind, namespace, name, rule).
    """
    refused = verdict == DROPPED
    if not refused and verdict != AUDIT:
        return _allowed(decision)
    title, text = _refusal(kind, reason, direction, decision)
    if verdict == AUDIT:
        title, text = f"Audit only: {title[0].lower()}{title[1:]}", f"{text} The endpoint is audited, so it passed."
    found: dict[str, Any] = {"title": title, "text": text, "reason": reason_name(reason)}
    if decision is not None:
        found["policies"] = [_policy(each) for each in decision.policies]
        if decision.nearest is not None:
            found["nearest"] = _policy(decision.nearest.rule) | {
                "failed": list(decision.nearest.failed),
                "text": " and ".join(_DIFFERS.get(each, f"its {each} differs") for each in decision.nearest.failed),
            }
    return found


def reason_name(reason: int) -> str:
    """`POLICY_DENIED`; the number of one that is not known."""
    return DropReason(reason).name if reason in set(DropReason) else str(reason)


def _allowed(decision: Decision | None) -> dict[str, Any] | None:
    if decision is None or not decision.matched:
        return None
    names = _names(decision)
    policies = [_policy(each) for each in decision.policies]
    return {"title": "Allowed by a rule", "text": f"{names} allows this.", "policies": policies}


def _refusal(kind: int, reason: int, direction: int, decision: Decision | None) -> tuple[str, str]:
    names = _names(decision)
    way = {int(Direction.INGRESS): "incoming", int(Direction.EGRESS): "outgoing"}.get(direction, "this")
    what = refusal(kind, reason, None)
    if not what:
        return "Dropped by the datapath", f"No policy decided this: {reason_name(reason).replace('_', ' ').lower()}."
    if what != DEFAULT_DENY:
        by = f" The rules of {names} apply here." if names else ""
        return what[0].upper() + what[1:], f"The kernel refused it before the server saw it.{by}"
    if decision is not None and decision.matched:
        return "Denied by a rule", f"{names} denies this {way} traffic."
    if not names:
        return "Default deny", f"The endpoint is isolated, and no rule allows this {way} traffic."
    many = decision is not None and len(decision.policies) > 1
    verb, none = ("isolate", "none of their rules") if many else ("isolates", "none of its rules")
    return "Default deny", f"{names} {verb} the endpoint for {way} traffic, and {none} allows this."


def _names(decision: Decision | None) -> str:
    return ", ".join(dict.fromkeys(str(each) for each in decision.policies)) if decision else ""


def _policy(policy: PolicyRef) -> dict[str, str]:
    return {"kind": policy.kind, "namespace": policy.namespace, "name": policy.name, "rule": policy.rule}
