"""The three doors of configuration: precedence, and what each of them refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from services.common.config import BaseConfig, load
from services.common.errors import Invalid


class Sample(BaseConfig):
    """A process for these tests."""

    node_name: str = Field("node", description="the node")
    port: int = Field(1, ge=1, le=65535, description="a port")
    listen: list[str] = Field(default_factory=list, description="addresses")


def read(*arguments: str, environment: dict[str, str] | None = None) -> Sample:
    return load(Sample, arguments, process="ciliate-sample", environment=environment or {})


def test_flags_beat_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "sample.yaml"
    file.write_text("insecure: true\nnode_name: file\nport: 10\nlisten: [a, b]\n")
    environment = {"CILIATE_SAMPLE_CONFIG": str(file), "CILIATE_SAMPLE_PORT": "20", "OTHER": "x"}
    assert read(environment=environment).port == 20
    config = read("--port", "30", environment=environment)
    assert (config.port, config.node_name, config.listen) == (30, "file", ["a", "b"])
    assert read("--listen", "x", "--listen=y", environment=environment).listen == ["x", "y"]


@pytest.mark.parametrize(
    ("arguments", "environment", "file", "expected"),
    [
        (["--insecure", "--nod-name=x"], {}, None, "unknown flag --nod-name; did you mean --node-name?"),
        (["--insecure"], {"CILIATE_SAMPLE_PROT": "1"}, None, "did you mean CILIATE_SAMPLE_PORT?"),
        ([], {}, "insecure: true\nnodename: x", "unknown key nodename; did you mean node_name? (in "),
        (["--insecure", "--port=0"], {}, None, "port: Input should be greater than or equal to 1 (from --port)"),
        (["--insecure"], {"CILIATE_SAMPLE_PORT": "x"}, None, "(from CILIATE_SAMPLE_PORT)"),
        ([], {}, None, "tls_ca, tls_cert and tls_key are all needed"),
        (["--insecure", "--tls-ca=x"], {}, None, "cannot be combined"),
        ([], {}, "[1]", "must hold a mapping"),
        ([], {}, "a: [", "is not YAML"),
        ([], {}, "insecure: true\ninsecure: false", "the key 'insecure' stands here twice"),
        ([], {}, "[" * 100_000, "is not YAML"),
    ],
)
def test_refusals_name_the_field_and_the_door(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], file: str | None, expected: str
) -> None:
    if file is not None:
        (tmp_path / "c.yaml").write_text(file)
        arguments = [*arguments, "--config", str(tmp_path / "c.yaml")]
    with pytest.raises(Invalid) as caught:
        read(*arguments, environment=environment)
    assert expected in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(Invalid, match="cannot read /nowhere"):
        read("--config", "/nowhere")
