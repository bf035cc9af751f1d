"""Addresses of servers: what gRPC would understand as somebody else's is refused."""

from __future__ import annotations

import pytest

from services.common.config import BaseConfig, load
from services.common.errors import Invalid
from services.common.targets import TargetSetting, check_target

GOOD = ["relay.kube-system.svc:4245", "10.0.0.1:1", "[fd00::1]:65535", "unix:///run/x.sock", "dns:///relay:4245"]
BAD = {
    "relay:99999": "has no port",
    "relay:0": "has no port",
    "relay:": "has no port",
    "relay": "is no address",
    "http://relay:4245": "is no address",
    "::1:4245": "is no address",
    "unix://": "names no socket",
    "relay:4\u00b2": "has no port",
}


class Settings(BaseConfig):
    relay_target: TargetSetting = ""


def said(target: str) -> str:
    flags = ["--insecure=true", f"--relay-target={target}"]
    return load(Settings, flags, process="ciliate-test", environment={}).relay_target


@pytest.mark.parametrize("target", GOOD)
def test_good_ones(target: str) -> None:
    assert check_target("--relay", target) == target
    assert said(target) == target


@pytest.mark.parametrize("target", BAD)
def test_bad_ones_are_refused_with_the_field_and_the_fix(target: str) -> None:
    with pytest.raises(Invalid, match=f"^--relay: .*{BAD[target]}.*; write host:port"):
        check_target("--relay", target)
    with pytest.raises(Invalid, match=f"relay.target.*{BAD[target]}.*; write host:port"):
        said(target)


def test_services_of_kubernetes_are_left_to_their_reader() -> None:
    target = "k8s://kube-system/ciliate-identity:4250"
    assert said(target) == target
