"""What an export is: where to, which flows, which fields, when to rotate. Read from options or from a YAML file.

The file is Hubble's: `flowLogs: [{name, filePath, fieldMask, includeFilters, excludeFilters, fileMaxSizeMb,
fileMaxBackups, fileCompress, end}]`.
"""

from __future__ import annotations

import datetime
import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict, ParseError

from services.common.errors import Invalid
from services.common.pb.flow import flow_pb2
from services.flows import mask
from services.flows.export.options import ExportOptions
from services.flows.filters import FilterError, Filters

MIB = 1 << 20
STATIC = "flags"
"""The name of the export that the options describe."""


@dataclass(frozen=True, slots=True)
class ExportSpec:
    """One export. Equal specs are the same export: nothing is to be done."""

    name: str
    path: str
    include: tuple[str, ...] = ()
    """FlowFilters as JSON."""
    exclude: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    max_bytes: int = 10 * MIB
    max_age_s: float = 0
    max_backups: int = 5
    compress: bool = False
    end_ns: int | None = None
    """Wall clock; nothing is exported from then on."""

    def filters(self) -> Filters:
        """Raises `Invalid` naming the filter."""
        try:
            return Filters(_filters("includeFilters", self.include), _filters("excludeFilters", self.exclude))
        except FilterError as error:
            raise Invalid(f"{self.name}: {error}") from error

    def mask(self) -> mask.Tree | None:
        """Raises `Invalid` naming the field."""
        for field in self.fields:
            if not FieldMask(paths=[field]).IsValidForDescriptor(flow_pb2.Flow.DESCRIPTOR):
                raise Invalid(f"{self.name}: fieldMask: {field!r} is no field of flow.Flow")
        return mask.parse(FieldMask(paths=self.fields))


def _filters(what: str, texts: Sequence[str]) -> list[flow_pb2.FlowFilter]:
    found = []
    for text in texts:
        try:
            found.append(ParseDict(json.loads(text), flow_pb2.FlowFilter()))
        except (ValueError, ParseError) as error:
            raise FilterError(f"{what}: {text!r} is no FlowFilter: {error}") from error
    return found


def from_options(options: ExportOptions) -> list[ExportSpec]:
    """The export of the flags, if any; raises `Invalid`."""
    if not options.export_file_path:
        return []
    spec = ExportSpec(
        STATIC,
        options.export_file_path,
        tuple(options.export_allowlist),
        tuple(options.export_denylist),
        tuple(options.export_fieldmask),
        options.export_file_max_size_mb * MIB,
        options.export_file_max_age,
        options.export_file_max_backups,
        options.export_file_compress,
    )
    try:
        return [_checked(spec)]
    except Invalid as error:
        raise Invalid(f"export_allowlist, export_denylist, export_fieldmask: {error}") from error


def from_file(path: Path) -> list[ExportSpec]:
    """The exports that a file lists; raises `Invalid` naming place and field."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Invalid(f"export_dynamic_config: cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"export_dynamic_config: {path} is not YAML: {error}") from error
    entries = (document or {}).get("flowLogs", []) if isinstance(document or {}, dict) else None
    if not isinstance(entries, list):
        raise Invalid(f"export_dynamic_config: {path}: must hold a list flowLogs")
    try:
        specs = [_checked(_read(place, entry)) for place, entry in enumerate(entries)]
    except Invalid as error:
        raise Invalid(f"export_dynamic_config: {path}: {error}") from error
    for what in ("name", "path"):
        values = [getattr(spec, what) for spec in specs]
        if double := next((value for value in values if values.count(value) > 1), None):
            raise Invalid(f"export_dynamic_config: {path}: flowLogs: two of {what} {double!r}")
    return specs


def _checked(spec: ExportSpec) -> ExportSpec:
    """Filters and mask can be built."""
    spec.filters()
    spec.mask()
    return spec


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("must be a list")  # noqa: TRY004 - told as a configuration error
    return tuple(map(_text, value))


def _jsons(value: Any) -> tuple[str, ...]:
    """FlowFilters, as mappings or as JSON texts."""
    if not isinstance(value, list):
        raise ValueError("must be a list")  # noqa: TRY004
    return tuple(each if isinstance(each, str) else json.dumps(each, sort_keys=True) for each in value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("must be a whole number, 0 or more")
    return value


def _size(value: Any) -> int:
    return max(1, _count(value)) * MIB


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")  # noqa: TRY004
    return value


def _moment(value: Any) -> int:
    moment = value if isinstance(value, datetime.datetime) else datetime.datetime.fromisoformat(_text(value))
    moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return int(moment.timestamp() * 1e9)


_FIELDS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "name": ("name", _text),
    "filePath": ("path", _text),
    "includeFilters": ("include", _jsons),
    "excludeFilters": ("exclude", _jsons),
    "fieldMask": ("fields", _texts),
    "fileMaxSizeMb": ("max_bytes", _size),
    "fileMaxAge": ("max_age_s", _count),
    "fileMaxBackups": ("max_backups", _count),
    "fileCompress": ("compress", _flag),
    "end": ("end_ns", _moment),
}


def _read(place: int, entry: Any) -> ExportSpec:
    where = f"flowLogs[{place}]"
    if not isinstance(entry, dict):
        raise Invalid(f"{where}: must be a mapping")
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in _FIELDS:
            near = difflib.get_close_matches(str(key), list(_FIELDS), n=1)
            raise Invalid(f"{where}.{key}: not known{f'; did you mean {near[0]}?' if near else ''}")
        name, read = _FIELDS[key]
        try:
            values[name] = read(value)
        except ValueError as error:
            raise Invalid(f"{where}.{key}: {error}, not {value!r}") from error
    for key, (name, _) in list(_FIELDS.items())[:2]:
        if name not in values:
            raise Invalid(f"{where}.{key}: needed")
    return ExportSpec(**values)
