"""Services in the words of the introspection API."""

from __future__ import annotations

from services.agent.abi.lb import Scope, ServiceFlags
from services.agent.calc.services import Frontend, ServiceReport
from services.agent.calc.services.frontends import HOST_PORT
from services.agent.server.views import protocol_name, socket_text
from services.common.pb.agent.v1 import agent_pb2 as pb

_SCOPES = {Scope.INTERNAL: "inside", Scope.EXTERNAL: "outside"}
_SHOWN = ~(ServiceFlags.WILDCARD | ServiceFlags.NODE_PORT | ServiceFlags.HOST_PORT)


def service_view(report: ServiceReport) -> pb.Service:
    """A Service with its frontends, everybody behind it and what is wrong."""
    frontends = sorted(
        (f for f in report.frontends if f.port), key=lambda f: (f.kind, str(f.address), f.port, f.protocol, f.scope)
    )
    cluster = dict.fromkeys(str(f.address) for f in frontends if f.kind == "ClusterIP")
    return pb.Service(
        namespace=report.namespace,
        name=report.name,
        type="HostPort" if report.type == HOST_PORT else report.type,
        cluster_ips=list(cluster),
        ports=[_port(frontend) for frontend in frontends],
        endpoints=[
            pb.ServiceEndpoint(
                port_name=name,
                address=socket_text(backend.address, backend.port),
                state=str(backend.state),
                node=backend.node,
            )
            for name, backend in report.endpoints
        ],
        problems=[pb.ServiceProblem(kind=str(problem.kind), text=problem.text) for problem in report.problems],
    )


def _port(frontend: Frontend) -> pb.ServicePort:
    return pb.ServicePort(
        name=frontend.port_name,
        frontend=f"{socket_text(frontend.address, frontend.port)}/{protocol_name(frontend.protocol)}",
        service_id=frontend.id,
        backends=[socket_text(address, port) for address, port in frontend.backends],
        kind=str(frontend.kind),
        scope=_SCOPES[frontend.scope],
        flags=[flag.name.lower() for flag in ServiceFlags if flag & frontend.flags & _SHOWN and flag.name],
    )
