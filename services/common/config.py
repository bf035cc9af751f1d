"""Configuration: file < environment < flags, one flat validated model per process.

The three doors accept the same names: `node_name` in the file, `CILIATE_AGENT_NODE_NAME` in the environment,
`--node-name` on the command line. Unknown names are refused on each of them, with the nearest known one: a typo
that silently leaves a default in force is how clusters end up open.
"""

from __future__ import annotations

import argparse
import difflib
import enum
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from services.common.errors import Invalid
from services.common.yaml_places import refuse_repeated


class BaseConfig(BaseModel):
    """What every process can be told."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe level logged")
    log_format: Literal["console", "json"] = Field("console", description="log lines for people or for machines")
    metrics_address: str = Field("", description="host:port of /metrics, /healthz and /readyz; empty = none")
    tls_ca: str = Field("", description="file with the certificate authority that peers must be signed by (PEM)")
    tls_cert: str = Field("", description="file with this process's certificate chain (PEM)")
    tls_key: str = Field("", description="file with the certificate's private key (PEM)")
    trace_endpoint: str = Field(
        "", description="OpenTelemetry collector for spans of this process's calls, http(s)://host:port; empty = none"
    )
    trace_ca: str = Field("", description="PEM file of that collector's authority; empty = the system's")
    insecure: bool = Field(False, description="speak plaintext instead of mutual TLS; for tests only")

    _origins: dict[str, str] = pydantic.PrivateAttr(default_factory=dict)
    """Name -> where its value came from; the rest are defaults."""

    @pydantic.model_validator(mode="after")
    def _tls_or_insecure(self) -> BaseConfig:
        files = (self.tls_ca, self.tls_cert, self.tls_key)
        if self.insecure and any(files):
            raise ValueError("insecure: cannot be combined with tls_ca, tls_cert, tls_key; remove one or the other")
        if not self.insecure and not all(files):
            raise ValueError("tls_ca, tls_cert and tls_key are all needed (or insecure: true for plaintext)")
        return self


C = TypeVar("C", bound=BaseConfig)


@dataclass(frozen=True, slots=True)
class Setting:
    """One effective value as YAML text. `origin`: "file PATH", "environment NAME", "flag --NAME" or "default"."""

    name: str
    value: str
    origin: str
    default: str
    description: str


def settings(config: BaseConfig) -> list[Setting]:
    """Everything that a process was told, and what it was not told."""
    values = config.model_dump(mode="json")
    return [
        Setting(
            name,
            _as_text(values[name]),
            config._origins.get(name, "default"),
            _as_text(_plain(field.get_default(call_default_factory=True))),
            field.description or "",
        )
        for name, field in type(config).model_fields.items()
    ]


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def load(
    config_class: type[C],
    arguments: Sequence[str],
    *,
    process: str,
    environment: Mapping[str, str] | None = None,
) -> C:
    """Read the configuration of `process` ("ciliate-agent": variables start with CILIATE_AGENT_).

    Raises `Invalid` with every problem at once, each naming its field and where the value came from.
    """
    environment = os.environ if environment is None else environment
    prefix = process.upper().replace("-", "_") + "_"
    flags = _parse_flags(config_class, arguments, process)
    path = flags.pop("config", None) or environment.get(prefix + "CONFIG")
    from_file = _read_file(config_class, path) if path else {}
    from_environment = _read_environment(config_class, environment, prefix)
    origin = (
        dict.fromkeys(from_file, f"in {path}")
        | {name: f"from {prefix}{name.upper()}" for name in from_environment}
        | {name: f"from --{name.replace('_', '-')}" for name in flags}
    )
    try:
        found = config_class(**(from_file | from_environment | flags))
    except pydantic.ValidationError as error:
        raise Invalid("\n".join(_describe(problem, origin) for problem in error.errors())) from error
    found._origins.update(
        dict.fromkeys(from_file, f"file {path}")
        | {name: f"environment {prefix}{name.upper()}" for name in from_environment}
        | {name: f"flag --{name.replace('_', '-')}" for name in flags}
    )
    return found


def check(config_class: type[C], text: str, origin: str, assumed: Mapping[str, Any]) -> C:
    """The configuration that a file's text makes, with values of `assumed` for what it leaves to flags or environment.

    Raises `Invalid` as `load` does.
    """
    from_file = _parse_file(config_class, text, origin)
    try:
        return config_class(**({**assumed} | from_file))
    except pydantic.ValidationError as error:
        where = dict.fromkeys(from_file, f"in {origin}")
        raise Invalid("\n".join(_describe(problem, where) for problem in error.errors())) from error


def _describe(problem: Any, origin: Mapping[str, str]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    source = origin.get(str(problem["loc"][0])) if problem["loc"] else None
    return f"configuration: {where + ': ' if where else ''}{message}{f' ({source})' if source else ''}"


def _parse_flags(config_class: type[BaseConfig], arguments: Sequence[str], process: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog=process, description=config_class.__doc__, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="YAML file with the same names, '_' for '-'")
    for name, field in config_class.model_fields.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            default=argparse.SUPPRESS,
            metavar=name.rpartition("_")[2].upper(),
            help=f"{field.description} (default: {field.get_default(call_default_factory=False)!r})".replace("%", "%%"),
            **_flag_shape(field.annotation),
        )
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        names = [f"--{name.replace('_', '-')}" for name in config_class.model_fields]
        raise Invalid("\n".join(_unknown("flag", text.partition("=")[0], names) for text in unknown))
    return {name: value for name, value in vars(known).items() if value is not None}


def _flag_shape(annotation: Any) -> dict[str, Any]:
    if annotation is bool:
        return {"nargs": "?", "const": True}
    if getattr(annotation, "__origin__", None) in (list, tuple):
        return {"action": "append"}
    return {}


def _read_file(config_class: type[BaseConfig], path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise Invalid(f"configuration: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"configuration: {path} is not YAML: {error}") from error
    return _parse_file(config_class, text, path)


def _parse_file(config_class: type[BaseConfig], text: str, path: str) -> dict[str, Any]:
    try:
        refuse_repeated(yaml.compose(text, Loader=yaml.SafeLoader))
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise Invalid(f"configuration: {path} is not YAML: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise Invalid(f"configuration: {path} must hold a mapping of names to values")
    unknown = [str(name) for name in document if name not in config_class.model_fields]
    if unknown:
        raise Invalid("\n".join(f"{_unknown('key', name, config_class.model_fields)} (in {path})" for name in unknown))
    return {str(name): value for name, value in document.items()}


def _read_environment(config_class: type[BaseConfig], environment: Mapping[str, str], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variable, value in environment.items():
        if not variable.startswith(prefix) or variable == prefix + "CONFIG":
            continue
        name = variable.removeprefix(prefix).lower()
        if name not in config_class.model_fields:
            names = [prefix + known.upper() for known in config_class.model_fields]
            raise Invalid(_unknown("environment variable", variable, names))
        shape = _flag_shape(config_class.model_fields[name].annotation)
        found[name] = [part for part in value.split(",") if part] if shape.get("action") == "append" else value
    return found


def _unknown(what: str, name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"configuration: unknown {what} {name}" + (f"; did you mean {near[0]}?" if near else "")
