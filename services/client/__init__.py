"""Typed asyncio clients of every server: identity service, relay (and a node's Observer), agent.

    from services.client import Flows, Target, TlsFiles

    async with Flows(Target("relay.example:4245", TlsFiles("ca.pem", "client.pem", "client.key"))) as relay:
        async for item in relay.follow():
            ...

Runnable examples: `python -m services.client.examples.follow_flows --help`, and its neighbours.
"""

from services.client.agent import Agent, MapRow
from services.client.connection import Connection, Target
from services.client.flows import Flows, FlowSeen, FlowsLost, Interrupted, NodesChanged
from services.client.identities import Identities, Referenced
from services.client.identity_watch import IdentityWatch, InSync
from services.common.tls import TlsFiles

__all__ = [
    "Agent",
    "Connection",
    "FlowSeen",
    "Flows",
    "FlowsLost",
    "Identities",
    "IdentityWatch",
    "InSync",
    "Interrupted",
    "MapRow",
    "NodesChanged",
    "Referenced",
    "Target",
    "TlsFiles",
]
