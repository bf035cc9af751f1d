"""A manifest file's text -> objects, or one error that says file, line and field. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from services.agent.sources.decode import decode
from services.agent.sources.fields import FieldError, Path, render
from services.common.errors import Invalid
from services.model.objects import KubeObject, ObjectKey

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_DEPTH = 100
"""Of lists and mappings in one another. The loader calls itself for each: a file of brackets would end the process."""


class ManifestError(Invalid):
    """A file that cannot be read as manifests: `file:line: field: problem`. Lines count from 1."""

    def __init__(self, file: str, line: int, problem: str) -> None:
        super().__init__(f"{file}:{line}: {problem}")
        self.file, self.line, self.problem = file, line, problem


def parse(text: str, file: str) -> dict[ObjectKey, KubeObject]:
    """All objects of a multi-document file that the agent follows; `kind: List` is opened. Raises `ManifestError`."""
    found: dict[ObjectKey, KubeObject] = {}
    for document, root in _documents(text, file):
        for item, path in _flatten(document):
            line = _line(root, path)
            try:
                thing = decode(item, origin=f"{file}:{line}")
            except FieldError as error:
                at = (*path, *error.path)
                raise ManifestError(file, _line(root, at), f"{render(at)}: {error.problem}") from error
            if thing is None:
                continue
            if thing.key in found:
                raise ManifestError(file, line, f"{thing.key} stands in this file twice; keep one")
            found[thing.key] = thing
    return found


def _documents(text: str, file: str) -> Iterator[tuple[Any, yaml.Node]]:
    _check_depth(text, file)
    loader = _Loader(text)
    try:
        while loader.check_node():
            root = loader.get_node()
            yield loader.construct_document(root), root
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.problem, error.context) if part)
        raise ManifestError(file, mark.line + 1 if mark else 1, f"not YAML: {problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ManifestError(file, 1, f"not YAML: {str(error).splitlines()[0]}") from error
    finally:
        loader.dispose()


def _check_depth(text: str, file: str) -> None:
    """Refuse what is nested too deep, from the parser's events: they come one by one, however deep it is."""
    depth = 0
    try:
        for event in yaml.parse(text, _Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    line = event.start_mark.line + 1 if event.start_mark else 1
                    raise ManifestError(file, line, f"nested more than {MAX_DEPTH} deep; no object is")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    except yaml.YAMLError:
        return  # the loader says it better


def _flatten(document: Any, path: Path = ()) -> Iterator[tuple[Any, Path]]:
    if document is None:
        return
    if isinstance(document, dict) and document.get("kind") == "List" and document.get("apiVersion") == "v1":
        for index, item in enumerate(document.get("items") or ()):
            yield from _flatten(item, (*path, "items", index))
    else:
        yield document, path


def _line(root: yaml.Node, path: Path) -> int:
    """The line of the field that a path leads to, or of its nearest parent that is written down."""
    node, line = root, root.start_mark.line
    for part in path:
        child = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == part:
                    child, line = value, key.start_mark.line
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            child = node.value[part]
            line = child.start_mark.line
        if child is None:
            break
        node = child
    return line + 1
