"""Writes `docs/api.md` from the contracts: every service, call, message, field and enum, with their comments.

    python proto/api_page.py DESCRIPTOR_SET > docs/api.md

DESCRIPTOR_SET is what `protoc --include_source_info --descriptor_set_out` writes. Comments are found by the paths of
`SourceCodeInfo` (google/protobuf/descriptor.proto): field numbers and indices from the file's root to the element.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

FILE_MESSAGE, FILE_ENUM, FILE_SERVICE, SYNTAX = 4, 5, 6, 12
MESSAGE_FIELD, MESSAGE_NESTED, MESSAGE_ENUM = 2, 3, 4
ENUM_VALUE, SERVICE_METHOD = 2, 2

Place = tuple[int, ...]

HEAD = """# gRPC API

Made from `proto/` by `./dev proto`; not edited by hand. Typed asyncio clients for all of it are in `services/client/`;
every server also answers gRPC reflection and health, so generic tools work. The flow API is Hubble's, number by number.
"""


class Page:
    """The Markdown of one file's elements."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self.file = file
        self.prefix = f".{file.package}." if file.package else "."
        self._comments = {tuple(at.path): at for at in file.source_code_info.location}

    def lines(self) -> Iterator[str]:
        """The whole file."""
        yield f"\n## `{self.file.package}`\n"
        yield self._about((SYNTAX,))
        for index, service in enumerate(self.file.service):
            place = (FILE_SERVICE, index)
            yield f"\n### service `{service.name}`\n"
            yield self._about(place)
            yield "\n| call | request | answer | |\n|---|---|---|---|"
            for number, method in enumerate(service.method):
                yield self._method(method, (*place, SERVICE_METHOD, number))
        for index, message in enumerate(self.file.message_type):
            yield from self._message(message, message.name, (FILE_MESSAGE, index))
        for index, enum in enumerate(self.file.enum_type):
            yield from self._enum(enum, enum.name, (FILE_ENUM, index))

    def _method(self, method: MethodDescriptorProto, place: Place) -> str:
        request = ("stream " if method.client_streaming else "") + f"`{self._short(method.input_type)}`"
        answer = ("stream " if method.server_streaming else "") + f"`{self._short(method.output_type)}`"
        return f"| `{method.name}` | {request} | {answer} | {self._cell(place)} |"

    def _message(self, message: DescriptorProto, name: str, place: Place) -> Iterator[str]:
        yield f"\n### `{name}`\n"
        yield self._about(place)
        if message.field:
            yield "\n| field | number | type | |\n|---|---|---|---|"
        entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
        for index, field in enumerate(message.field):
            cell = self._cell((*place, MESSAGE_FIELD, index))
            yield f"| `{field.name}` | {field.number} | {self._type(field, message, entries)} | {cell} |"
        for index, nested in enumerate(message.nested_type):
            if nested.name not in entries:
                yield from self._message(nested, f"{name}.{nested.name}", (*place, MESSAGE_NESTED, index))
        for index, enum in enumerate(message.enum_type):
            yield from self._enum(enum, f"{name}.{enum.name}", (*place, MESSAGE_ENUM, index))

    def _enum(self, enum: EnumDescriptorProto, name: str, place: Place) -> Iterator[str]:
        yield f"\n### enum `{name}`\n"
        yield self._about(place)
        yield "\n| value | number | |\n|---|---|---|"
        for index, value in enumerate(enum.value):
            yield f"| `{value.name}` | {value.number} | {self._cell((*place, ENUM_VALUE, index))} |"

    def _type(self, field: FieldDescriptorProto, message: DescriptorProto, entries: dict[str, DescriptorProto]) -> str:
        entry = entries.get(field.type_name.rpartition(".")[2])
        if entry is not None:
            key, value = (self._scalar(each) for each in entry.field)
            return f"map of `{key}` to `{value}`"
        text = f"`{self._scalar(field)}`"
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            text = f"repeated {text}"
        if field.HasField("oneof_index") and not field.proto3_optional:
            text += f", one of `{message.oneof_decl[field.oneof_index].name}`"
        return text

    def _scalar(self, field: FieldDescriptorProto) -> str:
        if field.type_name:
            return self._short(field.type_name)
        return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()

    def _short(self, name: str) -> str:
        return name.removeprefix(self.prefix).removeprefix(".")

    def _about(self, place: Place) -> str:
        at = self._comments.get(place)
        if at is None:
            return ""
        parts = [*at.leading_detached_comments, at.leading_comments, at.trailing_comments]
        return "\n".join(line.strip() for part in parts for line in part.strip().splitlines())

    def _cell(self, place: Place) -> str:
        return " ".join(self._about(place).split()).replace("|", "\\|")


def page(files: FileDescriptorSet) -> str:
    """The page for all files, in the order of their packages."""
    own = [file for file in files.file if not file.package.startswith("google.")]
    parts = [HEAD]
    for file in sorted(own, key=lambda file: (not file.package.startswith("ciliate."), file.package)):
        parts += Page(file).lines()
    lines = (line.rstrip() for line in "\n".join(parts).splitlines())
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text + "\n"


if __name__ == "__main__":
    sys.stdout.write(page(FileDescriptorSet.FromString(Path(sys.argv[1]).read_bytes())))
