"""Kubernetes objects and logs of a dump: without Secrets, environments and what the server keeps for itself."""

from __future__ import annotations

import tarfile
from pathlib import Path

from services.cli.kube import Kubernetes
from services.cli.sysdump import objects
from services.cli.sysdump.collector import Bounds, collect
from tests.unit.cli.api_server import serving

POD = {
    "kind": "Pod",
    "metadata": {"name": "agent", "namespace": "kube-system", "managedFields": [{"manager": "kubelet"}]},
    "spec": {"containers": [{"env": [{"name": "ANY", "value": "hunter2"}]}]},
    "status": {"containerStatuses": [{"name": "agent", "restartCount": 1}]},
}


async def test_objects_and_logs(tmp_path: Path) -> None:
    path = tmp_path / "dump.tar.gz"
    async with serving(tmp_path) as (server, kubeconfig), Kubernetes(kubeconfig) as kubernetes:
        server.objects["/api/v1/namespaces/kube-system/pods/agent"] = POD
        server.objects["/api/v1/namespaces/kube-system/secrets/s"] = {"data": {"k": "hunter2"}}
        notes = await collect(list(objects.from_kubernetes(kubernetes)), path, Bounds(), {})
        assert not [each for each in server.seen if "secret" in each], "nobody asks for Secrets"
    assert not [note for note in notes if note.error]
    with tarfile.open(path) as archive:
        texts = {}
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            texts[member.name.partition("/")[2]] = file.read().decode()
    assert '"name": "agent"' in texts["kubernetes/pod.jsonl"]
    assert "managedFields" not in texts["kubernetes/pod.jsonl"]
    assert "node1" in texts["kubernetes/node.jsonl"]
    assert "kube-system/agent agent (previous)" in texts["kubernetes/logs.txt"]
    assert "the log says why" in texts["kubernetes/logs.txt"]
    assert "hunter2" not in "".join(texts.values())
