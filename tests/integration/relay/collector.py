"""An OpenTelemetry collector's receiving end, as a process: what comes in by OTLP/gRPC goes out as JSON lines.

`python -m tests.integration.relay.collector ADDRESS [--refuse CODE COUNT]`: the first COUNT calls fail with that code.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
import grpc.aio
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Receiver(
    logs_service_pb2_grpc.LogsServiceServicer,
    metrics_service_pb2_grpc.MetricsServiceServicer,
    trace_service_pb2_grpc.TraceServiceServicer,
):
    """All three services: their one method has the same name."""

    def __init__(self, refuse: str, count: int) -> None:
        self._refuse, self._left = refuse, count

    async def Export(self, request: Any, context: Any) -> Any:
        """Print it."""
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            print(json.dumps(MessageToDict(request), default=str), flush=True)
            return trace_service_pb2.ExportTraceServiceResponse()
        is_logs = isinstance(request, logs_service_pb2.ExportLogsServiceRequest)
        if is_logs and self._left:
            self._left -= 1
            if self._refuse != "PARTLY":
                await context.abort(grpc.StatusCode[self._refuse], "try later")
            rejected = logs_service_pb2.ExportLogsPartialSuccess(rejected_log_records=1, error_message="one is bad")
            return logs_service_pb2.ExportLogsServiceResponse(partial_success=rejected)
        document = MessageToDict(request) | {"metadata": dict(context.invocation_metadata())}
        print(json.dumps(document, default=str), flush=True)
        if is_logs:
            return logs_service_pb2.ExportLogsServiceResponse()
        return metrics_service_pb2.ExportMetricsServiceResponse()


async def main(address: str, refuse: str = "", count: str = "0") -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    receiver = Receiver(refuse, int(count))
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(address)
    await server.start()
    print(json.dumps({"ready": True}), flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *sys.argv[2:]))
