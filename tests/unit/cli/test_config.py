"""`config set` changes one value and nothing else, after the agent's own check; `config view` knows origins."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from services.agent.config import Config
from services.cli.app import app
from services.cli.config import changed, checked, unknown
from services.common import config as common
from services.common.errors import Conflict, Invalid, NotFound
from tests.unit.cli.api_server import serving

FILE = """\
# our own words
policy_max: 65536   # more than enough
node_address:
  - 10.0.0.1
  - fd00::1

# the end
masquerade: true
"""


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("policy_max", "131072", FILE.replace("65536", "131072")),
        ("masquerade", "false", FILE.replace("true", "false")),
        ("node_address", "[10.0.0.9]", FILE.replace(":\n  - 10.0.0.1\n  - fd00::1\n", ': ["10.0.0.9"]\n')),
        ("mtu", "1400", f"{FILE}mtu: 1400\n"),
        ("lb_proxy_name", "", f'{FILE}lb_proxy_name: ""\n'),
    ],
)
def test_only_that_value_changes(name: str, value: str, expected: str) -> None:
    text = changed(FILE, name, value)
    assert text == expected
    checked(text, "test")
    assert yaml.safe_load(text)[name] == (yaml.safe_load(value) if value else "")


def test_of_an_empty_file_and_of_none() -> None:
    assert changed("", "mtu", "1400") == "mtu: 1400\n"
    assert changed("# only words", "mtu", "1400") == "# only words\nmtu: 1400\n"
    with pytest.raises(Invalid, match="mtu: not YAML"):
        changed("", "mtu", "[1")
    with pytest.raises(Invalid, match="does not hold a mapping"):
        changed("- a\n", "mtu", "1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("policy_maxx: 1\n", "unknown key policy_maxx; did you mean policy_max"),
        ("policy_max: 3\n", "policy_max: .*greater than or equal to 1024"),
        ("routing_mode: magic\n", "routing_mode: .*'tunnel' or 'native'"),
        ("insecure: true\ntls_ca: x\n", "insecure: cannot be combined"),
    ],
)
def test_the_agent_s_own_check(text: str, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        checked(text, "the file")


def test_a_file_is_replaced_whole_and_only_when_it_is_right(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(FILE, encoding="utf-8")
    path.chmod(0o640)
    run = CliRunner().invoke
    assert (
        run(app, ["config", "set", "policy_max", "131072", "--file", str(path)], catch_exceptions=False).exit_code == 0
    )
    assert "policy_max: 131072   # more than enough" in path.read_text(encoding="utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    before = path.read_text(encoding="utf-8")
    with pytest.raises(Invalid, match="did you mean policy_max"):
        run(app, ["config", "set", "policy_mx", "1", "--file", str(path)], catch_exceptions=False)
    shown = run(app, ["config", "set", "mtu", "1400", "--file", str(path), "--dry-run"], catch_exceptions=False)
    assert "mtu: 1400" in shown.stdout
    assert path.read_text(encoding="utf-8") == before
    assert [each.name for each in tmp_path.iterdir()] == ["agent.yaml"]


async def test_the_config_map_of_a_cluster(tmp_path: Path) -> None:
    path = "/api/v1/namespaces/kube-system/configmaps/ciliate-agent"
    async with serving(tmp_path) as (server, kubeconfig):
        metadata = {"name": "ciliate-agent", "namespace": "kube-system", "resourceVersion": "7"}
        document = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": {"config.yaml": FILE, "b": "c"},
        }
        server.objects[path] = document
        words = ["config", "set", "--kubeconfig", kubeconfig]

        def run(*more: str) -> object:
            return CliRunner().invoke(app, [*words, *more], catch_exceptions=False)

        await asyncio.to_thread(run, "mtu", "1400")
        assert server.objects[path]["data"] == {"config.yaml": f"{FILE}mtu: 1400\n", "b": "c"}
        await asyncio.to_thread(run, "mtu", "1300", "--dry-run")
        assert "mtu: 1400" in server.objects[path]["data"]["config.yaml"]
        with pytest.raises(NotFound, match=r"has no relay\.yaml; it has b, config\.yaml"):
            await asyncio.to_thread(run, "mtu", "1300", "--key", "relay.yaml")
        original = server.handle

        async def racing(request: object) -> object:
            answer = await original(request)  # type: ignore[arg-type]
            server.objects[path] = {**document, "metadata": {**metadata, "resourceVersion": "8"}}
            return answer

        server.objects[path] = document
        server.react = racing
        with pytest.raises(Conflict, match="somebody changed it at the same time"):
            await asyncio.to_thread(run, "mtu", "1300")


def test_origins(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("insecure: true\nnode_name: a\nidentity_target: i:1\npod_cidr4: 10.1.0.0/24\nmtu: 1300\n")
    environment = {"CILIATE_AGENT_NODE_ADDRESS": "10.0.0.1", "CILIATE_AGENT_MTU": "1400"}
    flags = ["--config", str(path), "--policy-max", "2048"]
    found = common.load(Config, flags, process="ciliate-agent", environment=environment)
    by_name = {each.name: each for each in common.settings(found)}
    assert (by_name["mtu"].value, by_name["mtu"].origin) == ("1400", "environment CILIATE_AGENT_MTU")
    assert (by_name["policy_max"].value, by_name["policy_max"].origin) == ("2048", "flag --policy-max")
    assert by_name["node_name"].origin == f"file {path}"
    assert (by_name["masquerade"].value, by_name["masquerade"].origin) == ("true", "default")
    assert by_name["node_address"].value == '["10.0.0.1"]'
    assert set(by_name) == set(Config.model_fields)


def test_an_unknown_name() -> None:
    assert unknown("policy_mx", ["policy_max"]) == "unknown name policy_mx; did you mean policy_max?"
    assert "--all" in unknown("zzz", ["policy_max"])
