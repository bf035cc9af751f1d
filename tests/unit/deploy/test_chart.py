"""The Helm chart: valid objects whatever the values, configurations that the processes take, few rights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from services.agent.config import Config as AgentConfig
from services.common.config import BaseConfig, load
from services.identity.config import Config as IdentityConfig
from services.operator.config import Config as OperatorConfig
from services.relay.config import Config as RelayConfig
from tests.unit.deploy.chart import CHART, MEMBERS, NAMESPACE, Document, helm, one, pods, refused, rendered

MANIFESTS = CHART.parents[1] / "manifests"
VALUES: dict[str, tuple[str, ...]] = {
    "defaults": (MEMBERS,),
    "etcd of one's own": ("etcd.enabled=false", "etcd.endpoints={a:2379,b:2379}", "etcd.tlsSecret=etcd"),
    "cert-manager": (MEMBERS, "tls.method=certManager"),
    "an issuer of one's own": (MEMBERS, "tls.method=certManager", "tls.certManager.issuerRef.name=company"),
    "native, both families": (
        MEMBERS,
        "routingMode=native",
        "autoDirectNodeRoutes=true",
        "ipv6.enabled=true",
        "nativeRoutingCIDRs={10.0.0.0/8}",
        "loadBalancer.mode=dsr",
        "loadBalancer.dsrDispatch=geneve",
        "k8sServiceHost=192.0.2.1",
    ),
    "beside kube-proxy, no relay": (MEMBERS, "kubeProxyReplacement=false", "hubble.relay.enabled=false"),
    "everything that watches": (
        MEMBERS,
        "dashboards.enabled=true",
        "prometheus.serviceMonitor.enabled=true",
        "hubble.metrics.enabled={drop,flow:sourceContext=pod|ip}",
        "hubble.relay.export.otlpEndpoint=http://collector:4317",
        "debug.enabled=true",
    ),
    "no metrics, no history, no policies": (
        MEMBERS,
        "prometheus.enabled=false",
        "hubble.relay.history.enabled=false",
        "networkPolicy.enabled=false",
        "cni.install=false",
        "hubble.nodePort=0",
    ),
    "secrets, tags, further settings": (
        MEMBERS,
        "imagePullSecrets[0].name=pull",
        "image.tag=1.2.3",
        "agent.extraConfig.ct_max=1000000",
        "identity.extraConfig.grace_seconds=60",
    ),
}
FOREIGN = {"cert-manager.io/v1", "monitoring.coreos.com/v1"}
"""Kinds of others, whose schemas Kubernetes does not have."""

everything = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())


def test_lint_has_nothing_to_complain_about() -> None:
    done = helm("lint", str(CHART), "--strict", "--set", MEMBERS)
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


@everything
@pytest.mark.parametrize("version", ["1.33", "1.37"])
def test_objects_are_what_the_api_server_takes(values: tuple[str, ...], version: str) -> None:
    for document in rendered(*values):
        if document["apiVersion"] not in FOREIGN:
            kubernetes_validate.validate(document, version, strict=True)


@everything
def test_names_are_unique_and_everything_is_ours(values: tuple[str, ...]) -> None:
    documents = rendered(*values)
    names = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in documents]
    assert len(names) == len(set(names))
    for document in documents:
        assert document["metadata"]["labels"]["app.kubernetes.io/part-of"] == "ciliate"
        assert document["metadata"].get("namespace", NAMESPACE) == NAMESPACE


PROCESSES: tuple[tuple[str, type[BaseConfig]], ...] = (
    ("agent", AgentConfig),
    ("identity", IdentityConfig),
    ("relay", RelayConfig),
    ("operator", OperatorConfig),
)


@everything
@pytest.mark.parametrize(("process", "config"), PROCESSES, ids=[name for name, _ in PROCESSES])
def test_processes_take_their_configuration(
    values: tuple[str, ...], process: str, config: type[BaseConfig], tmp_path: Path
) -> None:
    documents = rendered(*values)
    spec = pods(documents).get(f"ciliate-{process}")
    if spec is None:
        assert "hubble.relay.enabled=false" in values
        return
    file = tmp_path / "config.yaml"
    file.write_text(one(documents, "ConfigMap", f"ciliate-{process}")["data"]["config.yaml"])
    container = next(each for each in spec["containers"] if each["name"] == process)
    fields = {"spec.nodeName": "node1", "status.hostIPs": "192.0.2.1,2001:db8::1", "metadata.name": "relay-0"}
    environment = {
        each["name"]: each["value"] if "value" in each else fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
        for each in container.get("env", ())
    }
    assert container["args"] == ["--config", "/etc/ciliate/config/config.yaml"]
    found = load(config, ["--config", str(file)], process=f"ciliate-{process}", environment=environment)
    assert found.log_format == "json"
    assert str(container["startupProbe"]["httpGet"]["port"]) == found.metrics_address.rpartition(":")[2]


@everything
def test_volumes_are_there_and_mounted(values: tuple[str, ...]) -> None:
    documents = rendered(*values)
    made = {(each["kind"], each["metadata"]["name"]) for each in documents}
    for name, spec in pods(documents).items():
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        claims = one_of(documents, name)["spec"].get("volumeClaimTemplates", ())
        mounted = {mount["name"] for each in containers(spec) for mount in each["volumeMounts"]}
        assert mounted == set(volumes) | {claim["metadata"]["name"] for claim in claims}, name
        for volume in volumes.values():
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in made


def containers(spec: Document) -> list[Document]:
    return [*spec.get("initContainers", ()), *spec["containers"]]


def one_of(documents: tuple[Document, ...], name: str) -> Document:
    kinds = {"DaemonSet", "Deployment", "StatefulSet"}
    return next(each for each in documents if each["kind"] in kinds and each["metadata"]["name"] == name)


@everything
def test_rights_of_pods(values: tuple[str, ...]) -> None:
    for name, spec in pods(rendered(*values)).items():
        assert spec["enableServiceLinks"] is False, "a Service's variables would be taken for settings"
        for container in containers(spec):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert not container["image"].endswith(":latest")
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            if container["name"] == "mount-bpffs":
                continue  # it ends before anything begins
            assert context["capabilities"]["drop"] == ["ALL"]
            assert not context.get("privileged")
            if name not in ("ciliate-agent", "ciliate-etcd"):
                assert context["runAsNonRoot"] is True
                assert context["allowPrivilegeEscalation"] is False
                assert "add" not in context["capabilities"]
        if name in ("ciliate-identity", "ciliate-relay", "ciliate-etcd"):
            assert spec["automountServiceAccountToken"] is False, "it never asks the API server"


@everything
def test_only_privileged_containers_mount_on_the_host(values: tuple[str, ...]) -> None:
    """No schema says so: the API server refuses others (validateMountPropagation in Kubernetes' validation)."""
    for spec in pods(rendered(*values)).values():
        for container in containers(spec):
            privileged = container["securityContext"].get("privileged", False)
            for mount in container["volumeMounts"]:
                assert privileged or mount.get("mountPropagation") != "Bidirectional", container["name"]


@everything
def test_selectors_select_the_pods_that_they_mean(values: tuple[str, ...]) -> None:
    documents = rendered(*values)
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in documents
        if each["metadata"]["name"] in pods(documents) and "template" in each.get("spec", {})
    }
    for document in documents:
        selector = document.get("spec", {}).get("selector") or document.get("spec", {}).get("podSelector")
        if document["kind"] in ("Service", "DaemonSet", "Deployment", "StatefulSet", "PodDisruptionBudget"):
            wanted = selector.get("matchLabels", selector)
            chosen = [name for name, have in labels.items() if wanted.items() <= have.items()]
            assert chosen == [document["metadata"]["name"]]


def test_every_dashboard_is_a_config_map_that_grafanas_side_car_finds() -> None:
    documents = rendered(MEMBERS, "dashboards.enabled=true")
    files = sorted((CHART.parents[1] / "grafana").glob("*.json"))
    assert files
    for file in files:
        found = one(documents, "ConfigMap", f"ciliate-dashboard-{file.stem}")
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert json.loads(found["data"][file.name]) == json.loads(file.read_text())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((), "etcd.members"),
        (("etcd.members={10.0.0.1,10.0.0.2}",), "1, 3 or 5"),
        (("etcd.members={10.0.0.1,node2,node3}",), "etcd.members"),
        (("etcd.enabled=false",), "etcd.endpoints"),
        ((MEMBERS, "routingMode=bridged"), "routingMode"),
        ((MEMBERS, "autoDirectNodeRoutes=true"), "needs routingMode: native"),
        ((MEMBERS, "ipv4.enabled=false"), "at least one family"),
        ((MEMBERS, "ipam.mode=crd"), "ipam.mode"),
        ((MEMBERS, "tunnelPort=70000"), "tunnelPort"),
        ((MEMBERS, "MTU=600"), "MTU"),
        ((MEMBERS, "tunelPort=8472"), "tunelPort"),
        ((MEMBERS, "hubble.relay.replica=2"), "replica"),
        ((MEMBERS, "tls.method=helm"), "tls.method"),
        ((MEMBERS, "maglev.tableSize=1000"), "maglev.tableSize"),
        ((MEMBERS, "loadBalancer.dsrDispatch=ipip"), "dsrDispatch"),
    ],
)
def test_bad_values_are_refused_by_name(values: tuple[str, ...], words: str) -> None:
    assert words in refused(*values)


def test_every_value_is_described_and_known_to_the_schema() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    schema: Any = yaml.safe_load((CHART / "values.schema.json").read_text())
    defaults: Any = yaml.safe_load("\n".join(lines))
    assert set(schema["properties"]) == set(defaults) | {"global"}
    for name, value in defaults.items():
        if isinstance(value, dict):
            assert set(schema["properties"][name]["properties"]) == set(value), name


def test_versions_are_the_projects() -> None:
    import services

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == services.__version__
    images = {container["image"] for spec in pods(rendered(MEMBERS)).values() for container in spec["containers"]}
    assert all(image.endswith(f":{services.__version__}") for image in images)


def test_raw_manifests_are_the_charts() -> None:
    made = helm("template", "ciliate", str(CHART), "-n", NAMESPACE, "-f", str(MANIFESTS / "values.yaml"))
    assert made.returncode == 0, made.stderr
    assert (MANIFESTS / "ciliate.yaml").read_text() == made.stdout, "run ./dev manifests"
