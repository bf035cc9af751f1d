"""Policy files read offline: every mistake of every document with file, line and field. Pure but for what it is given.

In: a file's text. Out: policies as they would be in force, and findings. The same reader as the agent's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from services.cli.output import cell
from services.common.yaml_places import LOADER, MAX_DEPTH, line_of, refuse_repeated, too_deep
from services.model.objects import ObjectKey, PolicyObject
from services.policy.cidr_group import KIND as CIDR_GROUP
from services.policy.cidr_group import read_cidr_group
from services.policy.options import PolicyOptions
from services.policy.problems import PolicyInvalid, Problem
from services.policy.read import KINDS, read_policy
from services.policy.rules import Policy

_PART = re.compile(r"\[(\d+)\]|\['([^']*)'\]|([^.\[\]]+)")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to tell about a document. Not `fatal`: it is accepted, but perhaps not as its author thinks."""

    file: str
    line: int
    policy: str
    field: str
    message: str
    fatal: bool = True

    def __str__(self) -> str:
        at = f"{self.field}: " if self.field else ""
        return cell(f"{self.file}:{self.line}: {'' if self.fatal else 'warning: '}{at}{self.message}")


@dataclass(slots=True)
class Checked:
    """What files hold: accepted policies, their sources and those of CIDR groups, findings, and how many objects are
    none of these."""

    sources: list[PolicyObject] = field(default_factory=list)
    policies: list[Policy] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    others: int = 0

    @property
    def mistakes(self) -> list[Finding]:
        """The findings because of which a document is rejected."""
        return [finding for finding in self.findings if finding.fatal]


def check(
    files: Iterable[tuple[str, str]], options: PolicyOptions | None = None, namespace: str = "default"
) -> Checked:
    """Read the policies of (file, text) pairs; other kinds are counted, not judged."""
    found = Checked()
    for file, text in files:
        for document, root, path in _objects(text, file, found.findings):
            _check_one(found, file, document, root, path, options, namespace)
    return found


def _check_one(
    found: Checked,
    file: str,
    document: Any,
    root: yaml.Node,
    path: tuple[str | int, ...],
    options: PolicyOptions | None,
    namespace: str,
) -> None:
    def tell(name: str, problems: Iterable[Problem], *, fatal: bool) -> None:
        for problem in problems:
            line = line_of(root, (*path, *parts(problem.path)))
            found.findings.append(Finding(file, line, name, problem.path, problem.message, fatal))

    if not isinstance(document, Mapping) or not isinstance(document.get("kind"), str):
        tell("", [Problem("kind", "is missing; every document needs apiVersion and kind")], fatal=True)
        return
    kind = str(document["kind"])
    if kind not in KINDS and kind != CIDR_GROUP and not _looks_like_policy(kind):
        found.others += 1
        return
    metadata = document.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    wide = kind in ("CiliumClusterwideNetworkPolicy", CIDR_GROUP)
    space = "" if wide else str(metadata.get("namespace") or namespace)
    key = ObjectKey(kind, space, str(metadata.get("name") or ""))
    source = PolicyObject(key, document, origin=f"{file}:{line_of(root, path)}")
    policy: Policy | None = None
    try:
        if kind == CIDR_GROUP:
            read_cidr_group(source)
        else:
            policy = read_policy(source, options)
    except PolicyInvalid as invalid:
        tell(str(key), invalid.problems, fatal=True)
        return
    tell(str(key), policy.warnings if policy else (), fatal=False)
    twin = next((each for each in found.sources if each.key == key), None)
    if twin is not None:
        tell(str(key), [Problem("metadata.name", f"{key} stands at {twin.origin} as well; keep one")], fatal=True)
        return
    found.sources.append(source)
    if policy is not None:
        found.policies.append(policy)


def _looks_like_policy(kind: str) -> bool:
    """A misspelt kind of policy is a mistake, a Deployment beside policies is not."""
    return "networkpolic" in kind.lower()


def parts(path: str) -> tuple[str | int, ...]:
    """`spec.ingress[0]['a.b']` as ("spec", "ingress", 0, "a.b")."""
    return tuple(
        int(match[1]) if match[1] else match[2] if match[2] is not None else match[3] for match in _PART.finditer(path)
    )


def _objects(text: str, file: str, findings: list[Finding]) -> Iterator[tuple[Any, yaml.Node, tuple[str | int, ...]]]:
    """(document, its file's node, path there) of every object; text that is no YAML is a finding and ends the file."""
    try:
        deep = too_deep(text)
    except yaml.YAMLError:
        deep = 0  # the loader says it better
    if deep:
        findings.append(Finding(file, deep, "", "", f"nested more than {MAX_DEPTH} deep; no policy is"))
        return
    loader = LOADER(text)
    try:
        while loader.check_node():
            root = loader.get_node()
            refuse_repeated(root)
            document = loader.construct_document(root)
            if document is None:
                continue
            if isinstance(document, Mapping) and document.get("kind") == "List":
                items = document.get("items")
                for index, item in enumerate(items if isinstance(items, list) else ()):
                    yield item, root, ("items", index)
            else:
                yield document, root, ()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.problem, error.context) if part)
        findings.append(Finding(file, mark.line + 1 if mark else 1, "", "", f"not YAML: {problem}"))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        findings.append(Finding(file, 1, "", "", f"not YAML: {(str(error) or type(error).__name__).splitlines()[0]}"))
    finally:
        loader.dispose()
