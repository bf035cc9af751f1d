"""Annotations that ask for visibility become entries of their pods' endpoints, and go with them."""

from __future__ import annotations

import dataclasses

from services.agent.abi.endpoints import EndpointFlags, EndpointInfo
from services.agent.abi.http import HttpVisibleKey
from services.agent.abi.layout import be16
from services.agent.calc.engine import Engine
from services.model.objects import Deleted, EndpointDeleted, Pod, Upserted
from services.model.verdict import Direction
from services.model.visibility import OWN_FORM
from tests.unit.agent.calc.kernel import Kernel
from tests.unit.agent.calc.states import GUARDED, State, difference


def told(engine: Engine, kernel: Kernel, *updates: object) -> tuple[set[tuple[int, int, int]], set[int]]:
    """(ports that are told, endpoints that have any), after updates."""
    for update in updates:
        engine.apply(update)  # type: ignore[arg-type]
    kernel.apply(engine.flush())
    keys = [HttpVisibleKey.unpack(key) for key in kernel.maps["http_visible_pods"]]
    infos = [EndpointInfo.unpack(value) for value in kernel.maps["endpoints"].values()]
    flagged = {int(info.id) for info in infos if info.flags & EndpointFlags.VISIBLE}
    return {(int(k.endpoint), int(k.direction), be16(int(k.port))) for k in keys}, flagged


def test_from_annotations_to_entries() -> None:
    engine, kernel = Engine("node1", sources=()), Kernel()
    updates = difference(State(), GUARDED)
    assert told(engine, kernel, *updates) == (set(), set())
    pod = Pod("default", "pod1", annotations={OWN_FORM: "80,egress/8080,nonsense"})
    told_ports = {(1, int(Direction.INGRESS), 80), (1, int(Direction.EGRESS), 8080)}
    assert told(engine, kernel, Upserted(pod)) == (told_ports, {1})
    (problem,) = engine.visibility.errors
    assert problem.startswith("pod default/pod1: metadata.annotations")
    other = dataclasses.replace(pod, annotations={OWN_FORM: "81"})
    assert told(engine, kernel, Upserted(other)) == ({(1, int(Direction.INGRESS), 81)}, {1})
    assert told(engine, kernel, Deleted(pod.key)) == (set(), set())
    assert told(engine, kernel, Upserted(pod)) == (told_ports, {1})
    assert told(engine, kernel, EndpointDeleted(1))[0] == set()
    assert engine.visibility.errors == ()
