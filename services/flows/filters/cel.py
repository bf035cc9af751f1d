"""`experimental.cel_expression`: expressions of the Common Expression Language on the flow as clients see it.

The variable is `_flow`, the container `flow`, so `_flow.verdict == Verdict.DROPPED`; `_flow.extensions` holds the
record's `FlowDetails`. Types are checked when the filter is built. An evaluation has a budget of iterations (10,000,
the library's), and regular expressions are RE2's: no expression takes for ever. The library is loaded at the first use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from google.protobuf import descriptor_pool

import services
from services.common.log import get_logger
from services.common.pb.flow import flow_pb2
from services.flows.columns import STORED, Array, Columns
from services.flows.dictionary import Dictionaries
from services.flows.filters.base import Condition, FilterError, Rows
from services.flows.render import Renderer

FIELD = "experimental.cel_expression"
MAX_EXPRESSION = 4096
MAX_EXPRESSIONS = 16

log = get_logger("filters")


def build(given: flow_pb2.FlowFilter) -> list[Condition]:
    """Conditions for the fields that are set; raises `FilterError` with the place in the expression."""
    texts = list(given.experimental.cel_expression)
    return [_Expressions(_all_compiled(texts))] if texts else []


def holds(texts: Sequence[str]) -> Callable[[flow_pb2.Flow], bool]:
    """The same on one message; raises `FilterError`."""
    return _Expressions(_all_compiled(texts)).holds


def _all_compiled(texts: Sequence[str]) -> list[Any]:
    if len(texts) > MAX_EXPRESSIONS:
        raise FilterError(f"{FIELD}: {len(texts)} expressions, at most {MAX_EXPRESSIONS}; join them with ||")
    return [_compiled(text) for text in texts]


def _compiled(text: str) -> Any:
    if len(text) > MAX_EXPRESSION:
        raise FilterError(f"{FIELD}: the expression is longer than {MAX_EXPRESSION} characters")
    try:
        expression = _environment().compile(text)
    except RuntimeError as error:
        reason = str(error).removeprefix("INVALID_ARGUMENT: ").removesuffix(" [INVALID_ARGUMENT]")
        raise FilterError(f"{FIELD}: {text!r} does not compile: {reason}") from error
    kind = expression.return_type().name()
    if kind != "BOOL":
        raise FilterError(f"{FIELD}: {text!r} gives {kind}, not a bool; compare it with something")
    return expression


@cache
def _environment() -> Any:
    """Loading takes 6 MB and is for those alone who ask."""
    try:
        from cel_expr_python import cel
    except ImportError as error:
        raise FilterError(f"{FIELD}: needs the Python package cel-expr-python, which is not installed") from error
    variables = {"_flow": cel.Type(flow_pb2.Flow.DESCRIPTOR.full_name)}
    return cel.NewEnv(descriptor_pool.Default(), variables=variables, container="flow")


class _Expressions:
    """True where any expression is. One that fails on a flow makes the whole condition false for it, as Hubble's."""

    def __init__(self, expressions: Sequence[Any]) -> None:
        self._expressions = expressions
        self._renderers: dict[int, Renderer] = {}
        self._told: set[str] = set()

    def __call__(self, rows: Rows) -> Array:
        columns: Columns = {name: rows[name] for name in STORED}
        facets = np.full(len(rows), rows.facet, np.uint8)
        responses = self._renderer(rows.dictionaries).responses(columns, facets)
        return np.array([self.holds(each.flow) for each in responses], np.bool_)

    def _renderer(self, dictionaries: Dictionaries) -> Renderer:
        known = self._renderers.get(id(dictionaries))
        if known is None:
            known = self._renderers[id(dictionaries)] = Renderer(dictionaries, services.__version__, details=True)
        return known

    def holds(self, flow: flow_pb2.Flow) -> bool:
        """Is any of them true of a flow?"""
        for expression in self._expressions:
            try:
                result = expression.eval(data={"_flow": flow}).value()
            except RuntimeError as error:
                result = error
            if not isinstance(result, bool):
                self._tell(str(result))
                return False
            if result:
                return True
        return False

    def _tell(self, error: str) -> None:
        if error not in self._told and len(self._told) < MAX_EXPRESSIONS:
            self._told.add(error)
            log.warning("expression failed on a flow", error=error)
