"""Manifests that people wrote: defaults, and mistakes that are found with file, line and field."""

from __future__ import annotations

import pytest

from services.common.errors import Invalid
from services.model.objects import ObjectKey
from services.sandbox.checks import EXAMPLE, example
from services.sandbox.manifests import parse
from services.sandbox.system import system_manifests

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: web
          image: nginx
          ports: [{containerPort: 80}]
"""


def test_the_example_and_the_system_objects_are_read() -> None:
    keys = {str(each.key) for each in example()}
    assert keys == {
        "Deployment default/my-webapp",
        "Service default/my-webapp-svc",
        "CiliumNetworkPolicy default/deny-all-ingress-to-webapp",
        "Deployment default/frontend",
        "Deployment default/visitor",
    }
    assert EXAMPLE.is_dir()
    assert ObjectKey("Service", "kube-system", "kube-dns") in {each.key for each in system_manifests()}


def test_a_namespace_is_filled_in_only_where_none_is_given() -> None:
    text = (
        DEPLOYMENT
        + "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: other}\nspec: {ports: [{port: 1}]}\n"
    )
    assert [each.key.namespace for each in parse(text, "f.yaml", "team")] == ["team", "other"]


def test_cluster_wide_objects_get_no_namespace_and_namespaces_get_their_name_label() -> None:
    (namespace,) = parse("apiVersion: v1\nkind: Namespace\nmetadata: {name: team, labels: {a: b}}", "f")
    assert namespace.key == ObjectKey("Namespace", "", "team")
    assert namespace.document["metadata"]["labels"] == {"a": "b", "kubernetes.io/metadata.name": "team"}


def test_empty_documents_are_skipped_and_origin_names_the_line() -> None:
    found = parse(f"---\n# nothing\n---{DEPLOYMENT}", "f.yaml")
    assert [each.origin for each in found] == ["f.yaml:4"]


@pytest.mark.parametrize(
    ("change", "line", "field", "words"),
    [
        (("kind: Deployment", "kind: DaemonSet"), 3, "kind", "'DaemonSet' is not known"),
        (("apps/v1", "apps/v1beta1"), 2, "apiVersion", "wants 'apps/v1'"),
        (("{name: web}", "{name: Web_1}"), 4, "metadata.name", "'Web_1' is no name"),
        (("replicas: 2", "replicas: two"), 6, "spec.replicas", "whole number"),
        (("matchLabels: {app: web}", "matchLabels: {app: other}"), 7, "spec.selector.matchLabels", "does not select"),
        (("{app: web}}\n    spec", "{app: 7}}\n    spec"), 9, "spec.template.metadata.labels.app", "no label value"),
        (("image: nginx", "imagine: nginx"), 12, "spec.template.spec.containers[0].image", "is missing"),
        (("containerPort: 80", "containerPort: 80000"), 14, "spec.template.spec.containers[0].ports[0]", "1 to 65535"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_names_file_line_and_field(change: tuple[str, str], line: int, field: str, words: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse(DEPLOYMENT.replace(*change), "web.yaml")
    message = str(caught.value)
    assert message.startswith(f"web.yaml:{line}: {field}"), message
    assert words in message


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        parse(DEPLOYMENT.replace("replicas: 2", "replicas: -1") + "---\nkind: Foo\n---\n- 1\n---\nkind: [1]\n", "f")
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(
    "text", ["a: [1", "a: b: c", "\x00", "a: 1\na: 2"], ids=["bracket", "colon", "control", "twice"]
)
def test_what_is_no_yaml_is_said_to_be_none(text: str) -> None:
    with pytest.raises(Invalid, match="not YAML"):
        parse(text, "f.yaml")


def test_a_service_with_several_ports_names_each() -> None:
    text = (
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  ports:\n  - {port: 1, name: a}\n  - {port: 2}\n"
    )
    with pytest.raises(Invalid, match=r"f:7: spec.ports\[1\].name: is missing"):
        parse(text, "f")


def test_a_policy_that_agents_would_refuse_is_refused_with_its_line() -> None:
    text = (EXAMPLE / "policy.yaml").read_text()
    with pytest.raises(Invalid) as caught:
        parse(
            text.replace('path: "/api/v1/users"', 'path: "/api/(v1"').replace("protocol: TCP", "protocol: TPC"),
            "p.yaml",
        )
    protocol, *_, path = str(caught.value).splitlines()
    assert protocol.startswith("p.yaml:18: spec.ingress[0].toPorts[0].ports[0].protocol: ")
    assert path.startswith("p.yaml:22: spec.ingress[0].toPorts[0].rules.http[0].path: ")


def test_brackets_without_end_are_refused() -> None:
    with pytest.raises(Invalid, match="bomb: not YAML"):
        parse("[" * 100_000, "bomb")
