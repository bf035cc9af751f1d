"""Error tree <-> gRPC status codes, as one server interceptor and one client-side translation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from services.common.errors import (
    CiliateError,
    Conflict,
    Denied,
    Exhausted,
    Internal,
    Invalid,
    NotFound,
    Unavailable,
)

_CODES: dict[type[CiliateError], grpc.StatusCode] = {
    Invalid: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Conflict: grpc.StatusCode.ALREADY_EXISTS,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Denied: grpc.StatusCode.PERMISSION_DENIED,
    Internal: grpc.StatusCode.INTERNAL,
}
_ERRORS: dict[grpc.StatusCode, type[CiliateError]] = {code: error for error, code in _CODES.items()} | {
    grpc.StatusCode.FAILED_PRECONDITION: Conflict,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: Denied,
    grpc.StatusCode.OUT_OF_RANGE: Invalid,
    grpc.StatusCode.UNIMPLEMENTED: Invalid,
}


def status_of(error: CiliateError) -> grpc.StatusCode:
    """The gRPC code of an error of the tree."""
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def error_from_rpc(error: grpc.aio.AioRpcError) -> CiliateError:
    """The tree's error for a failed call; its message is the server's."""
    kind = _ERRORS.get(error.code(), Internal)
    return kind(error.details() or error.code().name)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Lets servicers raise `CiliateError`; the caller gets the matching status code and the message."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                _unary(handler.unary_unary), handler.request_deserializer, handler.response_serializer
            )
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(
                _unary(handler.stream_unary), handler.request_deserializer, handler.response_serializer
            )
        if handler.unary_stream and _is_generator(handler.unary_stream):
            return grpc.unary_stream_rpc_method_handler(
                _stream(handler.unary_stream), handler.request_deserializer, handler.response_serializer
            )
        if handler.stream_stream and _is_generator(handler.stream_stream):
            return grpc.stream_stream_rpc_method_handler(
                _stream(handler.stream_stream), handler.request_deserializer, handler.response_serializer
            )
        return handler


def _is_generator(behaviour: Any) -> bool:
    """Servicers that answer as async generators; the health servicer's Watch, for one, writes to its context."""
    import inspect

    return inspect.isasyncgenfunction(behaviour)


def _unary(behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call(request: Any, context: Any) -> Any:
        import inspect

        try:
            answer = behaviour(request, context)
            return await answer if inspect.isawaitable(answer) else answer
        except CiliateError as error:
            await context.abort(status_of(error), str(error))

    return call


def _stream(behaviour: Callable[[Any, Any], AsyncIterator[Any]]) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for item in behaviour(request, context):
                yield item
        except CiliateError as error:
            await context.abort(status_of(error), str(error))

    return call
