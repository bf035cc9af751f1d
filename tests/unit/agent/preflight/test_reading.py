"""What preflight reads of a node: settings, ports, other networks, kube-proxy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.agent.preflight import conflicts, node
from services.agent.preflight.findings import Finding, Status, judged

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue\n"


def by_name(found: list[Finding]) -> dict[str, Finding]:
    return {each.name: each for each in found}


def test_what_is_not_needed_never_fails() -> None:
    assert judged("a", "b", "", needed=True).status is Status.OK
    assert judged("a", "b", "broken", needed=True, fix="do").status is Status.FAILED
    assert judged("a", "b", "broken", needed=False).status is Status.WARNING


def write(root: Path, **values: str) -> None:
    for name, value in values.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value, encoding="ascii")


def test_settings(tmp_path: Path) -> None:
    write(
        tmp_path,
        net__ipv4__conf__all__rp_filter="0\n",
        net__ipv4__conf__eth0__rp_filter="1\n",
        net__ipv4__ip_forward="0\n",
        net__ipv6__conf__all__disable_ipv6="1\n",
        net__core__bpf_jit_enable="0\n",
    )
    found = by_name(list(node.settings(tmp_path)))
    assert found["reverse path filter"].detail == "strict on eth0"
    assert found["forwarding of IPv4"].status is Status.OK, "the agent can set it"
    assert found["forwarding of IPv6"].status is Status.WARNING, "it is not there"
    assert found["IPv6 is on"].status is Status.WARNING
    assert found["eBPF compiler of the kernel (JIT)"].detail == "is off"


def test_ports(tmp_path: Path) -> None:
    (tmp_path / "udp").write_text(f"{HEAD}   0: 00000000:2118 00000000:0000 07\n", encoding="ascii")
    listening = "   0: 00000000:1094 00000000:0000 0A\n   1: 0100007F:7918 00000000:0000 0A\n"
    (tmp_path / "tcp6").write_text(f"{HEAD}{listening}   2: 0100007F:7530 0100007F:0050 01\n", encoding="ascii")
    found = list(node.ports(node.Wants(overlay_device="none"), tmp_path))
    assert [each.status for each in found] == [Status.FAILED, Status.WARNING, Status.WARNING]
    assert found[2].detail == "programs listen on 31000", "30000 is the near end of a connection"
    free = list(node.ports(node.Wants(tunnel_port=4789, hubble_port=4299, overlay_device="none"), tmp_path))
    assert [each.status for each in free][:2] == [Status.OK, Status.OK]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ""),
        ({"05-ciliate.conflist": '{"plugins": [{"type": "ciliate-cni"}]}'}, ""),
        ({"05-ciliate.conflist": '{"plugins": [{"type": "ciliate-cni"}]}', "10-flannel.conflist": "{}"}, ""),
        ({"10-flannel.conflist": '{"cniVersion": "1.0.0"}'}, "10-flannel.conflist"),
        ({"05-ciliate.conflist": '{"type": "ciliate-cni"}', "00-calico.conf": "not json"}, "00-calico.conf"),
        ({"readme.txt": "x", "old.conflist.bak": "{}"}, ""),
    ],
)
def test_cni_configurations(files: dict[str, str], words: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (found,) = conflicts.cni_configurations(tmp_path)
    assert (found.status is Status.OK) is (words == "")
    assert words in found.detail


def test_interfaces_and_pins_of_others(tmp_path: Path) -> None:
    assert conflicts.links(["lo", "eth0", "ciliate_vxlan", "cali", "lxc0"]).status is Status.OK
    found = conflicts.links(["lo", "cilium_host", "cali1234567890a", "kube-ipvs0"])
    assert found.detail.startswith("Calico, Cilium, kube-proxy (IPVS): ")
    assert conflicts.pins(tmp_path).status is Status.OK
    (tmp_path / "cilium").mkdir()
    assert str(tmp_path / "cilium") in conflicts.pins(tmp_path).detail


def test_kube_proxy() -> None:
    assert conflicts.kube_proxy(["table ip nat {", "chain POSTROUTING {"]).status is Status.OK
    found = conflicts.kube_proxy(["-A KUBE-SVC-ABC -j KUBE-SEP-DEF", "table ip kube-proxy {"])
    assert (found.status, found.detail) == (Status.WARNING, "2 rules")


def test_findings_are_plain_json() -> None:
    document = Finding("a", "b", Status.OK).document()
    assert json.loads(json.dumps(document)) == {"area": "a", "name": "b", "status": "ok", "detail": "", "fix": ""}
