"""The images' recipe. No engine runs where the tests do, so its steps are tried one by one: what it copies is there,
what it installs can be installed, and the wheel that it builds holds everything that a process reads."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.unit.deploy.chart import MEMBERS, ROOT, pods, rendered

DOCKERFILE = (ROOT / "deploy/images/Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STAGES = {name: base for base, name in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)}


def test_there_is_an_image_for_every_pod_of_the_chart() -> None:
    images = {
        container["image"].partition(":")[0].removeprefix("ciliate/ciliate-")
        for spec in pods(rendered(MEMBERS)).values()
        for container in spec["containers"]
    }
    assert images <= set(STAGES)
    for process in images - {"etcd"}:
        assert f'ENTRYPOINT ["ciliate-{process}"]' in DOCKERFILE
        assert f"ciliate-{process}" in PROJECT["scripts"]


def test_stages_build_on_what_there_is() -> None:
    for base in STAGES.values():
        assert base in STAGES or base == "debian:12-slim"
    for source in re.findall(r"COPY --from=(\S+)", DOCKERFILE):
        assert source in STAGES


def test_everything_that_is_copied_exists() -> None:
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source


def test_extras_are_the_projects_and_pinned() -> None:
    for extras in re.findall(r"'\.\[([a-z,]+)\]'", DOCKERFILE):
        for extra in extras.split(","):
            assert extra in PROJECT["optional-dependencies"], extra
    files = (ROOT / "requirements.lock", ROOT / "deploy/images/constraints.txt")
    lines = [line for file in files for line in file.read_text().splitlines() if "==" in line]
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    needed = list(PROJECT["dependencies"])
    for extra in ("identity", "agent", "relay", "operator", "cli"):
        needed += PROJECT["optional-dependencies"][extra]
    names = {re.split(r"[\[<>= ]", each)[0].lower().replace("_", "-") for each in needed}
    assert names <= pinned


def test_every_installation_is_pinned() -> None:
    for command in re.findall(r"pip install [^&\n]+", DOCKERFILE):
        assert "-c requirements.lock -c deploy/images/constraints.txt" in command


def test_images_run_without_root_where_they_can() -> None:
    for stage in ("identity", "relay", "operator", "etcd"):
        text = DOCKERFILE[DOCKERFILE.index(f" AS {stage}\n") :]
        assert "USER 65532:65532" in text[: text.index("ENTRYPOINT")], stage


@pytest.mark.skipif(shutil.which("apt-cache") is None, reason="no Debian: package names cannot be looked up")
def test_debian_has_the_packages() -> None:
    names = {
        word
        for command in re.findall(r"apt-get install ([^>]+)>", DOCKERFILE)
        for word in command.replace("\\\n", " ").split()
        if not word.startswith("-")
    }
    assert {"python3", "python3-bpfcc", "libbpf1"} <= names
    found = subprocess.run(["apt-cache", "show", *names], capture_output=True, text=True, check=False, timeout=60)
    assert names == set(re.findall(r"^Package: (\S+)$", found.stdout, re.MULTILINE)), found.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` of the recipe would install, built from the files that it copies."""
    place = tmp_path_factory.mktemp("image")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / name)
    shutil.copytree(ROOT / "services", place / "services", ignore=shutil.ignore_patterns("__pycache__"))
    arguments = ["--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(place / "out"), str(place)]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", *arguments],
        check=True,
        capture_output=True,
        timeout=100,
    )
    return next((place / "out").glob("*.whl"))


def test_the_wheel_has_all_modules_stubs_and_data(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    ours = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "services").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix not in (".md", ".pyi", "")
    }
    assert ours <= inside, sorted(ours - inside)[:10]


def test_the_agent_finds_its_sources_where_the_image_puts_them() -> None:
    from services.agent.datapath.program import SOURCE_DIR

    module = Path("lib/python3.11/site-packages/services/agent/datapath/program.py")
    beside = module.parents[3] / SOURCE_DIR.name
    assert f"COPY bpf /opt/ciliate/{beside}" in DOCKERFILE
