"""Helm is called as it should be, nodes are cleaned after an uninstall: with a helm that notes its arguments."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import install
from services.cli.app import app
from services.common.errors import Invalid, NotFound, Unavailable
from tests.unit.cli.api_server import serving

DAEMON_SET = {
    "metadata": {"name": "ciliate-agent"},
    "spec": {"template": {"spec": {"containers": [{"name": "ciliate-agent", "image": "registry.test/ciliate:1"}]}}},
}


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the helm on PATH writes what it was told."""
    path, program = tmp_path / "said", tmp_path / "bin" / "helm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {path}\ncase "$*" in *fail*) exit 3;; esac\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.delenv("KUBECONFIG", raising=False)
    return path


def ciliate(*arguments: str) -> object:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_install_and_upgrade(said: Path, tmp_path: Path) -> None:
    chart, values = tmp_path / "chart", tmp_path / "values.yaml"
    chart.mkdir()
    values.write_text("a: 1\n", encoding="utf-8")
    ciliate("install", "--chart", str(chart), "--set", "a=b", "-f", str(values), "--timeout", "9")
    ciliate("install", "--chart", str(chart), "--dry-run", "--context", "there")
    ciliate("upgrade", "--chart", "oci://registry.test/ciliate", "-n", "other", "--no-wait", "--kubeconfig", "/kc")
    lines = said.read_text(encoding="utf-8").splitlines()
    assert lines == [
        f"install ciliate {chart} --namespace kube-system --values {values} --set a=b --create-namespace --wait "
        "--timeout 9s",
        f"install ciliate {chart} --namespace kube-system --kube-context there --create-namespace --dry-run",
        "upgrade ciliate oci://registry.test/ciliate --namespace other --kubeconfig /kc --reset-then-reuse-values "
        "--timeout 300s",
    ]


def test_mistakes_are_told_before_helm_is_asked(said: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (("install", "--chart", "/no/chart"), "--chart: /no/chart is not there"),
        (("install", "--chart", str(tmp_path), "--set", "novalue"), "--set: 'novalue': write name=value"),
        (("upgrade", "--chart", str(tmp_path), "-f", "/no/file"), "--values: /no/file is not there"),
    ):
        with pytest.raises(Invalid, match=words):
            ciliate(*arguments)
    assert not said.exists()


def test_without_helm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound, match="helm is not installed here: get it from"):
        ciliate("install", "--chart", str(tmp_path))
    with pytest.raises(NotFound, match="helm is not installed"):
        ciliate("uninstall")


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
async def test_uninstall_cleans_the_nodes(phase: str, said: Path, tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, kubeconfig):
        server.objects["/apis/apps/v1/namespaces/kube-system/daemonsets/ciliate-agent"] = DAEMON_SET
        server.pod_status = {"phase": phase}
        work = asyncio.to_thread(ciliate, "uninstall", "--kubeconfig", kubeconfig)
        if phase == "Failed":
            with pytest.raises(Unavailable, match="not clean: node1, node2, node3; run there as root"):
                await work
        else:
            await work
        assert said.read_text(encoding="utf-8").startswith("uninstall ciliate --namespace kube-system --kubeconfig")
        applied = [each for each in server.seen if each.startswith("PATCH") and "ciliate-cleanup-node" in each]
        assert len(applied) == 3
        assert not [key for key in server.objects if "cleanup" in key], "the pods that cleaned are gone"


async def test_a_dry_run_changes_nothing(said: Path, tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, kubeconfig):
        server.objects["/apis/apps/v1/namespaces/kube-system/daemonsets/ciliate-agent"] = DAEMON_SET
        await asyncio.to_thread(ciliate, "uninstall", "--kubeconfig", kubeconfig, "--dry-run")
        assert not [each for each in server.seen if not each.startswith("GET")]
        assert "--dry-run" in said.read_text(encoding="utf-8")


def test_the_cleaning_pod() -> None:
    pod = install.cleanup_pod("kube-system", "x", "node1", "image:1")
    (container,) = pod["spec"]["containers"]
    assert (pod["spec"]["nodeName"], pod["spec"]["hostNetwork"]) == ("node1", True)
    assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/sys/fs/bpf", "/etc/cni/net.d"}
    assert container["command"] == ["ciliate-agent", "cleanup"]
