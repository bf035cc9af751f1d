"""Where a sandbox keeps itself on disk, and whether it is alive: what other shells find it by.

Everything lies under `/run/ciliate/sandbox/<name>/`; `sandbox.json` there is the public part, read by the command
line. A sandbox is alive when the process that wrote the file still is: same number, same start time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from services.common.errors import Invalid, NotFound

RUN_ROOT = Path("/run/ciliate/sandbox")
BPFFS_ROOT = Path("/sys/fs/bpf/ciliate")
NETNS_ROOT = Path("/run/netns")
DEFAULT_NAME = "default"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,22}[a-z0-9])?")


def check_name(name: str) -> str:
    """`name`, or `Invalid`: it becomes part of paths and namespace names."""
    if not _NAME.fullmatch(name):
        raise Invalid(f"sandbox name {name!r}: use 1 to 24 lower-case letters, digits and '-'")
    return name


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which the process started; None where there is no such process (or a dead one)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything, ')' and spaces included.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


@dataclass(frozen=True, slots=True)
class Paths:
    """Every path of one sandbox."""

    name: str

    @property
    def root(self) -> Path:
        return RUN_ROOT / self.name

    @property
    def state(self) -> Path:
        return self.root / "sandbox.json"

    @property
    def control(self) -> Path:
        return self.root / "control.sock"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def objects(self) -> Path:
        return self.root / "objects"

    @property
    def flows(self) -> Path:
        return self.root / "flows"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def prometheus(self) -> Path:
        return self.root / "prometheus.yml"

    @property
    def ledger(self) -> Path:
        return self.root / "processes"

    @property
    def cgroup(self) -> Path:
        """Names the sandbox's cgroup."""
        return self.root / "cgroup"

    @property
    def dns_hosts(self) -> Path:
        return self.root / "dns.hosts"

    @property
    def bpffs(self) -> Path:
        return BPFFS_ROOT / self.name

    @property
    def netns_prefix(self) -> str:
        """A dot cannot be part of a sandbox's name: "a" never takes the namespaces of "a-b" for its own."""
        return f"clt-{self.name}."

    def node(self, node: str) -> Path:
        return self.root / "nodes" / node

    def pod(self, namespace: str, name: str) -> Path:
        return self.root / "pods" / f"{namespace}.{name}"


@dataclass(frozen=True, slots=True)
class NodeState:
    """How to reach one node."""

    name: str
    netns: str
    agent_socket: str
    hubble_socket: str
    bpffs: str


@dataclass(frozen=True, slots=True)
class SandboxState:
    """The content of `sandbox.json`. Targets are gRPC ones; paths are of PEM files for a client."""

    name: str
    pid: int
    pid_start: int
    control: str
    identity: str = ""
    relay: str = ""
    relay_tcp: str = ""
    web: str = ""
    """host:port of the relay's page."""
    history: str = ""
    prometheus: str = ""
    """Path of a configuration with which a Prometheus scrapes every process."""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    nodes: tuple[NodeState, ...] = field(default=())

    @property
    def alive(self) -> bool:
        return start_time(self.pid) == self.pid_start

    def save(self, path: Path) -> None:
        """Write atomically: a reader sees the old file or the new one."""
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        os.chmod(temporary, 0o600)
        temporary.replace(path)


def load(name: str) -> SandboxState:
    """The state of the sandbox `name`, alive or not; `NotFound` where there is none."""
    path = Paths(check_name(name)).state
    try:
        raw = dict(json.loads(path.read_text(encoding="utf-8")))
        nodes = tuple(NodeState(**node) for node in raw.pop("nodes", ()))
        return SandboxState(**raw, nodes=nodes)
    except FileNotFoundError as error:
        raise NotFound(f"no sandbox {name!r} here; start one with: ciliate sandbox up --name {name}") from error
    except (ValueError, TypeError) as error:
        raise Invalid(f"{path}: not readable: {error}; remove {path.parent} and start again") from error


def names() -> Iterator[str]:
    """Names of all sandboxes that have left a directory, alive or not."""
    if RUN_ROOT.is_dir():
        yield from sorted(path.name for path in RUN_ROOT.iterdir() if _NAME.fullmatch(path.name))
