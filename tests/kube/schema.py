"""Structural schemas as the API server applies them: unknown fields are pruned, the rest is checked."""

from __future__ import annotations

import re
from typing import Any


class Invalid(Exception):
    """A document that a schema refuses; the server answers 422."""


_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


def checked(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """The document without what the schema does not know; raises `Invalid` naming the field."""
    kept = {name: document[name] for name in ("apiVersion", "kind", "metadata") if name in document}
    return _checked(schema, {k: v for k, v in document.items() if k not in kept}, "") | kept


def _checked(schema: dict[str, Any], value: Any, path: str) -> Any:
    if value is None and schema.get("nullable"):
        return None
    if schema.get("x-kubernetes-int-or-string"):
        if not isinstance(value, (int, str)) or isinstance(value, bool):
            raise Invalid(f"{path}: must be a number or a string")
        return value
    wanted = schema.get("type")
    if wanted and (not isinstance(value, _TYPES[wanted]) or (wanted != "boolean" and isinstance(value, bool))):
        raise Invalid(f"{path}: must be of type {wanted}: {type(value).__name__}")
    if "enum" in schema and value not in schema["enum"]:
        raise Invalid(f"{path}: supported values: {schema['enum']}")
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        raise Invalid(f"{path}: should match {schema['pattern']!r}")
    if wanted in ("integer", "number") and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        raise Invalid(f"{path}: out of range")
    if isinstance(value, list):
        if len(value) > schema.get("maxItems", len(value)):
            raise Invalid(f"{path}: too many items")
        return [_checked(schema.get("items", {}), item, f"{path}[{i}]") for i, item in enumerate(value)]
    return _object(schema, value, path) if isinstance(value, dict) else value


def _object(schema: dict[str, Any], value: dict[str, Any], path: str) -> dict[str, Any]:
    for name in schema.get("required", ()):
        if path and name not in value:
            raise Invalid(f"{path}.{name}: Required value")
    known, rest = schema.get("properties", {}), schema.get("additionalProperties")
    kept = {}
    for name, item in value.items():
        if name in known:
            if item is not None or known[name].get("nullable"):
                kept[name] = _checked(known[name], item, f"{path}.{name}")
        elif rest:
            kept[name] = _checked(rest if isinstance(rest, dict) else {}, item, f"{path}.{name}")
        elif schema.get("x-kubernetes-preserve-unknown-fields"):
            kept[name] = item
    return kept
