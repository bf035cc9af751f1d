"""Results for people (a table) and for machines (JUnit XML). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from xml.etree import ElementTree

from rich.table import Table
from rich.text import Text


class Status(StrEnum):
    """How a case ended."""

    PASSED = "ok"
    FAILED = "FAILED"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Result:
    """One row. `problems`: what was not as it should be, or why the case was skipped."""

    name: str
    status: Status
    requests: int = 0
    flows: int = 0
    seconds: float = 0.0
    problems: tuple[str, ...] = ()


_STYLES = {Status.PASSED: "green", Status.FAILED: "bold red", Status.SKIPPED: "yellow"}


def table(results: Sequence[Result]) -> Table:
    """A row per case; failures tell up to three of their problems."""
    found = Table(show_edge=False, pad_edge=False, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title, side in (
        ("case", "left"),
        ("", "left"),
        ("requests", "right"),
        ("flows", "right"),
        ("seconds", "right"),
    ):
        found.add_column(title, justify="right" if side == "right" else "left")
    found.add_column("", overflow="fold")
    for result in results:
        shown = [*result.problems[:3], *([f"and {len(result.problems) - 3} more"] if len(result.problems) > 3 else [])]
        found.add_row(
            Text(result.name),
            Text(result.status.value, style=_STYLES[result.status]),
            str(result.requests or ""),
            str(result.flows or ""),
            f"{result.seconds:.1f}" if result.seconds else "",
            Text("\n".join(_printable(text) for text in shown)),
        )
    return found


def summary(results: Sequence[Result], seconds: float) -> str:
    """One line."""
    counts = {status: sum(result.status is status for result in results) for status in Status}
    requests = sum(result.requests for result in results)
    return (
        f"{counts[Status.PASSED]} of {len(results)} cases passed, {counts[Status.FAILED]} failed, "
        f"{counts[Status.SKIPPED]} skipped; {requests} requests in {seconds:.1f} s"
    )


def junit(results: Sequence[Result], seconds: float) -> bytes:
    """The XML that continuous integration systems read (one suite; `group/name` becomes class and name)."""
    counts = {status: sum(result.status is status for result in results) for status in Status}
    suite = ElementTree.Element(
        "testsuite",
        name="ciliate connectivity test",
        tests=str(len(results)),
        failures=str(counts[Status.FAILED]),
        skipped=str(counts[Status.SKIPPED]),
        errors="0",
        time=f"{seconds:.3f}",
    )
    for result in results:
        group, _, name = result.name.rpartition("/")
        attributes = {"classname": group or "connectivity", "name": name, "time": f"{result.seconds:.3f}"}
        case = ElementTree.SubElement(suite, "testcase", attributes)
        text = "\n".join(_printable(problem) for problem in result.problems)
        if result.status is Status.FAILED:
            ElementTree.SubElement(case, "failure", message=text.partition("\n")[0]).text = text
        elif result.status is Status.SKIPPED:
            ElementTree.SubElement(case, "skipped", message=text)
    document = ElementTree.Element("testsuites")
    document.append(suite)
    ElementTree.indent(document)
    return bytes(ElementTree.tostring(document, encoding="utf-8", xml_declaration=True))


def _printable(text: str) -> str:
    """What pods said may hold anything; XML and terminals may not."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)
