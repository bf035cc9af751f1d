"""What a process can be told about exports to files; part of the agent's and of the relay's configuration."""

from __future__ import annotations

from pydantic import Field

from services.common.config import BaseConfig


class ExportOptions(BaseConfig):
    """Names and meanings are those of Hubble's exporter."""

    export_file_path: str = Field("", description="file that flows are written to as JSON lines; empty = none")
    export_file_max_size_mb: int = Field(10, ge=1, description="MiB after which the export is rotated")
    export_file_max_age: float = Field(0, ge=0, description="seconds after which it is rotated; 0 = size alone counts")
    export_file_max_backups: int = Field(5, ge=0, description="rotated files that are kept")
    export_file_compress: bool = Field(False, description="compress rotated files (gzip)")
    export_allowlist: list[str] = Field([], description="FlowFilters as JSON, one per flag: export what any matches")
    export_denylist: list[str] = Field([], description="FlowFilters as JSON, one per flag: and none of these")
    export_fieldmask: list[str] = Field([], description="fields of flow.Flow that are exported; none = all")
    export_dynamic_config: str = Field(
        "", description="YAML file with a list flowLogs of further exports, read again when it changes; empty = none"
    )
