"""`ciliate sandbox`: a cluster on this machine, driven from separate shells."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.output import Column, Output, OutputOption, as_json, as_yaml, render, say
from services.common.errors import CiliateError, Invalid, NotFound, Unavailable
from services.sandbox import cgroups, state, sweep
from services.sandbox.client import SandboxClient


class RoutingMode(StrEnum):
    """How pods' packets travel between nodes."""

    TUNNEL = "tunnel"
    NATIVE = "native"


app = typer.Typer(help="A cluster on this machine: nodes and pods are network namespaces.", no_args_is_help=True)
DOWN_SECONDS = 30.0

NameOption = Annotated[str, typer.Option("--name", envvar="CILIATE_SANDBOX", help="which sandbox")]
FileOption = Annotated[list[Path], typer.Option("--file", "-f", help="manifest file or folder; - reads standard input")]


def _need_root() -> None:
    if os.geteuid() != 0:
        raise Invalid(
            "the sandbox needs root: it makes network namespaces and loads eBPF programs; try: sudo ciliate ..."
        )


@app.command()
def up(
    name: NameOption = state.DEFAULT_NAME,
    nodes: Annotated[int, typer.Option(help="how many nodes", min=1, max=100)] = 2,
    routing_mode: Annotated[
        RoutingMode, typer.Option(help="pods' packets between nodes: encapsulated, or routed as they are")
    ] = RoutingMode.TUNNEL,
) -> None:
    """Start a sandbox and leave it running."""
    _need_root()
    state.check_name(name)
    started = time.monotonic()
    # Not in a `with`: it stays when this command ends.
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "services.sandbox", name, "--nodes", str(nodes), "--routing-mode", routing_mode],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=_open_log(name),
        start_new_session=True,
    )
    _follow_start(supervisor)
    say(usage(name, time.monotonic() - started))


def _follow_start(supervisor: subprocess.Popen[bytes]) -> None:
    """Show steps until the sandbox is ready; raises `Unavailable` with the reason where it does not become so."""
    assert supervisor.stdout is not None
    try:
        for line in supervisor.stdout:
            told = json.loads(line)
            if "step" in told:
                print(f"  {told['step']}", file=sys.stderr)
            elif "error" in told:
                supervisor.wait()
                raise Unavailable(told["error"])
            elif told.get("ready"):
                return
    except KeyboardInterrupt:
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait()
        raise
    raise Unavailable(f"the sandbox ended with status {supervisor.wait()} before it was ready; see {LOG_FOLDER}")


LOG_FOLDER = Path("/run/ciliate/log")


def log_file(name: str) -> Path:
    """What the supervisor of a sandbox had to say; outlives one that failed."""
    return LOG_FOLDER / f"sandbox-{name}.log"


def _open_log(name: str) -> Any:
    LOG_FOLDER.mkdir(parents=True, exist_ok=True, mode=0o700)
    return log_file(name).open("ab")


def usage(name: str, seconds: float) -> str:
    """What to do with a sandbox that has just come up."""
    flag = "" if name == state.DEFAULT_NAME else f" --name {name}"
    which = "" if name == state.DEFAULT_NAME else f" --sandbox {name}"
    lines = [
        (f"sandbox apply{flag} -f deploy/examples/my-webapp", "run the example, wait for its pods"),
        (f"sandbox exec{flag} frontend -- curl -si http://my-webapp-svc/api/v1/users", "allowed"),
        (f"sandbox exec{flag} frontend -- curl -si http://my-webapp-svc/", "403 from the kernel"),
        (f"sandbox exec{flag} visitor -- curl -sm 2 http://my-webapp-svc/", "no connection"),
        (f"{which} observe --last 20".strip(), "who talked to whom, and which policy decided"),
        (f"{which} status".strip(), "agents, identity service, relay"),
        (f"sandbox status{flag}", "processes, pods, objects"),
        (f"sandbox down{flag}", "end it; nothing stays behind"),
    ]
    width = max(len(command) for command, _ in lines)
    steps = "\n".join(f"  {_program()} {command:<{width}}  # {what}" for command, what in lines)
    page = f"The service map: http://{state.load(name).web}/"
    return f"sandbox {name!r} is up after {seconds:.1f} s. {page}\nFrom any shell:\n\n{steps}"


def _program() -> str:
    """How this very command is reached: by its name where that finds it, else by path."""
    found = shutil.which("ciliate")
    beside = Path(sys.executable).with_name("ciliate")
    if found and Path(found).resolve() == beside.resolve():
        return "ciliate"
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)


@app.command()
def down(name: NameOption = state.DEFAULT_NAME) -> None:
    """End a sandbox and remove everything of it; also what a killed one left behind."""
    _need_root()
    found = state.load(name)
    if not found.alive:
        asyncio.run(sweep.remove(name))
        log_file(name).unlink(missing_ok=True)
        say(f"sandbox {name!r} was dead; what it left is removed")
        return
    SandboxClient(name).call("down")
    deadline = time.monotonic() + DOWN_SECONDS
    while state.start_time(found.pid) == found.pid_start:
        if time.monotonic() > deadline:
            raise Unavailable(f"sandbox {name!r} (process {found.pid}) did not end in {DOWN_SECONDS:g} s")
        time.sleep(0.02)
    log_file(name).unlink(missing_ok=True)
    say(f"sandbox {name!r} is down")


def read_manifests(files: list[Path]) -> Iterator[tuple[str, str]]:
    """(origin, text) of every manifest in files and folders; raises `Invalid` where there is none."""
    for path in files:
        if str(path) == "-":
            yield "standard input", sys.stdin.read()
            continue
        found = sorted(each for each in path.rglob("*") if each.suffix in {".yaml", ".yml", ".json"})
        if path.is_dir() and not found:
            raise Invalid(f"--file: {path} holds no *.yaml, *.yml or *.json")
        for each in found if path.is_dir() else [path]:
            try:
                yield str(each), each.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise Invalid(f"--file: cannot read {each}: {error}") from error


NamespaceOption = Annotated[str, typer.Option("--namespace", "-n", help="for objects that name none")]


@app.command()
def apply(
    file: FileOption,
    name: NameOption = state.DEFAULT_NAME,
    namespace: NamespaceOption = "default",
    wait: Annotated[float, typer.Option(help="seconds to wait for pods to be ready; 0 = do not")] = 60.0,
) -> None:
    """Create or change objects from manifests, and wait for the pods."""
    _need_root()
    client = SandboxClient(name)
    sources = [{"origin": origin, "text": text} for origin, text in read_manifests(file)]
    _tell(client.call("apply", sources=sources, namespace=namespace))
    if wait > 0:
        client.call("wait", wait + 10.0, seconds=wait)


@app.command()
def delete(
    objects: Annotated[list[str] | None, typer.Argument(help="kind/name, e.g. cnp/deny-all-ingress-to-webapp")] = None,
    file: Annotated[list[Path] | None, typer.Option("--file", "-f", help="objects of these manifests")] = None,
    name: NameOption = state.DEFAULT_NAME,
    namespace: NamespaceOption = "default",
) -> None:
    """Remove objects, by manifest or by kind/name."""
    _need_root()
    if not objects and not file:
        raise Invalid("say what to delete: -f FILE, or kind/name")
    client = SandboxClient(name)
    pairs = [text.partition("/") for text in objects or []]
    if wrong := [kind for kind, slash, _ in pairs if not slash]:
        raise Invalid(f"{wrong[0]!r}: write it as kind/name")
    sources = [{"origin": origin, "text": text} for origin, text in read_manifests(file or [])]
    keys = [[kind, namespace, rest] for kind, _, rest in pairs]
    _tell(client.call("delete", sources=sources, keys=keys, namespace=namespace))


def _tell(answer: dict[str, Any]) -> None:
    for message in answer["messages"]:
        say(message)


@app.command("exec", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def execute(
    context: typer.Context,
    pod: Annotated[str, typer.Argument(help="pod, its Deployment, or namespace/pod")],
    name: NameOption = state.DEFAULT_NAME,
    namespace: NamespaceOption = "default",
) -> None:
    """Run a command in a pod: ciliate sandbox exec frontend -- curl -si http://my-webapp-svc/"""
    _need_root()
    command = context.args[1:] if context.args[:1] == ["--"] else context.args
    found = find_pod(SandboxClient(name).call("status")["pods"], pod, namespace)
    if not found["pid"]:
        raise Unavailable(f"pod {found['name']} does not run: {found['message'] or 'not ready'}")
    # The pod's namespaces, and this very process in them: terminal, signals and exit status are the program's own.
    arguments = ["nsenter", "-t", str(found["pid"]), "--mount", "--uts", "--net", "--pid", "--", *(command or ["bash"])]
    cgroups.join_process(found["pid"])
    sys.stdout.flush()
    os.execvp(arguments[0], arguments)


def find_pod(pods: list[dict[str, Any]], text: str, namespace: str = "default") -> dict[str, Any]:
    """The pod of that name, or the first one of the Deployment of that name; `NotFound` lists what there is."""
    head, slash, tail = text.rpartition("/")
    namespace, wanted = (head, tail) if slash else (namespace, text)
    here = [pod for pod in pods if pod["namespace"] == namespace]
    for field in ("name", "owner"):
        for pod in here:
            if pod[field] == wanted:
                return pod
    known = ", ".join(pod["name"] for pod in here) or "none"
    raise NotFound(f"no pod or Deployment {wanted!r} in namespace {namespace!r}; pods there: {known}")


PROCESS_COLUMNS: tuple[Column, ...] = (("process", "name"), ("pid", "pid"), ("restarts", "restarts"), ("log", "log"))
POD_COLUMNS: tuple[Column, ...] = (
    ("namespace", "namespace"),
    ("pod", "name"),
    ("node", "node"),
    ("ready", "ready"),
    ("restarts", "restarts"),
    ("addresses", "addresses"),
    ("message", "message"),
)
OBJECT_COLUMNS: tuple[Column, ...] = (("kind", "kind"), ("namespace", "namespace"), ("name", "name"), ("", "detail"))


@app.command("status")
def show_status(name: NameOption = state.DEFAULT_NAME, output: OutputOption = Output.TABLE) -> None:
    """Show a sandbox's processes, pods and objects."""
    _need_root()
    found = SandboxClient(name).call("status")
    if output is not Output.TABLE:
        say(as_json(found) if output is Output.JSON else as_yaml(found))
        return
    say(render(found["nodes"], PROCESS_COLUMNS, output) + "\n")
    say(render(found["pods"], POD_COLUMNS, output, "no pods") + "\n")
    say(render(found["objects"], OBJECT_COLUMNS, output, "no objects"))


@app.command("list")
def show_list(output: OutputOption = Output.TABLE) -> None:
    """List the sandboxes of this machine."""
    found = []
    for name in state.names():
        try:
            each = state.load(name)
        except CiliateError as error:
            found.append({"name": name, "state": str(error), "pid": 0, "relay": "", "page": ""})
            continue
        found.append(
            {
                "name": name,
                "state": "up" if each.alive else "dead",
                "pid": each.pid,
                "relay": each.relay_tcp,
                "page": each.web,
            }
        )
    columns: tuple[Column, ...] = tuple((title, title) for title in ("name", "state", "pid", "relay", "page"))
    say(render(found, columns, output, "no sandboxes"))
