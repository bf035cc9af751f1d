"""The sandbox's API server: apply and delete are all or nothing; the folder holds exactly what agents should know."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from services.common.errors import Invalid, NotFound
from services.model.objects import ObjectKey
from services.sandbox.manifests import Manifest, parse
from services.sandbox.store import ObjectsFolder, ObjectStore, file_name
from services.sandbox.system import system_manifests

WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{image: nginx}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
"""


def manifests(text: str = WEB) -> list[Manifest]:
    return parse(text, "web.yaml")


@pytest.fixture
def store() -> ObjectStore:
    store = ObjectStore(["node1", "node2"])
    store.apply(system_manifests())
    return store


def test_apply_tells_what_became_of_each_object(store: ObjectStore) -> None:
    told = store.apply(manifests())
    assert told[:2] == ["Deployment default/web created", "Service default/web created"]
    assert told[2].startswith("image nginx -> ")
    assert store.apply(manifests())[:2] == ["Deployment default/web unchanged", "Service default/web unchanged"]
    changed = manifests(WEB.replace("port: 80", "port: 81"))
    assert store.apply(changed)[1] == "Service default/web configured"


def test_an_object_keeps_its_uid_and_its_address_while_it_lives(store: ObjectStore) -> None:
    key = ObjectKey("Service", "default", "web")
    store.apply(manifests())
    before = store.objects[key]
    store.apply(manifests(WEB.replace("port: 80", "port: 81")))
    after = store.objects[key]
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"]["clusterIP"] == before["spec"]["clusterIP"]
    store.delete([key])
    store.apply(manifests())
    assert store.objects[key]["metadata"]["uid"] != before["metadata"]["uid"]


def test_a_refused_apply_changes_nothing(store: ObjectStore) -> None:
    before = dict(store.objects)
    for text in (WEB.replace("image: nginx", "image: redis"), WEB.replace("name: web}", "name: web, namespace: nope}")):
        with pytest.raises(Invalid):
            store.apply(manifests(text))
        assert store.objects == before


def test_a_missing_namespace_may_come_with_the_same_apply(store: ObjectStore) -> None:
    text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: team}\n---\n" + WEB.replace(
        "{name: web}", "{name: w, namespace: team}"
    )
    store.apply(manifests(text))
    assert store.delete([ObjectKey("Namespace", "", "team")]) == [
        "Deployment team/w deleted",
        "Namespace team deleted",
        "Service team/w deleted",
    ]


def test_deleting_what_is_not_there_is_an_error_and_changes_nothing(store: ObjectStore) -> None:
    store.apply(manifests())
    before = dict(store.objects)
    with pytest.raises(NotFound, match="Service default/nope"):
        store.delete([ObjectKey("Service", "default", "web"), ObjectKey("Service", "default", "nope")])
    assert store.objects == before


def test_agents_see_pods_services_slices_and_policies_but_no_deployments(store: ObjectStore) -> None:
    store.apply(manifests())
    pods = [{**pod, "status": {"podIPs": [{"ip": "10.244.1.2"}]}} for pod in store.planned_pods().values()]
    kinds = sorted(key.kind for key in store.for_agents(pods) if key.namespace == "default")
    assert kinds == ["EndpointSlice", "Pod", "Service"]


def test_the_folder_follows_and_untouched_files_stay_untouched(tmp_path: Path, store: ObjectStore) -> None:
    folder = ObjectsFolder(tmp_path / "objects")
    store.apply(manifests())
    folder.publish(store.for_agents([]))
    path = tmp_path / "objects" / "service.default.web.yaml"
    assert yaml.safe_load(path.read_text())["spec"]["clusterIP"] == "10.96.0.32"
    stamp = path.stat().st_mtime_ns
    folder.publish(store.for_agents([]))
    assert path.stat().st_mtime_ns == stamp
    store.delete([ObjectKey("Service", "default", "web")])
    folder.publish(store.for_agents([]))
    assert not path.exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_file_names_are_unique_by_kind_namespace_and_name() -> None:
    keys = [ObjectKey("Service", "a", "b"), ObjectKey("Pod", "a", "b"), ObjectKey("Namespace", "", "a")]
    assert [file_name(key) for key in keys] == ["service.a.b.yaml", "pod.a.b.yaml", "namespace.a.yaml"]
