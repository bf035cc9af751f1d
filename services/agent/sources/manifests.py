"""A manifest file's text -> objects, or one error that says file, line and field. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from services.agent.sources.decode import decode
from services.agent.sources.fields import FieldError, Path, render
from services.common.errors import Invalid
from services.common.yaml_places import LOADER, MAX_DEPTH, line_of, refuse_repeated, too_deep
from services.model.objects import KubeObject, ObjectKey


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
            line = line_of(root, path)
            try:
                thing = decode(item, origin=f"{file}:{line}")
            except FieldError as error:
                at = (*path, *error.path)
                raise ManifestError(file, line_of(root, at), f"{render(at)}: {error.problem}") from error
            if thing is None:
                continue
            if thing.key in found:
                raise ManifestError(file, line, f"{thing.key} stands in this file twice; keep one")
            found[thing.key] = thing
    return found


def _documents(text: str, file: str) -> Iterator[tuple[Any, yaml.Node]]:
    _check_depth(text, file)
    loader = LOADER(text)
    try:
        while loader.check_node():
            root = loader.get_node()
            refuse_repeated(root)
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
    try:
        line = too_deep(text)
    except yaml.YAMLError:
        return  # the loader says it better
    if line:
        raise ManifestError(file, line, f"nested more than {MAX_DEPTH} deep; no object is")


def _flatten(document: Any, path: Path = ()) -> Iterator[tuple[Any, Path]]:
    if document is None:
        return
    if isinstance(document, dict) and document.get("kind") == "List" and document.get("apiVersion") == "v1":
        for index, item in enumerate(document.get("items") or ()):
            yield from _flatten(item, (*path, "items", index))
    else:
        yield document, path
