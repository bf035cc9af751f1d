"""Files that the kubelet puts into a pod: its name server, its names, what its program wants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

CLUSTER_DNS = "10.96.0.10"


def write_files(files: Mapping[str, str]) -> None:
    """path -> content."""
    for path, text in files.items():
        Path(path).write_text(text, encoding="utf-8")


def resolv_conf(namespace: str) -> str:
    """What the kubelet gives a pod of the namespace: short Service names are found through the search list."""
    search = f"{namespace}.svc.cluster.local svc.cluster.local cluster.local"
    return f"nameserver {CLUSTER_DNS}\nsearch {search}\noptions ndots:5 timeout:2\n"


def hosts_file(name: str, addresses: list[str]) -> str:
    """The pod's own names."""
    return "127.0.0.1 localhost\n::1 localhost\n" + "".join(f"{address} {name}\n" for address in addresses)
