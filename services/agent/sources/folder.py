"""Objects from a folder of manifests: what a cluster without an API server has.

In: `*.yaml`, `*.yml`, `*.json` below a folder, several documents per file, watched with inotify. Out: updates. A file
that cannot be read is reported (file, line, field) and its last good version stays in force, across restarts too: it
is kept aside for as long as the file is broken, because a half-edited policy must not open what it closed.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from services.agent.sources.inotify import FolderWatch
from services.agent.sources.manifests import ManifestError, parse
from services.common.errors import Invalid
from services.common.log import get_logger
from services.model.objects import Deleted, KubeObject, ObjectKey, Synced, Update, Upserted

SUFFIXES = (".yaml", ".yml", ".json")
MAX_FILE_BYTES = 16 << 20

Objects = dict[ObjectKey, KubeObject]


class FolderSource:
    """A `Source`. `kept` is the folder for last good versions of files that are broken now."""

    def __init__(self, folder: Path, kept: Path) -> None:
        self._folder, self._kept = folder, kept
        self._files: dict[Path, Objects] = {}
        self._texts: dict[Path, bytes] = {}
        self._owners: dict[ObjectKey, Path] = {}
        self._errors: dict[str, str] = {}
        self._log = get_logger("source.folder")

    @property
    def name(self) -> str:
        return "objects"

    @property
    def errors(self) -> Mapping[str, str]:
        """File -> what is wrong with it; empty = every file is in force as it stands."""
        return self._errors

    async def updates(self) -> AsyncIterator[Update]:
        """See `Source`. Raises `Invalid` when the folder is missing, `Unavailable` when it cannot be watched."""
        if not self._folder.is_dir():
            raise Invalid(f"objects_dir: {self._folder} is not a folder; create it")
        with FolderWatch(self._folder) as watch:
            for update in self.reload(None):
                yield update
            yield Synced(self.name)
            while True:
                for update in self.reload(await watch.changes()):
                    yield update

    def reload(self, changed: set[Path] | None) -> list[Update]:
        """Look at files again (None = all) and return what differs from what was in force."""
        if changed is None:
            present = set(self._scan())
            suspects = present | set(self._files)
        else:
            suspects = {path for path in changed if self._is_manifest(path)}
        # A file that was refused because another one holds the same object may be right by now.
        suspects |= {Path(file) for file in self._errors}
        before = self._in_force(suspects)
        exists = {path for path in suspects if path.is_file()}
        for path in suspects - exists:
            self._forget(path)
        for path in sorted(exists):
            self._load(path)
        return _difference(before, self._in_force(suspects))

    def _in_force(self, paths: Iterable[Path]) -> Objects:
        return {key: thing for path in paths if path in self._files for key, thing in self._files[path].items()}

    def _load(self, path: Path) -> None:
        try:
            text = _read(path)
            self._accept(path, text)
        except FileNotFoundError:
            self._forget(path)
        except Invalid as error:
            self._refuse(path, str(error))
        else:
            if self._errors.pop(str(path), None):
                self._log.info("manifest repaired", file=str(path))
                self._aside(path).unlink(missing_ok=True)

    def _accept(self, path: Path, text: str) -> None:
        objects = parse(text, str(path))
        for key in objects:
            if self._owners.get(key, path) != path:
                raise ManifestError(str(path), 1, f"{key} is also in {self._owners[key]}; keep one")
        self._drop(path)
        self._files[path], self._texts[path] = objects, zlib.compress(text.encode(), 1)
        self._owners.update(dict.fromkeys(objects, path))

    def _refuse(self, path: Path, message: str) -> None:
        known = path in self._files or self._recall(path)
        if known:
            self._keep(path, zlib.decompress(self._texts[path]).decode())
        if self._errors.get(str(path)) != message:
            consequence = "its last good version stays in force" if known else "nothing of it is in force"
            self._log.error("manifest refused", file=str(path), problem=message, consequence=consequence)
        self._errors[str(path)] = message

    def _forget(self, path: Path) -> None:
        self._drop(path)
        if self._errors.pop(str(path), None):
            self._aside(path).unlink(missing_ok=True)

    def _drop(self, path: Path) -> None:
        self._texts.pop(path, None)
        for key in self._files.pop(path, {}):
            del self._owners[key]

    def _aside(self, path: Path) -> Path:
        return self._kept / (hashlib.sha256(os.fsencode(path)).hexdigest()[:32] + ".json")

    def _keep(self, path: Path, text: str) -> None:
        aside = self._aside(path)
        if aside.exists():
            return
        self._kept.mkdir(parents=True, exist_ok=True)
        fresh = aside.with_suffix(".new")
        fresh.write_text(json.dumps({"file": str(path), "text": text}), encoding="utf-8")
        fresh.replace(aside)

    def _recall(self, path: Path) -> bool:
        """After a restart: the version that was in force before the file was broken."""
        try:
            record: dict[str, Any] = json.loads(self._aside(path).read_text(encoding="utf-8"))
            self._accept(path, record["text"])
        except (OSError, ValueError, KeyError, Invalid):
            return False
        return True

    def _scan(self) -> Iterator[Path]:
        for folder, names, files in os.walk(self._folder):
            names[:] = [name for name in names if not name.startswith(".")]
            yield from (path for name in files if self._is_manifest(path := Path(folder, name)))

    @staticmethod
    def _is_manifest(path: Path) -> bool:
        return path.suffix in SUFFIXES and not path.name.startswith(".")


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ManifestError(str(path), 1, f"is larger than {MAX_FILE_BYTES >> 20} MiB; split it")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        raise ManifestError(str(path), 1, f"is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ManifestError(str(path), 1, f"cannot be read: {error.strerror}") from error


def _difference(before: Objects, after: Objects) -> list[Update]:
    gone: Iterable[Update] = (Deleted(key) for key in before if key not in after)
    changed: Iterable[Update] = (Upserted(thing) for key, thing in after.items() if before.get(key) != thing)
    return [*gone, *changed]
