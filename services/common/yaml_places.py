"""Where things stand in YAML texts, and texts that are nested deeper than anything that people write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_DEPTH = 100
"""Of lists and mappings in one another. The loader calls itself for each: a file of brackets would end the process."""


def too_deep(text: str) -> int:
    """The line (from 1) where a text is nested too deep, 0 for none: the parser's events come one by one, however deep.

    Raises yaml.YAMLError.
    """
    depth = 0
    for event in yaml.parse(text, LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                return int(event.start_mark.line) + 1 if event.start_mark else 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return 0


def refuse_repeated(root: yaml.Node | None) -> None:
    """Raises yaml.MarkedYAMLError where a mapping has a key twice: the loader keeps the last, and a policy would lose
    the rules under the first without a word (YAML 1.2.2, 3.2.1.3: keys are unique)."""
    seen: set[int] = set()
    left = [root] if root is not None else []
    while left:
        node = left.pop()
        if id(node) in seen:
            continue  # an alias
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            left += node.value
        elif isinstance(node, yaml.MappingNode):
            names: set[tuple[str, str]] = set()
            for key, value in node.value:
                left.append(value)
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if (key.tag, key.value) in names:
                    problem = f"the key {key.value!r} stands here twice; keep one"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                names.add((key.tag, key.value))


def line_of(root: yaml.Node, path: Sequence[str | int]) -> int:
    """The line (from 1) of the field that a path leads to, or of its nearest parent that is written down."""
    node, line = root, root.start_mark.line
    for part in path[:MAX_DEPTH]:
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
    return int(line) + 1
