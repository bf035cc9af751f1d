"""Which local program stands for which image: the sandbox has no container runtime.

Pure: a `Program` says what to run and which files it wants; the kubelet writes them and runs it.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.common.errors import Invalid
from services.sandbox.netns import WORLD4, WORLD6

WORLD_DOMAIN = "world.test"
"""Every name below is the outside world's server."""
FLEET_DOMAIN = "fleet.test"
"""`203-0-113-20` below is 203.0.113.20, and so on: many names with an address each."""
FLEET = ("203.0.113.20", "203.0.113.59")
"""First and last of them."""
CNAME_DOMAIN = "alias.test"
"""`www` below is an alias of `web`, which lives for two seconds."""


@dataclass(frozen=True, slots=True)
class PodPlace:
    """What a program may need to know about its pod. `directory` is the pod's own, on disk."""

    name: str
    namespace: str
    directory: str
    dns_hosts: str
    """Path of the cluster's address records, in the hosts format."""


@dataclass(frozen=True, slots=True)
class Program:
    """A local program: its command line, the files it wants (path -> content), the ports it answers on."""

    arguments: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    reload_signal: int = 0
    """Sent when the cluster's address records change; 0 = does not care."""
    stop_signal: signal.Signals = signal.SIGTERM
    """Asks it to end, as its image says."""


NGINX_MAIN = """\
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 1024; }}
"""
NGINX_FILES = """\
  access_log {directory}/access.log requests;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
"""
"""What every nginx of the sandbox is told: one process, all files in its own `directory`."""
_NGINX = (
    """\
# Written by the sandbox for the pod {namespace}/{name}.
"""
    + NGINX_MAIN
    + """\
http {{
  log_format requests '$remote_addr $request_method $request_uri $status';
"""
    + NGINX_FILES
    + """\
  keepalive_timeout 300s;
  keepalive_requests 1000000;
  server {{
    listen 80 reuseport;
    listen [::]:80;
    default_type text/plain;
    location / {{
      return 200 "Server address: $server_addr:$server_port\\nServer name: {name}\\nURI: $request_uri\\n";
    }}
  }}
}}
"""
)


def _nginx(place: PodPlace, _container: Mapping[str, Any]) -> Program:
    path = f"{place.directory}/nginx.conf"
    text = _NGINX.format(namespace=place.namespace, name=place.name, directory=place.directory)
    early_log = f"{place.directory}/error.log"
    arguments = ("nginx", "-p", place.directory, "-e", early_log, "-c", path)
    return Program(arguments, {path: text}, stop_signal=signal.SIGQUIT)  # answers what is open before it ends


def _shell(_place: PodPlace, container: Mapping[str, Any]) -> Program:
    command = [str(word) for word in (container.get("command") or ())]
    arguments = [str(word) for word in (container.get("args") or ())]
    # Without a command the image would end at once; a pod to exec into is what one wants from it.
    return Program(tuple(command + arguments if command else ("sleep", "infinity")))


def _dnsmasq(place: PodPlace, _container: Mapping[str, Any]) -> Program:
    return Program(
        (
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
            "--no-hosts",
            "--no-resolv",
            "--no-negcache",
            "--local-ttl=5",
            "--local=/cluster.local/",
            "--cache-size=0",
            f"--address=/{WORLD_DOMAIN}/{WORLD4}",
            f"--address=/{WORLD_DOMAIN}/{WORLD6}",
            f"--synth-domain={FLEET_DOMAIN},{FLEET[0]},{FLEET[1]}",
            f"--cname=www.{CNAME_DOMAIN},web.{CNAME_DOMAIN}",
            f"--host-record=web.{CNAME_DOMAIN},{WORLD4},2",
            f"--pid-file={place.directory}/dnsmasq.pid",
            f"--addn-hosts={place.dns_hosts}",
            f"--log-facility={place.directory}/dnsmasq.log",
        ),
        reload_signal=1,  # SIGHUP: read the records again
    )


@dataclass(frozen=True, slots=True)
class Image:
    """A known image: what stands for it, and how to say so."""

    build: Callable[[PodPlace, Mapping[str, Any]], Program]
    stands_for: str


_WEB = Image(_nginx, "the local nginx, answering in plain text")
_SHELL = Image(_shell, "a shell with this machine's programs (curl among them)")
_DNS = Image(_dnsmasq, "the local dnsmasq, serving the names of Services")

IMAGES: dict[str, Image] = {
    "nginxdemos/hello": _WEB,
    "nginx": _WEB,
    "curlimages/curl": _SHELL,
    "nicolaka/netshoot": _SHELL,
    "alpine": _SHELL,
    "busybox": _SHELL,
    "debian": _SHELL,
    "coredns/coredns": _DNS,
}


def repository(image: str) -> str:
    """The image's name without registry, tag and digest: `registry.k8s.io/coredns/coredns:v1` -> `coredns/coredns`."""
    name = image.partition("@")[0]
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        name = rest
    head, _, tail = name.rpartition("/")
    name = f"{head}/{tail.partition(':')[0]}" if head else tail.partition(":")[0]
    return name.removeprefix("library/")


def image_of(image: str, field_name: str) -> Image:
    """The stand-in for `image`; raises `Invalid` naming the field where there is none."""
    known = IMAGES.get(repository(image))
    if known is None:
        raise Invalid(
            f"{field_name}: the sandbox has no local program for the image {image!r}; "
            f"it knows {', '.join(sorted(IMAGES))} (any tag)"
        )
    return known


def check_images(document: Mapping[str, Any], origin: str) -> list[str]:
    """Check a Pod's or Deployment's image; returns what stands for what, to be told to the person.

    Raises `Invalid` for an unknown image and for a command where the stand-in cannot run one.
    """
    spec, path = document["spec"], "spec"
    if document["kind"] == "Deployment":
        spec, path = spec["template"]["spec"], "spec.template.spec"
    container, where = spec["containers"][0], f"{origin}: {path}.containers[0]"
    image = image_of(container["image"], f"{where}.image")
    if container.get("command") and image is not _SHELL:
        words = shlex.join(str(word) for word in container["command"])
        raise Invalid(f"{where}.command: {words!r} cannot be run: {image.stands_for} stands for this image; remove it")
    return [f"{container['image']} -> {image.stands_for}"]
