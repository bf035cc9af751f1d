"""`ciliate config`: what agents were told, where each value came from, and changing it where it is kept.

A change is checked by the agent's own program before it is written: the node's file, or the ConfigMap of a cluster.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from services.cli.inspection import NodeOption, gather
from services.cli.kube import Kubernetes
from services.cli.output import Column, Output, OutputOption, render, say
from services.cli.sysdump import redact
from services.common.errors import Conflict, Invalid, NotFound
from services.common.pb.agent.v1 import agent_pb2

app = typer.Typer(help="Configuration of agents: values in force, and changing them.", no_args_is_help=True)
DEFAULT_FILE = Path("/etc/ciliate/agent.yaml")
CONFIG_MAP, KEY, NAMESPACE = "ciliate-agent", "config.yaml", "kube-system"
COLUMNS: tuple[Column, ...] = (("node", "node"), ("name", "name"), ("value", "value"), ("from", "origin"))


@app.command("view")
def view(
    context: typer.Context,
    node: NodeOption = "",
    names: Annotated[list[str] | None, typer.Argument(help="only these")] = None,
    all_values: Annotated[bool, typer.Option("--all", "-a", help="show defaults as well")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the values that agents run with, and where each came from: file, environment, flag or default."""
    call = agent_pb2.GetConfigurationRequest()
    found = [
        redact.document(each) for each in gather(context, node, lambda stub: stub.GetConfiguration(call), "values")
    ]
    known = {each["name"] for each in found}
    for name in names or ():
        if name not in known:
            raise NotFound(unknown(name, sorted(known)))
    if names:
        found = [each for each in found if each["name"] in names]
    elif not all_values and output is Output.TABLE:
        found = [each for each in found if each["origin"] != "default"]
    say(render(found, COLUMNS, output, "every value is the default; see them with --all"))


def unknown(name: str, known: list[str]) -> str:
    """What to say of a name that is none."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown name {name}" + (f"; did you mean {near[0]}?" if near else "; see: ciliate config view --all")


def changed(text: str, name: str, value: str) -> str:
    """A configuration file's text with one value changed or added; everything else, comments included, stays.

    `value` is YAML. Raises `Invalid` where it is not, or the text is no mapping.
    """
    try:
        wanted = yaml.safe_load(value) if value else ""
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise Invalid(f"{name}: not YAML: {error}") from error
    line = json.dumps(wanted) if isinstance(wanted, list | dict) or wanted == "" else value.strip()
    if node is None:
        return f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{name}: {line}\n"
    if not isinstance(node, yaml.MappingNode):
        raise Invalid("the file does not hold a mapping of names to values")
    for key, old in node.value:
        if key.value == name:
            return f"{text[: key.end_mark.index]}: {line}{text[_end(old) :]}"
    return f"{text.rstrip(chr(10))}\n{name}: {line}\n"


def _end(node: yaml.Node) -> int:
    """Where a value's text ends. A block's own end is the next name's beginning, comments between them included."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def checked(text: str, origin: str) -> None:
    """Raises `Invalid` with what the agent would say of such a file."""
    words = [sys.executable, "-m", "services.agent.check_config", origin]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        raise Invalid(done.stderr.strip() or f"check ended with status {done.returncode}")


@app.command("set")
def set_value(
    name: Annotated[str, typer.Argument(help="as in the file: policy_max")],
    value: Annotated[str, typer.Argument(help="YAML: 65536, true, [10.0.0.0/8]")],
    file: Annotated[Path | None, typer.Option(help=f"the node's file; default {DEFAULT_FILE}")] = None,
    kubeconfig: Annotated[str, typer.Option(envvar="KUBECONFIG", help="change the cluster's ConfigMap")] = "",
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="of the ConfigMap")] = NAMESPACE,
    config_map: Annotated[str, typer.Option(help="its name")] = CONFIG_MAP,
    key: Annotated[str, typer.Option(help="the file in it")] = KEY,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check and show; write nothing")] = False,
) -> None:
    """Change one value where it is kept, after the agent's own check. Agents read it when they start again."""
    if kubeconfig and file is None:
        text = asyncio.run(_in_cluster(kubeconfig, namespace, config_map, key, (name, value), dry_run))
        where = f"ConfigMap {namespace}/{config_map}"
    else:
        path = file or DEFAULT_FILE
        text = _in_file(path, name, value, dry_run)
        where = str(path)
    if dry_run:
        say(text.rstrip("\n"))
        return
    say(f"{where}: {name} is {value} from the agents' next start on")


def _in_file(path: Path, name: str, value: str, dry_run: bool) -> str:
    try:
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        text = changed(before, name, value)
        checked(text, str(path))
        if not dry_run:
            temporary = path.with_name(f".{path.name}.new")
            temporary.write_text(text, encoding="utf-8")
            temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o600)
            temporary.replace(path)
    except OSError as error:
        raise Invalid(f"--file: {path}: {error.strerror}") from error
    return text


async def _in_cluster(
    kubeconfig: str, namespace: str, config_map: str, key: str, change: tuple[str, str], dry_run: bool
) -> str:
    async with Kubernetes(kubeconfig) as kubernetes:
        document: dict[str, Any] = await kubernetes.get("ConfigMap", namespace, config_map)
        data = document.get("data") or {}
        if key not in data:
            known = ", ".join(sorted(data)) or "nothing"
            raise NotFound(f"--key: ConfigMap {namespace}/{config_map} has no {key}; it has {known}")
        text = changed(data[key], *change)
        checked(text, f"ConfigMap {namespace}/{config_map}")
        # The whole object with its version: who changed it meanwhile is not overwritten.
        fresh = {**document, "data": {**data, key: text}}
        try:
            await kubernetes.replace(fresh, dry_run=dry_run)
        except Conflict as error:
            raise Conflict(f"{error}; somebody changed it at the same time, try again") from error
        return text
