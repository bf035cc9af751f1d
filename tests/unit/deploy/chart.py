"""The chart as `helm` renders it: real program, real schema checks."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy/helm/ciliate"
HELM = Path(sys.executable).parent / "helm"
NAMESPACE = "kube-system"
MEMBERS = "etcd.members={10.0.0.1,10.0.0.2,10.0.0.3}"

Document = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm without any configuration of the machine's user."""
    environment = {"PATH": "/usr/bin:/bin", "HELM_CONFIG_HOME": "/nonexistent", "HELM_CACHE_HOME": "/nonexistent"}
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, check=False, timeout=60, env=environment)


@functools.cache
def rendered(*values: str) -> tuple[Document, ...]:
    """The chart's objects; each of `values` is NAME=VALUE, as for `--set`."""
    settings = [part for value in values for part in ("--set", value)]
    done = helm("template", "ciliate", str(CHART), "-n", NAMESPACE, "--kube-version", "1.31.0", *settings)
    assert done.returncode == 0, done.stderr
    return tuple(document for document in yaml.safe_load_all(done.stdout) if document)


def refused(*values: str) -> str:
    """What helm says about values that it must not take."""
    settings = [part for value in values for part in ("--set", value)]
    done = helm("template", "ciliate", str(CHART), "-n", NAMESPACE, *settings)
    assert done.returncode != 0, done.stdout
    return done.stderr


def one(documents: tuple[Document, ...], kind: str, name: str) -> Document:
    """The object of that kind and name."""
    found = [each for each in documents if each["kind"] == kind and each["metadata"]["name"] == name]
    assert len(found) == 1, f"{kind} {name}: {len(found)} of them"
    return found[0]


def pods(documents: tuple[Document, ...]) -> dict[str, Document]:
    """Pod specifications by the name of what makes them."""
    kinds = {"DaemonSet", "Deployment", "StatefulSet"}
    return {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in documents if each["kind"] in kinds}
