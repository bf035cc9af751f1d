"""The pods of this node: what their interfaces are made of, and what keeps it all true."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.agent.abi.endpoints import HOST_ENDPOINT
from services.agent.config import Config
from services.agent.driver import Driver
from services.agent.endpoints.ipam import Ipam
from services.agent.endpoints.leaks import LeakCheck
from services.agent.endpoints.links import Links
from services.agent.endpoints.manager import EndpointManager
from services.agent.endpoints.pods import PodDirectory
from services.agent.endpoints.records import RecordStore
from services.agent.endpoints.references import IdentityReferences
from services.agent.endpoints.registrar import Registrar
from services.agent.endpoints.relabel import Relabeller
from services.agent.endpoints.rows import NodeIdentity
from services.agent.host import rows
from services.agent.kernel import Kernel
from services.agent.sources.base import Mailbox
from services.agent.sources.identities import IdentityClient
from services.model.identity import Identity, Reserved
from services.model.label_filter import LabelFilter
from services.model.objects import IpUpserted


@dataclass(slots=True)
class Endpoints:
    """The parts that the pods' interfaces are made of."""

    manager: EndpointManager
    links: Links
    pods: PodDirectory
    references: IdentityReferences
    registrar: Registrar
    leaks: LeakCheck


async def build_endpoints(
    config: Config, stack: AsyncExitStack, kernel: Kernel, identities: IdentityClient, driver: Driver
) -> Endpoints:
    """From the identity service\'s client and the loaded programs."""
    links = await stack.enter_async_context(Links(config.node_name, kernel.mtu))
    pods = PodDirectory(config.cluster_name, LabelFilter(config.identity_label_patterns))
    references = IdentityReferences(identities)
    registrar = Registrar(identities, config.node_name)
    manager = EndpointManager(
        NodeIdentity(config.node_name, config.addresses[0], HOST_ENDPOINT),
        Ipam(config.pod_ranges),
        RecordStore(Path(config.place("", "endpoints"))),
        links,
        kernel.programs,
        pods,
        references,
        registrar,
        driver.publish,
    )
    leaks = LeakCheck(references, identities, registrar, config.reference_check_seconds)
    return Endpoints(manager, links, pods, references, registrar, leaks)


async def recall(config: Config, mailbox: Mailbox, ends: Endpoints) -> None:
    """What this node knows by itself: its own addresses, and the endpoints of an earlier run."""
    for entry in rows(config.node_name, config.addresses, Reserved.HOST):
        mailbox.put(IpUpserted(entry))
    for update in await ends.manager.restore():
        mailbox.put(update)


def lapse(ends: Endpoints) -> None:
    """The identity service holds nothing of this node any more: make all of it again."""
    ends.references.lapse()
    ends.registrar.lapse()


def endpoint_jobs(ends: Endpoints) -> dict[str, Coroutine[Any, Any, None]]:
    """What follows labels and identities, and registers addresses."""
    changed: asyncio.Queue[Identity] = asyncio.Queue()
    relabeller = Relabeller(ends.manager, ends.pods, ends.references)
    return {
        "endpoints:labels": relabeller.run(),
        "endpoints:renumber": relabeller.renumber(changed),
        "endpoints:references": ends.references.run(changed),
        "endpoints:leaks": ends.leaks.run(),
        "endpoints:registrar": ends.registrar.run(),
    }
