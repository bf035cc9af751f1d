"""Keeps the exports running that flags and the watched file ask for, and says how they are.

A file that breaks changes nothing: what it asked for last goes on, and the error is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.errors import Invalid
from services.common.log import get_logger
from services.flows.entries import NodeRef
from services.flows.export import spec as specs
from services.flows.export.exporter import Exporter, Figures
from services.flows.export.options import ExportOptions
from services.flows.export.spec import ExportSpec
from services.flows.store import FlowStore

LOOK_SECONDS = 2.0

log = get_logger("export")


class Keeper(Collector):
    """`run` until cancelled. `errors`: where -> what is wrong; empty = nothing."""

    def __init__(self, options: ExportOptions, store: FlowStore, server: NodeRef, registry: CollectorRegistry) -> None:
        """Opens the files; raises `Invalid` for what the options or the watched file ask for and cannot be."""
        self._store, self._server = store, server
        self._static = specs.from_options(options)
        self._watched = Path(options.export_dynamic_config) if options.export_dynamic_config else None
        self._stamp: tuple[int, ...] = ()
        self._running: dict[str, tuple[Exporter, asyncio.Task[None] | None]] = {}
        self._past: dict[str, Figures] = {}
        self._trouble: dict[str, str] = {}
        wanted = [*self._static, *(self._look() or ())]
        for each in wanted:
            self._running[each.name] = (Exporter(each, store, server), None)
        registry.register(self)

    @property
    def errors(self) -> Mapping[str, str]:
        """Of the watched file and of files that cannot be written."""
        files = {name: exporter.figures.error for name, (exporter, _) in self._running.items()}
        return self._trouble | {f"export {name}": error for name, error in files.items() if error}

    def _look(self) -> list[ExportSpec] | None:
        """What the watched file asks for; None = nothing new. Raises `Invalid`."""
        if self._watched is None:
            return None
        try:
            status = self._watched.stat()
            stamp: tuple[int, ...] = (status.st_mtime_ns, status.st_ino, status.st_size)
        except OSError as error:
            stamp = (error.errno or 0,)
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        return specs.from_file(self._watched)

    async def run(self) -> None:
        """Start, watch, restart what changed."""
        async with asyncio.TaskGroup() as tasks:
            for name, (exporter, _) in list(self._running.items()):
                self._running[name] = (exporter, tasks.create_task(exporter.run(), name=f"export:{name}"))
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                try:
                    wanted = self._look()
                    if wanted is not None:
                        await self._settle([*self._static, *wanted], tasks)
                except Invalid as error:
                    log.warning("export configuration refused; the last one stays", error=str(error))
                    self._trouble = {"export_dynamic_config": str(error)}

    async def _settle(self, wanted: list[ExportSpec], tasks: asyncio.TaskGroup) -> None:
        """Stop what is not wanted any more, start what is new. A new one that cannot be opened stops nothing else."""
        trouble: dict[str, str] = {}
        for name, (exporter, task) in list(self._running.items()):
            if exporter.spec not in wanted:
                del self._running[name]
                self._past[name] = _sum(self._past.get(name), exporter.figures)
                if task is not None:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
        for each in wanted:
            if each.name in self._running:
                continue
            try:
                exporter = Exporter(each, self._store, self._server)
            except Invalid as error:
                trouble[f"export {each.name}"] = str(error)
                continue
            self._running[each.name] = (exporter, tasks.create_task(exporter.run(), name=f"export:{each.name}"))
        self._trouble = trouble
        log.info("exports", names=sorted(self._running), refused=sorted(trouble))

    def collect(self) -> Iterator[Metric]:
        """Counters per export."""
        written = CounterMetricFamily("ciliate_export_events", "Events written to a file", labels=["export"])
        lost = CounterMetricFamily(
            "ciliate_export_events_lost", "Events that are not in the file", labels=["export", "reason"]
        )
        names = self._past.keys() | self._running.keys()
        for name in sorted(names):
            running = self._running.get(name)
            figures = _sum(self._past.get(name), running[0].figures if running else None)
            written.add_metric([name], figures.written)
            lost.add_metric([name, "refused"], figures.refused)
            lost.add_metric([name, "missed"], figures.missed)
        yield from (written, lost)


def _sum(first: Figures | None, second: Figures | None) -> Figures:
    parts = [each for each in (first, second) if each is not None]
    return Figures(
        sum(each.written for each in parts),
        sum(each.refused for each in parts),
        sum(each.missed for each in parts),
        sum(each.failures for each in parts),
    )
