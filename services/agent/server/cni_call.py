"""A CNI call as the runtime makes it (spec 1.1.0, sections 2 and 5), judged before anything is done. Pure.

CNI_ variables, network configuration ──▶ Call | Refusal        record ──▶ result of the version that was asked for
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.agent.endpoints.links import GATEWAY4, GATEWAY6, Attachment
from services.agent.endpoints.records import EndpointRecord

Document = dict[str, Any]
SUPPORTED = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
CURRENT = SUPPORTED[-1]
COMMANDS: Mapping[str, str] = {"ADD": "0.3.0", "DEL": "0.3.0", "CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
"""Command -> the first version that has it."""
VALID_ATTACHMENTS = "cni.dev/valid-attachments"

INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
DECODING_FAILURE = 6
INVALID_CONFIG = 7
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50
AGENT_FAILURE = 100
"""Codes from 100 on are the plugin's own."""

_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_IFNAME = re.compile(r"[^/:\s\0]{1,15}")


class Refusal(Exception):
    """An error as the runtime gets it. Not a fault of ours: the call itself is wrong."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details


@dataclass(frozen=True, slots=True)
class Call:
    """What the runtime wants."""

    command: str
    version: str = CURRENT
    attachment: Attachment | None = None
    """None for STATUS and GC, which are about the network."""
    args: Mapping[str, str] = field(default_factory=dict)
    valid: frozenset[tuple[str, str]] = frozenset()
    """GC: (container id, interface) of everything that the runtime still has."""
    expected: tuple[str, ...] = ()
    """CHECK: addresses that an earlier result gave to the interface."""

    @property
    def pod(self) -> tuple[str, str]:
        """(namespace, name) of the pod; raises Refusal."""
        return _argument(self.args, "K8S_POD_NAMESPACE"), _argument(self.args, "K8S_POD_NAME")


def parse(variables: Mapping[str, str], data: bytes) -> Call:
    """The call; raises Refusal, whose version is that of `version_of`."""
    command, config = variables.get("CNI_COMMAND", ""), _config(data)
    version = str(config.get("cniVersion", "0.1.0"))
    if version not in SUPPORTED:
        raise Refusal(INCOMPATIBLE_VERSION, f"cniVersion {version!r} is not supported; use {CURRENT}")
    since = COMMANDS.get(command)
    if since is None:
        wanted = ", ".join((*COMMANDS, "VERSION"))
        raise Refusal(INVALID_ENVIRONMENT, f"CNI_COMMAND is {command!r}; it must be one of {wanted}")
    if SUPPORTED.index(version) < SUPPORTED.index(since):
        raise Refusal(INCOMPATIBLE_VERSION, f"{command} needs cniVersion {since} or later, not {version}")
    _check_runtime_config(config)
    if command == "STATUS":
        return Call(command, version)
    if command == "GC":
        return Call(command, version, valid=_valid(config))
    attachment = _attachment(variables, command)
    previous = config.get("prevResult")
    if command == "ADD" and previous is not None:
        text = "ciliate-cni makes the interface: it must be the first plugin of the chain"
        raise Refusal(INVALID_CONFIG, text, "prevResult is there")
    expected = _addresses(previous, attachment.ifname) if command == "CHECK" else ()
    return Call(command, version, attachment, _arguments(variables.get("CNI_ARGS", "")), expected=expected)


def version_of(data: bytes) -> str:
    """The version in which a refusal is told."""
    try:
        version = json.loads(data)["cniVersion"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return CURRENT
    return version if version in SUPPORTED else CURRENT


def _config(data: bytes) -> Document:
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refusal(DECODING_FAILURE, "the network configuration is not JSON", str(error)) from error
    if not isinstance(config, dict):
        raise Refusal(DECODING_FAILURE, "the network configuration is not a JSON object")
    if not isinstance(config.get("socket"), str):
        raise Refusal(INVALID_CONFIG, "the network configuration needs `socket`: the path of the agent's cni.sock")
    return config


def _check_runtime_config(config: Document) -> None:
    """What capabilities bring: ports and limits come from the pod's object, whoever else asks for them in the chain;
    but nonsense is told."""
    given = config.get("runtimeConfig") or {}
    if not isinstance(given, dict):
        raise Refusal(INVALID_CONFIG, "runtimeConfig must be an object")
    for mapping in _list(given.get("portMappings"), "runtimeConfig.portMappings"):
        for name in ("hostPort", "containerPort"):
            port = mapping.get(name) if isinstance(mapping, dict) else None
            if not isinstance(port, int) or not 0 <= port < 1 << 16:
                raise Refusal(INVALID_CONFIG, f"runtimeConfig.portMappings: {name} {port!r} is no port")
    limits = given.get("bandwidth") or {}
    rates = limits.values() if isinstance(limits, dict) else [None]
    if not all(isinstance(rate, int) and rate >= 0 for rate in rates):
        raise Refusal(INVALID_CONFIG, "runtimeConfig.bandwidth: rates and bursts must be numbers of bits")


def _list(value: Any, where: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Refusal(INVALID_CONFIG, f"{where} must be a list")
    return value


def _valid(config: Document) -> frozenset[tuple[str, str]]:
    if VALID_ATTACHMENTS not in config:
        # "Nothing is valid" would end every pod.
        raise Refusal(INVALID_CONFIG, f"GC needs {VALID_ATTACHMENTS}: the attachments to keep")
    found = set()
    for entry in _list(config[VALID_ATTACHMENTS], VALID_ATTACHMENTS):
        names = (entry.get("containerID"), entry.get("ifname")) if isinstance(entry, dict) else (None, None)
        if not all(isinstance(name, str) and name for name in names):
            raise Refusal(INVALID_CONFIG, f"{VALID_ATTACHMENTS}: {entry!r} needs containerID and ifname")
        found.add((str(names[0]), str(names[1])))
    return frozenset(found)


def _attachment(variables: Mapping[str, str], command: str) -> Attachment:
    needed = ["CNI_CONTAINERID", "CNI_IFNAME"] + (["CNI_NETNS"] if command != "DEL" else [])
    missing = [name for name in needed if not variables.get(name)]
    if missing:
        raise Refusal(INVALID_ENVIRONMENT, f"missing in the environment: {', '.join(missing)}")
    container, ifname, netns = variables["CNI_CONTAINERID"], variables["CNI_IFNAME"], variables.get("CNI_NETNS", "")
    if not _CONTAINER.fullmatch(container):
        raise Refusal(INVALID_ENVIRONMENT, f"CNI_CONTAINERID {container!r} is not a container id")
    if not _IFNAME.fullmatch(ifname) or ifname in (".", ".."):
        raise Refusal(INVALID_ENVIRONMENT, f"CNI_IFNAME {ifname!r} is not an interface name")
    if netns and not netns.startswith("/"):
        raise Refusal(INVALID_ENVIRONMENT, f"CNI_NETNS {netns!r} is not a path")
    return Attachment(container, netns, ifname)


def _arguments(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(";") if part]
    wrong = [name for name, equals, _ in pairs if not equals]
    if wrong:
        raise Refusal(INVALID_ENVIRONMENT, f"CNI_ARGS: {wrong[0]!r} is not key=value")
    return {name: value for name, _, value in pairs}


def _argument(arguments: Mapping[str, str], name: str) -> str:
    value = arguments.get(name, "")
    if not value:
        raise Refusal(INVALID_ENVIRONMENT, f"CNI_ARGS: {name} is missing; the runtime must pass it")
    return value


def _addresses(previous: Any, ifname: str) -> tuple[str, ...]:
    """The addresses that an earlier result has for an interface in the container; others' are theirs to check."""
    if not isinstance(previous, dict):
        return ()
    interfaces, found = _list(previous.get("interfaces"), "prevResult.interfaces"), []
    for entry in _list(previous.get("ips"), "prevResult.ips"):
        try:
            number, address = entry.get("interface"), str(entry["address"])
            owner = interfaces[number] if number is not None else None
            if owner is not None and owner["name"] == ifname and owner.get("sandbox"):
                found.append(address.partition("/")[0])
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise Refusal(INVALID_CONFIG, "prevResult cannot be read", repr(error)) from error
    return tuple(found)


def result_of(record: EndpointRecord, version: str, mtu: int = 0) -> Document:
    """The result of an endpoint, in the words of that version."""
    endpoint = record.endpoint
    ips: list[Document] = []
    for address in endpoint.addresses:
        gateway = GATEWAY4 if address.version == 4 else GATEWAY6
        entry = {"address": f"{address}/{address.max_prefixlen}", "gateway": str(gateway), "interface": 1}
        # Until 1.0.0 every address said which IP it is of.
        ips.append(entry if version >= "1.0.0" else {"version": str(address.version), **entry})
    routes = [
        {"dst": "0.0.0.0/0", "gw": str(GATEWAY4)} if address.version == 4 else {"dst": "::/0", "gw": str(GATEWAY6)}
        for address in endpoint.addresses
    ]
    size = {"mtu": mtu} if mtu and version >= "1.1.0" else {}
    return {
        "cniVersion": version,
        "interfaces": [
            {"name": endpoint.ifname, "mac": endpoint.node_mac.hex(":"), **size},
            {"name": endpoint.peer_ifname, "mac": endpoint.mac.hex(":"), **size, "sandbox": endpoint.netns},
        ],
        "ips": ips,
        "routes": routes,
        "dns": {},
    }
