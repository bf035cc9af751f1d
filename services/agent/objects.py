"""Where the agent's objects come from: a folder of manifests, or the Kubernetes API; and what goes back there."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.agent.calc.engine import Engine
from services.agent.config import Config
from services.agent.endpoints.ipam import Ipam
from services.agent.sources.base import Source
from services.agent.sources.folder import FolderSource
from services.agent.sources.kubernetes_status import StatusWriter

if TYPE_CHECKING:
    from services.agent.sources.node_ranges import NodeRanges, Ranges


@dataclass(slots=True)
class Objects:
    """The sources, what writes policies' statuses back where there is somewhere to, and who tells pod ranges."""

    sources: Sequence[Source]
    write_status: Callable[[Engine], StatusWriter | None] = lambda engine: None
    ranges: NodeRanges | None = None

    def jobs(self, config: Config, ipam: Ipam) -> dict[str, Coroutine[Any, Any, None]]:
        """What keeps the ranges up to date."""
        return {"node:ranges": _follow(self.ranges, config, ipam)} if self.ranges else {}


async def build(config: Config, stack: AsyncExitStack) -> tuple[Objects, Config]:
    """Wire it for the configured source; the configuration comes back with this node's pod ranges in it.

    Waits for them where the API tells them.
    """
    if config.source == "folder":
        return Objects([FolderSource(Path(config.objects_dir), Path(config.place("", "kept-manifests")))]), config
    # An HTTP client is 21 MB that a node without an API server need not carry.
    from services.agent.sources.kubernetes import KubernetesSource, resources_for
    from services.agent.sources.node_ranges import NodeRanges
    from services.common.kube.client import KubeClient

    client = await stack.enter_async_context(KubeClient(config.kubeconfig))
    sources = [KubernetesSource(client, resource) for resource in resources_for(config.node_name)]
    ranges = None
    if config.ipam != "static":
        kept = Path(config.place("", "pod-ranges.json"))
        ranges = NodeRanges(client, config.node_name, config.ipam, config.default_pool, kept)
        found = await ranges.first()
        config = config.model_copy(update={"pod_cidrs": [str(each) for each in found[""]]})
    return Objects(sources, lambda engine: StatusWriter(client, sources, engine.policy_verdicts), ranges), config


async def _follow(source: NodeRanges, config: Config, ipam: Ipam) -> None:
    def apply(ranges: Ranges) -> None:
        own = [*config.static_ranges, *ranges.get("", ())]
        ipam.set({**{name: found for name, found in ranges.items() if name}, "": own})

    apply(source.current)
    async for ranges in source.changes():
        apply(ranges)
