"""What policy commands print: answers of an agent as plain mappings, and as text for people. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from services.cli.output import Item, Output, cell, render
from services.cli.policy_files import Checked
from services.cli.recorded import Recorded
from services.model.labels import CLUSTER, POD_NAMESPACE

NAMES_SHOWN = 3


def counted(found: Checked) -> str:
    """The last line of `validate`."""
    accepted, groups = len(found.policies), len(found.sources) - len(found.policies)
    text = f"{accepted} {'policy' if accepted == 1 else 'policies'}"
    text += f" and {groups} CIDR {'group' if groups == 1 else 'groups'}" if groups else ""
    text += f" accepted, {len(found.mistakes)} mistakes"
    return f"{text}, {found.others} other objects not looked at" if found.others else text


def findings(found: Checked) -> dict[str, Any]:
    """What `validate` found, for programs."""
    return {
        "accepted": [str(source.key) for source in found.sources],
        "findings": [
            {
                "file": each.file,
                "line": each.line,
                "policy": each.policy,
                "field": each.field,
                "message": each.message,
                "severity": "error" if each.fatal else "warning",
            }
            for each in found.findings
        ],
        "others": found.others,
    }


def rule_text(rule: Item) -> str:
    """`CiliumNetworkPolicy default/web spec.ingress[0] (revision 7)`."""
    where = f"{rule['namespace']}/" if rule["namespace"] else ""
    place = f" {rule['path']}" if rule.get("path") else ""
    return f"{rule['kind']} {where}{rule['name']}{place} (revision {rule['revision']})"


def answer_text(answer: Item) -> str:
    """`allowed, requests are filtered: GET /x`."""
    return f"{answer['fate']}: {', '.join(answer['requests'])}" if answer["requests"] else str(answer["fate"])


def _why(considered: Item) -> str:
    if not considered["failed"]:
        return "matched, denies" if considered["deny"] else "matched"
    return f"other {' and '.join(considered['failed'])}"


def _considered(item: Item) -> list[str]:
    """A rule that was considered: what became of it, then what it says."""
    side = "from" if item["rule"]["direction"] == "ingress" else "to"
    return [f"  - {rule_text(item['rule'])}: {_why(item)}", f"      {side} {_short(item['peers'])}; {item['traffic']}"]


def _short(peers: str) -> str:
    """Selectors without what every one of them says."""
    text = re.sub(rf"(, )?k8s:{re.escape(CLUSTER)}=[^, ]+", "", peers)
    return text.replace(f"k8s:{POD_NAMESPACE}=", "namespace=").removeprefix(", ")


def explained(item: Item, port: str, http: str) -> str:
    """An explanation for people: the verdict first, then each direction with every rule."""
    what = f"port {port}" + (f", {http}" if http else "")
    lines = [
        f"{item['source']} (identity {item['source_identity']}) -> "
        f"{item['destination']} (identity {item['destination_identity']}), {what}: "
        f"{'allowed' if item['passes'] else 'not allowed'}"
    ]
    if item["enforcement"] != "default":
        lines.append(f"policy is enforced {item['enforcement']} (policy_enforcement)")
    for direction in item["directions"]:
        lines += ["", *_direction(direction)]
    return "\n".join(cell(line) if line else "" for line in lines)


def _direction(found: Item) -> list[str]:
    title = f"{found['direction']} of {found['subject']}: "
    if not found["has_policy"]:
        return [f"{title}allowed; no policy selects who is no pod and no known node"]
    lines = [title + answer_text(found["answer"])]
    if found["audited"]:
        lines.append("  audited: whatever is refused here passes all the same, and is told as a flow")
    lines += [f"  conflict: {text}" for text in found["conflicts"]]
    if found["isolating"]:
        lines.append(f"  closed by {', '.join(rule_text(rule) for rule in found['isolating'])}")
    else:
        lines.append("  open: no policy closes this direction")
    nearest = found.get("nearest")
    if nearest:
        lines.append(f"  nearest rule: {rule_text(nearest['rule'])}, {_why(nearest)}")
    for each in found["considered"]:
        lines += _considered(each)
    return lines


def simulation(answer: Item, recorded: Sequence[tuple[Recorded, int]], since: str) -> dict[str, Any]:
    """A simulation's answer with the recorded flows that it is about."""
    changed = []
    for each in answer["flows"]:
        flow, count = recorded[int(each["flow"])]
        changed.append(
            {
                "source": flow.source.name,
                "destination": flow.destination.name,
                "direction": flow.direction.name.lower(),
                "port": _port(flow),
                "request": str(flow.request) if flow.request else "",
                "recorded": "FORWARDED" if flow.forwarded else "DROPPED",
                "then": each["after"],
                "count": count,
            }
        )
    return {
        "enforcement": answer["enforcement"],
        "audit": answer["audit"],
        "flips": answer["flips"],
        "complete": answer["complete"],
        "period": since,
        "flows_looked_at": sum(count for _, count in recorded),
        "flows": changed,
    }


def _port(flow: Recorded) -> str:
    names = {6: "TCP", 17: "UDP", 132: "SCTP", 1: "ICMP", 58: "ICMPv6"}
    return f"{flow.port}/{names.get(flow.protocol, flow.protocol)}"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


FLIPS = (
    ("from", lambda item: _names(item["source"])),
    ("to", lambda item: _names(item["destination"])),
    ("ports", "ports"),
    ("now", lambda item: answer_text(item["before"])),
    ("then", lambda item: answer_text(item["after"])),
)
FLOWS = (
    ("from", "source"),
    ("to", "destination"),
    ("direction", "direction"),
    ("port", "port"),
    ("request", "request"),
    ("recorded", "recorded"),
    ("then", lambda item: answer_text(item["then"])),
    ("flows", "count"),
)


def simulated(item: Item) -> str:
    """A simulation for people."""
    merged = _merged(item["flips"])
    flips = render(merged, FLIPS, Output.TABLE, "no pair of pods would meet another verdict")
    remarks = [] if item["enforcement"] == "default" else [f"policy is enforced {item['enforcement']}"]
    remarks += [f"audit {item['audit']}: there everything passes, whatever is said here"] if item["audit"] else []
    title = f"{len(merged)} changes between pairs"
    if not item["complete"]:
        title += " (cut short: too many pairs)"
    count = sum(flow["count"] for flow in item["flows"])
    told = (
        f"{count} of {item['flows_looked_at']} recorded flows of the last {item['period']} would meet another verdict"
    )
    flows = render(item["flows"], FLOWS, Output.TABLE, "")
    return "\n".join([*remarks, f"{title}:", flips, "", f"{told}:" if flows else told, *([flows] if flows else [])])


def _merged(flips: Sequence[Item]) -> list[dict[str, Any]]:
    """Port ranges of one pair that change alike, in one line."""
    found: dict[str, dict[str, Any]] = {}
    for flip in flips:
        key = repr((flip["source"], flip["destination"], flip["before"], flip["after"]))
        if key in found:
            found[key]["ports"] += f", {flip['ports']}"
        else:
            found[key] = dict(flip)
    return list(found.values())
