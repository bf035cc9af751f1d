"""A folder of manifests: what is in force after which change, told as differences."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from services.agent.sources.folder import FolderSource
from services.agent.sources.manifests import ManifestError, parse
from services.common.errors import Invalid
from services.model.objects import Deleted, ObjectKey, Update, Upserted


def pod(name: str, label: str = "a") -> str:
    return f"apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {label}}}\n"


def key(name: str) -> ObjectKey:
    return ObjectKey("Pod", "default", name)


def said(updates: list[Update]) -> list[str]:
    found = []
    for update in updates:
        match update:
            case Upserted(object=thing):
                found.append(f"+{thing.key.name}")
            case Deleted(key=gone):
                found.append(f"-{gone.name}")
            case other:
                found.append(type(other).__name__)
    return sorted(found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "objects"
    path.mkdir()
    return path


@pytest.fixture
def source(folder: Path, tmp_path: Path) -> FolderSource:
    return FolderSource(folder, tmp_path / "kept")


def test_documents_of_a_file_and_of_a_list() -> None:
    text = pod("a") + "---\n---\napiVersion: v1\nkind: List\nitems:\n- " + pod("b").replace("\n", "\n  ") + "\n"
    assert list(parse(text, "f.yaml")) == [key("a"), key("b")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (pod("a") + "---\nkind: [\n", "f.yaml:8: not YAML"),
        (pod("a") + "---\n" + pod("b").replace("app: a", "app: 1"), "f.yaml:11: metadata.labels.app: must be a string"),
        ("- 1\n", "f.yaml:1: document: must be a mapping, not a list"),
        (pod("a") + "---\n" + pod("a"), "f.yaml:7: Pod default/a stands in this file twice"),
        ("apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: x\n", "f.yaml:3: metadata.name: is required"),
        ("kind: Pod\nspec: {a: 1,\n a: 2}\n", "f.yaml:3: not YAML: the key 'a' stands here twice; keep one"),
        ("a: !!python/object:os.system x\n", "f.yaml:1: not YAML"),
        ("apiVersion: v1\nkind: List\nitems:\n- kind: Pod\n", "f.yaml:4: items[0].apiVersion: is required"),
    ],
)
def test_a_broken_file_is_reported_with_line_and_field(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(text, "f.yaml")
    assert str(caught.value).startswith(message)


def test_only_differences_are_told(folder: Path, source: FolderSource) -> None:
    (folder / "a.yaml").write_text(pod("a") + "---\n" + pod("b"))
    (folder / "ignored.txt").write_text("x: [")
    (folder / ".hidden.yaml").write_text("x: [")
    assert said(source.reload(None)) == ["+a", "+b"]
    assert said(source.reload(None)) == []
    (folder / "a.yaml").write_text(pod("a", "other") + "---\n" + pod("b"))
    assert said(source.reload(None)) == ["+a"]
    (folder / "a.yaml").unlink()
    assert said(source.reload({folder / "a.yaml"})) == ["-a", "-b"]


def test_an_object_that_moves_to_another_file_stays(folder: Path, source: FolderSource) -> None:
    (folder / "a.yaml").write_text(pod("a"))
    source.reload(None)
    (folder / "a.yaml").rename(folder / "b.yaml")
    assert said(source.reload({folder / "a.yaml", folder / "b.yaml"})) == []


def test_a_broken_file_keeps_its_last_good_version(folder: Path, source: FolderSource) -> None:
    (folder / "a.yaml").write_text(pod("a"))
    source.reload(None)
    (folder / "a.yaml").write_text(pod("a") + "\n: [")
    assert said(source.reload(None)) == []
    assert "a.yaml:" in source.errors[str(folder / "a.yaml")]
    (folder / "a.yaml").write_text(pod("a", "b"))
    assert said(source.reload(None)) == ["+a"]
    assert not source.errors


def test_the_last_good_version_outlives_a_restart(folder: Path, source: FolderSource, tmp_path: Path) -> None:
    (folder / "a.yaml").write_text(pod("a"))
    source.reload(None)
    (folder / "a.yaml").write_text("{")
    source.reload(None)
    again = FolderSource(folder, tmp_path / "kept")
    assert said(again.reload(None)) == ["+a"]
    assert again.errors
    (folder / "a.yaml").write_text("{{")
    assert said(again.reload(None)) == []
    (folder / "a.yaml").unlink()
    assert said(again.reload(None)) == ["-a"]
    assert not again.errors
    assert not list((tmp_path / "kept").iterdir())


def test_one_object_in_two_files_is_the_second_ones_error(folder: Path, source: FolderSource) -> None:
    (folder / "a.yaml").write_text(pod("a"))
    (folder / "b.yaml").write_text(pod("a", "b"))
    assert said(source.reload(None)) == ["+a"]
    assert "is also in" in source.errors[str(folder / "b.yaml")]
    (folder / "a.yaml").unlink()
    assert said(source.reload({folder / "a.yaml"})) == ["+a"]
    assert not source.errors


async def test_a_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="objects_dir"):
        await anext(FolderSource(tmp_path / "none", tmp_path).updates())


class Reader:
    """Collects updates until a condition holds."""

    def __init__(self, updates: AsyncIterator[Update]) -> None:
        self._updates = updates
        self.seen: list[Update] = []

    async def until(self, enough: Callable[[list[str]], bool]) -> list[str]:
        async with asyncio.timeout(5):
            while not enough(said(self.seen)):
                self.seen.append(await anext(self._updates))
        found, self.seen = said(self.seen), []
        return found


async def test_changes_are_seen_when_files_are_complete(folder: Path, source: FolderSource, tmp_path: Path) -> None:
    (folder / "a.yaml").write_text(pod("a"))
    updates = source.updates()
    reader = Reader(updates)
    assert await reader.until(lambda seen: "Synced" in seen) == ["+a", "Synced"]
    # Written in place, in two halves: only the whole file counts.
    with (folder / "b.yaml").open("w") as file:
        file.write(pod("b")[:20])
        file.flush()
        await asyncio.sleep(0.02)
        file.write(pod("b")[20:])
    assert await reader.until(lambda seen: "+b" in seen) == ["+b"]
    # Replaced atomically.
    (tmp_path / "fresh").write_text(pod("a", "new"))
    (tmp_path / "fresh").rename(folder / "a.yaml")
    assert await reader.until(lambda seen: "+a" in seen) == ["+a"]
    # Linked into place.
    (tmp_path / "linked").write_text(pod("l"))
    (folder / "l.yaml").symlink_to(tmp_path / "linked")
    assert await reader.until(lambda seen: "+l" in seen) == ["+l"]
    # A folder made later, filled at once.
    (folder / "sub").mkdir()
    (folder / "sub" / "c.yaml").write_text(pod("c"))
    assert await reader.until(lambda seen: "+c" in seen) == ["+c"]
    (folder / "sub" / "c.yaml").unlink()
    (folder / "sub").rmdir()
    (folder / "b.yaml").unlink()
    assert await reader.until(lambda seen: len(seen) >= 2) == ["-b", "-c"]
    assert not source.errors
    await updates.aclose()  # type: ignore[attr-defined]
