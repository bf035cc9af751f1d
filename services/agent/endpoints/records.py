"""Endpoint records on disk: one small JSON file per endpoint, replaced atomically, read back after a restart."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from services.common.log import get_logger
from services.model.identity import NumericIdentity
from services.model.labels import Labels
from services.model.objects import ContainerPort, LocalEndpoint

FORMAT = 1


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """An endpoint and what the agent must remember about it. `labels` are the identity's."""

    endpoint: LocalEndpoint
    labels: Labels

    @property
    def attachment(self) -> tuple[str, str]:
        """(container id, interface in the container): what the runtime knows it by."""
        return self.endpoint.container_id, self.endpoint.peer_ifname

    def with_identity(self, identity: NumericIdentity, labels: Labels) -> EndpointRecord:
        """The same endpoint under another identity."""
        return replace(self, endpoint=replace(self.endpoint, identity=identity), labels=labels)

    def with_ports(self, ports: tuple[ContainerPort, ...]) -> EndpointRecord:
        """The same endpoint with other declared ports."""
        return replace(self, endpoint=replace(self.endpoint, ports=ports))


class RecordStore:
    """A folder of records. A file that cannot be read is reported and put aside, not deleted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = get_logger("endpoint.records")

    def load(self) -> Iterator[EndpointRecord]:
        """Every readable record."""
        if not self._folder.is_dir():
            return
        for path in sorted(self._folder.glob("*.json")):
            try:
                yield _decode(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, KeyError, TypeError) as error:
                self._log.error("endpoint record unreadable", file=str(path), problem=str(error))
                path.replace(path.with_suffix(".broken"))

    def save(self, record: EndpointRecord) -> None:
        """Write a record. The rename is atomic: after a kill there is the old one or the new one."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path(record.endpoint.id)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(_encode(record)), encoding="utf-8")
        fresh.replace(path)

    def delete(self, endpoint_id: int) -> None:
        """Forget a record; absent = success."""
        self._path(endpoint_id).unlink(missing_ok=True)

    def _path(self, endpoint_id: int) -> Path:
        return self._folder / f"{endpoint_id}.json"


def _encode(record: EndpointRecord) -> dict[str, Any]:
    endpoint = record.endpoint
    return {
        "format": FORMAT,
        "id": endpoint.id,
        "namespace": endpoint.namespace,
        "pod": endpoint.pod,
        "container_id": endpoint.container_id,
        "ifindex": endpoint.ifindex,
        "ifname": endpoint.ifname,
        "mac": endpoint.mac.hex(":"),
        "node_mac": endpoint.node_mac.hex(":"),
        "addresses": [str(address) for address in endpoint.addresses],
        "identity": endpoint.identity,
        "ports": [[port.name, port.port, port.protocol] for port in endpoint.ports],
        "netns": endpoint.netns,
        "peer_ifname": endpoint.peer_ifname,
        "workload": list(endpoint.workload),
        "labels": record.labels.texts(),
    }


def _decode(raw: dict[str, Any]) -> EndpointRecord:
    if raw["format"] != FORMAT:
        raise ValueError(f"format {raw['format']} is not {FORMAT}")
    endpoint = LocalEndpoint(
        id=int(raw["id"]),
        namespace=raw["namespace"],
        pod=raw["pod"],
        container_id=raw["container_id"],
        ifindex=int(raw["ifindex"]),
        ifname=raw["ifname"],
        mac=bytes.fromhex(raw["mac"].replace(":", "")),
        node_mac=bytes.fromhex(raw["node_mac"].replace(":", "")),
        addresses=tuple(ipaddress.ip_address(text) for text in raw["addresses"]),
        identity=NumericIdentity(int(raw["identity"])),
        ports=tuple(ContainerPort(name, port, protocol) for name, port, protocol in raw["ports"]),
        netns=raw["netns"],
        peer_ifname=raw["peer_ifname"],
        workload=_pair(raw.get("workload")),
    )
    return EndpointRecord(endpoint, Labels.parse(raw["labels"]))


def _pair(value: Any) -> tuple[str, str]:
    """Records of earlier versions have none."""
    return (str(value[0]), str(value[1])) if value else ("", "")
