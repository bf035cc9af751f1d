"""`ciliate install | upgrade | uninstall`: the Helm chart, by `helm` itself; and nodes left as they were found.

Helm removes objects, not what agents put on nodes. So uninstall ends with a pod on every node that had an agent, of the
agent's own image: `ciliate-agent cleanup`.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.kube import Kubernetes
from services.cli.output import say
from services.common.errors import Internal, Invalid, NotFound, Unavailable

RELEASE, NAMESPACE, AGENT = "ciliate", "kube-system", "ciliate-agent"
CHART = Path(__file__).parents[2] / "deploy" / "helm" / "ciliate"
CLEANUP = "ciliate-cleanup"
_HOST_PATHS = {
    "cni-conf": "/etc/cni/net.d",
    "cni-bin": "/opt/cni/bin",
    "bpffs": "/sys/fs/bpf",
    "run": "/run/ciliate",
    "cache": "/var/cache/ciliate",
}

ChartOption = Annotated[str, typer.Option(help="folder, archive or oci:// of the chart")]
NamespaceOption = Annotated[str, typer.Option("--namespace", "-n", help="where Ciliate is")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="a value of the chart: name=value")]
ValuesOption = Annotated[list[Path] | None, typer.Option("--values", "-f", help="file of values")]
KubeconfigOption = Annotated[str, typer.Option(envvar="KUBECONFIG", help="of the cluster")]
ContextOption = Annotated[str, typer.Option("--context", help="of the kubeconfig")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="show what would be done; change nothing")]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="until it is done")]
TimeoutOption = Annotated[int, typer.Option(help="seconds to wait at most", min=1)]


def helm() -> str:
    """The program; `NotFound` says how to get it, and how to do without."""
    found = shutil.which("helm")
    if found is None:
        raise NotFound(
            "helm is not installed here: get it from https://helm.sh/docs/intro/install, "
            "or apply the rendered manifests of deploy/ with kubectl"
        )
    return found


def arguments(
    verb: Sequence[str], namespace: str, kubeconfig: str, context: str, more: Sequence[str] = ()
) -> list[str]:
    """helm's command line, without its name."""
    where = [*(["--kubeconfig", kubeconfig] if kubeconfig else []), *(["--kube-context", context] if context else [])]
    return [*verb, "--namespace", namespace, *where, *more]


def values(settings: Sequence[str], files: Sequence[Path]) -> list[str]:
    """Options for values; raises `Invalid` for one that helm would misread, or a file that is not there."""
    for text in settings:
        if "=" not in text:
            raise Invalid(f"--set: {text!r}: write name=value")
    for path in files:
        if not path.is_file():
            raise Invalid(f"--values: {path} is not there")
    return [*(part for path in files for part in ("--values", str(path))), *(p for t in settings for p in ("--set", t))]


def _chart(text: str) -> str:
    chart = text or str(CHART)
    if "://" not in chart and not Path(chart).exists():
        raise Invalid(f"--chart: {chart} is not there; name a folder, an archive or oci://REGISTRY/CHART")
    return chart


def _run(words: Sequence[str]) -> None:
    """helm, with its own output; `Internal` where it fails."""
    done = subprocess.run([helm(), *words], check=False)
    if done.returncode != 0:
        raise Internal(f"helm {words[0]} ended with status {done.returncode}; its reason is above")


def install(
    chart: ChartOption = "",
    namespace: NamespaceOption = NAMESPACE,
    settings: SetOption = None,
    files: ValuesOption = None,
    kubeconfig: KubeconfigOption = "",
    kube_context: ContextOption = "",
    dry_run: DryRunOption = False,
    wait: WaitOption = True,
    timeout: TimeoutOption = 300,
) -> None:
    """Install Ciliate on a cluster by its Helm chart. Try `ciliate preflight` on the nodes first."""
    more = [*values(settings or [], files or []), "--create-namespace", *_progress(dry_run, wait, timeout)]
    _run(arguments(["install", RELEASE, _chart(chart)], namespace, kubeconfig, kube_context, more))


def upgrade(
    chart: ChartOption = "",
    namespace: NamespaceOption = NAMESPACE,
    settings: SetOption = None,
    files: ValuesOption = None,
    kubeconfig: KubeconfigOption = "",
    kube_context: ContextOption = "",
    dry_run: DryRunOption = False,
    wait: WaitOption = True,
    timeout: TimeoutOption = 300,
) -> None:
    """Bring a cluster to the chart's version; values that it was installed with stay, unless given anew."""
    more = ["--reset-then-reuse-values", *values(settings or [], files or []), *_progress(dry_run, wait, timeout)]
    _run(arguments(["upgrade", RELEASE, _chart(chart)], namespace, kubeconfig, kube_context, more))


def _progress(dry_run: bool, wait: bool, timeout: int) -> list[str]:
    return ["--dry-run"] if dry_run else [*(["--wait"] if wait else []), "--timeout", f"{timeout}s"]


def uninstall(
    namespace: NamespaceOption = NAMESPACE,
    kubeconfig: KubeconfigOption = "",
    kube_context: ContextOption = "",
    dry_run: DryRunOption = False,
    cleanup: Annotated[bool, typer.Option("--cleanup/--no-cleanup", help="also clean the nodes")] = True,
    timeout: TimeoutOption = 300,
) -> None:
    """Remove Ciliate from a cluster, and from its nodes: programs, pinned maps, CNI configuration and plugin.

    Pods that run keep their interfaces and lose their network: give them another one, and end them.
    """
    helm()
    image, nodes = asyncio.run(_agents(kubeconfig, kube_context, namespace)) if cleanup else ("", [])
    more = ["--dry-run"] if dry_run else ["--wait", "--timeout", f"{timeout}s"]
    _run(arguments(["uninstall", RELEASE], namespace, kubeconfig, kube_context, more))
    if not cleanup:
        return
    if dry_run:
        say("\n".join(f"would clean node {node} with {image}" for node in nodes))
        return
    failed = asyncio.run(_clean(kubeconfig, kube_context, namespace, image, nodes, timeout))
    for node in nodes:
        say(f"node {node}: {failed.get(node) or 'clean'}")
    if failed:
        raise Unavailable(
            f"not clean: {', '.join(sorted(failed))}; run there as root, without an agent: ciliate-agent cleanup"
        )


async def _agents(kubeconfig: str, context: str, namespace: str) -> tuple[str, list[str]]:
    """(image, nodes) of the agents, asked for while they are there."""
    async with Kubernetes(kubeconfig, context) as kubernetes:
        document = await kubernetes.get("DaemonSet", namespace, AGENT)
        containers = document["spec"]["template"]["spec"]["containers"]
        image = next((c["image"] for c in containers if "agent" in c["name"]), containers[0]["image"])
        nodes = [each["metadata"]["name"] for each in await kubernetes.list("Node")]
    return str(image), sorted(nodes)


async def _clean(
    kubeconfig: str, context: str, namespace: str, image: str, nodes: Sequence[str], seconds: float
) -> dict[str, str]:
    """Run the clean-up on every node at once; node -> what went wrong."""
    deadline, failed = time.monotonic() + seconds, {}
    async with Kubernetes(kubeconfig, context) as kubernetes:
        names = {node: f"{CLEANUP}-{node}" for node in nodes}
        try:
            for node, name in names.items():
                await kubernetes.apply(cleanup_pod(namespace, name, node, image))
            waiting = dict(names)
            while waiting and time.monotonic() < deadline:
                for node, name in list(waiting.items()):
                    phase = ((await kubernetes.get("Pod", namespace, name)).get("status") or {}).get("phase")
                    if phase in ("Succeeded", "Failed"):
                        del waiting[node]
                    if phase == "Failed":
                        path = f"/api/v1/namespaces/{namespace}/pods/{name}/log"
                        failed[node] = (await kubernetes.text(path)).strip().replace("\n", "; ") or "failed"
                await asyncio.sleep(0.5 if waiting else 0)
            failed |= dict.fromkeys(waiting, f"not done in {seconds:g} s")
        finally:
            for name in names.values():
                await kubernetes.delete("Pod", namespace, name)
    return failed


def cleanup_pod(namespace: str, name: str, node: str, image: str) -> dict[str, Any]:
    """The pod that cleans one node: in the node's own network, with its folders, as root."""
    mounts = [{"name": volume, "mountPath": path} for volume, path in _HOST_PATHS.items()]
    container = {
        "name": "cleanup",
        "image": image,
        "command": ["ciliate-agent", "cleanup"],
        "securityContext": {"privileged": True, "runAsUser": 0},
        "volumeMounts": mounts,
    }
    volumes = [
        {"name": volume, "hostPath": {"path": path, "type": "DirectoryOrCreate"}}
        for volume, path in _HOST_PATHS.items()
    ]
    spec = {
        "nodeName": node,
        "hostNetwork": True,
        "restartPolicy": "Never",
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": volumes,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec}
