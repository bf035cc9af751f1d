"""The node's side of the Hubble API beside the flows: agent events and peers, on the driver's updates."""

from __future__ import annotations

import time
from collections.abc import Mapping

import grpc.aio

from services.agent.calc.engine import Engine
from services.agent.config import Config
from services.agent.datapath.sink import DatapathSink
from services.agent.driver import Driver
from services.agent.happenings import Happenings
from services.agent.server.peers import SERVICE_NAME as PEER_NAME
from services.agent.server.peers import Peers
from services.agent.server.state import process_age
from services.common.pb.observer import observer_pb2_grpc
from services.common.pb.peer import peer_pb2_grpc
from services.flows.agent_events import AgentEvents
from services.flows.entries import NodeRef
from services.flows.observer import SERVICE_NAME as OBSERVER_NAME
from services.flows.observer import Observer
from services.model.objects import Update

SERVICE_NAMES = [OBSERVER_NAME, PEER_NAME]


class HubbleApi:
    """`observe` and `applied` are the driver's to call; `register` puts the services on a server."""

    def __init__(self, config: Config, engine: Engine, driver: Driver, sink: DatapathSink) -> None:
        self.events = AgentEvents(NodeRef(config.node_name, config.cluster_name).absolute)
        port = int(config.hubble_address.rpartition(":")[2] or 0) if config.hubble_address else 0
        self._peers = Peers(config.cluster_name, port, tls=not config.insecure)
        self._happenings = Happenings(self.events, engine, driver.realised, lambda: _refusals(sink))
        self._happenings.started(time.time_ns() - int(process_age() * 1e9))

    def observe(self, update: Update) -> None:
        """See `Driver.observers`."""
        self._happenings.observe(update)
        self._peers.observe(update)

    def applied(self) -> None:
        """See `Driver.on_applied`."""
        self._happenings.applied()

    def register(self, server: grpc.aio.Server, observer: Observer) -> None:
        """Observer and Peer."""
        observer_pb2_grpc.add_ObserverServicer_to_server(observer, server)  # type: ignore[no-untyped-call]
        peer_pb2_grpc.add_PeerServicer_to_server(self._peers, server)  # type: ignore[no-untyped-call]


def _refusals(sink: DatapathSink) -> Mapping[str, str]:
    return {name: str(each.last_error) for name, each in sink.reconcilers.items() if each.pending}
