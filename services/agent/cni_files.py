"""The plugin and its configuration in the runtime's folders: put there when the agent enforces, gone at uninstall.

    python -m services.agent.cni_files --bin-dir /opt/cni/bin --conf-dir /etc/cni/net.d        takes both away

The plugin comes first and the configuration last, each as a whole: a runtime never finds half of one, and none that
nothing answers. What is there already and equal is left alone, so that runtimes are not told of changes that are none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import services
from services.agent.server.state import component
from services.common.log import get_logger
from services.common.pb.agent.v1 import agent_pb2 as pb

PLUGIN = "ciliate-cni"
CONFLIST = "05-ciliate.conflist"
"""Runtimes take the first in alphabetical order."""
_CAPABILITIES = {"portmap": {"portMappings": True}, "bandwidth": {"bandwidth": True}}
_SOURCE = Path(services.__file__).with_name("cni") / "plugin.py"


def conflist(socket: str, chain: Sequence[str]) -> str:
    """The network configuration: ours, then those that are chained to it."""
    plugins: list[dict[str, Any]] = [{"type": PLUGIN, "socket": socket}]
    plugins += [{"type": name, "capabilities": _CAPABILITIES.get(name, {})} for name in chain]
    # Runtimes that know of several versions take the best, the others the first.
    document = {
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "ciliate",
        "plugins": plugins,
    }
    return json.dumps(document, indent=2) + "\n"


class CniFiles:
    """Both files, where folders for them are given."""

    def __init__(self, bin_dir: str, conf_dir: str, socket: str, chain: Sequence[str] = ()) -> None:
        self._bin, self._conf = bin_dir, conf_dir
        self._text = conflist(socket, chain)
        self._problem = ""
        self._log = get_logger("cni")

    def install(self) -> None:
        """Put them there. A failure is in the status: pods that run are none the worse for it."""
        try:
            if self._bin and _replace(Path(self._bin) / PLUGIN, _SOURCE.read_bytes(), 0o755):
                self._log.info("plugin installed", folder=self._bin)
            if self._conf and _replace(Path(self._conf) / CONFLIST, self._text.encode(), 0o600):
                self._log.info("network configuration installed", folder=self._conf)
        except OSError as error:
            self._problem = f"cni_bin_dir, cni_conf_dir: {error.filename}: {error.strerror}"
            self._log.error("the runtime does not get plugin and configuration", problem=self._problem)
        else:
            self._problem = ""

    def check(self) -> pb.Component:
        """For the status."""
        places = ", ".join(place for place in (self._bin, self._conf) if place)
        return component("cni files", {"cni": self._problem} if self._problem else {}, good=places or "not asked for")


def remove(bin_dir: str, conf_dir: str) -> list[Path]:
    """Take away what is ours, the configuration first; what was there."""
    found = []
    for path, is_ours in ((Path(conf_dir) / CONFLIST, _is_our_conflist), (Path(bin_dir) / PLUGIN, _is_our_plugin)):
        if str(path.parent) != "." and path.is_file() and is_ours(path):
            path.unlink()
            found.append(path)
    return found


def _is_our_conflist(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["plugins"][0]["type"] == PLUGIN)
    except (ValueError, KeyError, IndexError, TypeError):
        return False


def _is_our_plugin(path: Path) -> bool:
    return b"cni.sock" in path.read_bytes()[:4096]


def _replace(path: Path, content: bytes, mode: int) -> bool:
    """Whether it had to be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.read_bytes() == content and path.stat().st_mode & 0o777 == mode:
        return False
    fresh = path.with_name(f".{path.name}.new")  # runtimes do not look at names with a dot
    fresh.write_bytes(content)
    fresh.chmod(mode)
    fresh.replace(path)
    return True


def main(arguments: Sequence[str]) -> int:
    """Uninstall; returns the exit code."""
    parser = argparse.ArgumentParser(description="take the CNI plugin and its configuration out of a node's folders")
    parser.add_argument("--bin-dir", default="")
    parser.add_argument("--conf-dir", default="")
    given = parser.parse_args(arguments)
    try:
        for path in remove(given.bin_dir, given.conf_dir):
            print(f"removed {path}")
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
