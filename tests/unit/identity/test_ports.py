"""Port names and workloads in rows: what travels, and what is refused."""

from __future__ import annotations

import pytest

from services.client.identity_watch import ip_entry
from services.common.errors import Invalid
from services.common.pb.identity.v1 import identity_pb2 as pb
from services.identity.requests import read_endpoint
from services.model.objects import ContainerPort


def row(**more: object) -> pb.Endpoint:
    return pb.Endpoint(prefix="10.0.0.2/32", identity=300, node="a", namespace="default", pod="web", **more)  # type: ignore[arg-type]


def test_what_is_registered_is_what_others_read() -> None:
    sent = row(ports=[pb.NamedPort(name="http", port=80, protocol=6)], workload_kind="Deployment", workload="my-webapp")
    read = pb.Endpoint.FromString(read_endpoint(sent).value)
    entry = ip_entry(read)
    assert entry.ports == (ContainerPort("http", 80, 6),)
    assert entry.workload == ("Deployment", "my-webapp")
    assert ip_entry(row()).ports == ()
    assert ip_entry(row()).workload == ("", "")


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"ports": [pb.NamedPort(name="", port=80, protocol=6)]}, r"endpoint.ports\[0\].name"),
        ({"ports": [pb.NamedPort(name="x" * 64, port=80, protocol=6)]}, r"endpoint.ports\[0\].name"),
        ({"ports": [pb.NamedPort(name="a\nb", port=80, protocol=6)]}, r"endpoint.ports\[0\].name"),
        ({"ports": [pb.NamedPort(name="a", port=0, protocol=6)]}, r"endpoint.ports\[0\].port"),
        ({"ports": [pb.NamedPort(name="a", port=70000, protocol=6)]}, r"endpoint.ports\[0\].port"),
        ({"ports": [pb.NamedPort(name="a", port=80, protocol=300)]}, r"endpoint.ports\[0\].protocol"),
        ({"ports": [pb.NamedPort(name="a", port=80, protocol=6)] * 65}, "endpoint.ports: 65 of them"),
        ({"workload": "x" * 300}, "endpoint.workload"),
        ({"workload_kind": "a\nb"}, "endpoint.workload_kind"),
    ],
)
def test_what_is_refused(wrong: dict[str, object], problem: str) -> None:
    with pytest.raises(Invalid, match=problem):
        read_endpoint(row(**wrong))
