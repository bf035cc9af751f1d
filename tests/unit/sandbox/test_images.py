"""Which program stands for which image, and what is said about others."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import Invalid
from services.sandbox.images import PodPlace, check_images, image_of, repository

PLACE = PodPlace("web-1", "default", "/run/p", "/run/hosts")


def pod(image: str, **container: Any) -> dict[str, Any]:
    return {"kind": "Pod", "spec": {"containers": [{"image": image, **container}]}}


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("nginx", "nginx"),
        ("nginx:1.27", "nginx"),
        ("docker.io/library/nginx:1.27@sha256:abc", "nginx"),
        ("registry.k8s.io/coredns/coredns:v1.11.3", "coredns/coredns"),
        ("localhost:5000/nginxdemos/hello:plain-text", "nginxdemos/hello"),
        ("curlimages/curl", "curlimages/curl"),
    ],
)
def test_registry_tag_and_digest_do_not_matter(image: str, name: str) -> None:
    assert repository(image) == name


def test_an_unknown_image_is_an_error_that_names_the_field_and_the_known_ones() -> None:
    with pytest.raises(Invalid) as caught:
        check_images(pod("redis:7"), "app.yaml:3")
    message = str(caught.value)
    assert message.startswith("app.yaml:3: spec.containers[0].image: ")
    assert "'redis:7'" in message
    assert "nginxdemos/hello" in message


def test_a_deployment_names_the_field_in_its_template() -> None:
    document = {"kind": "Deployment", "spec": {"template": {"spec": pod("redis")["spec"]}}}
    with pytest.raises(Invalid, match=r"spec\.template\.spec\.containers\[0\]\.image"):
        check_images(document, "f")


def test_what_stands_for_an_image_is_told() -> None:
    assert check_images(pod("nginxdemos/hello:plain-text"), "f") == [
        "nginxdemos/hello:plain-text -> the local nginx, answering in plain text"
    ]


def test_a_shell_runs_its_command_and_waits_without_one() -> None:
    image = image_of("alpine:3", "f")
    assert image.build(PLACE, {"command": ["sh", "-c"], "args": ["true"]}).arguments == ("sh", "-c", "true")
    assert image.build(PLACE, {}).arguments == ("sleep", "infinity")


def test_a_command_for_a_server_image_is_refused() -> None:
    with pytest.raises(Invalid, match=r"containers\[0\]\.command: 'sh -c true' cannot be run"):
        check_images(pod("nginx", command=["sh", "-c", "true"]), "f")


def test_nginx_keeps_to_its_pods_folder() -> None:
    program = image_of("nginx", "f").build(PLACE, {})
    (text,) = program.files.values()
    assert "Server name: web-1" in text
    assert all("/run/p/" in line for line in text.splitlines() if "_path" in line or "_log" in line)


def test_the_dns_server_reads_its_records_again_on_a_signal() -> None:
    program = image_of("registry.k8s.io/coredns/coredns:v1", "f").build(PLACE, {})
    assert program.reload_signal == 1
    assert "--addn-hosts=/run/hosts" in program.arguments
