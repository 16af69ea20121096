"""Types of TypeScript and Python for all messages and payloads, made from their schemas. Pure.

They are for those who write a client: `clients/js/src/messages.ts`, `trio_odin/client/messages.py`.
"""

from __future__ import annotations

import json
import keyword
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar, Final

from trio_odin.wire.commands import COMMANDS
from trio_odin.wire.messages import MESSAGES
from trio_odin.wire.schemas import Schema, schemas

_WIDTH: Final = 100
# The unions of everything in one direction.
_UNIONS: Final[Mapping[str, tuple[str, list[str]]]] = {
    "Command": ("Any command.", [command.__name__ for command in COMMANDS.values()]),
    "ServerMessage": (
        "Any message of the server: `type` says which.",
        [message.__name__ for message in MESSAGES],
    ),
}


class _Language(ABC):
    """How a language writes types.

    Attributes:
        head: what is before the types.
        words: its words for the types of JSON Schema; `any` and `never` besides.
    """

    head: ClassVar[str]
    words: ClassVar[Mapping[str, str]]

    def text(self) -> str:
        """All types."""
        choices = {name: schema for name, schema in schemas().items() if "enum" in schema}
        made = [self.choice(name, one["description"], one["enum"]) for name, one in choices.items()]
        made += [
            self.object(name, schema) for name, schema in schemas().items() if name not in choices
        ]
        made += [self.union(name, *about) for name, about in _UNIONS.items()]
        return self.head + "".join(made)

    def type_of(self, schema: Schema) -> str:
        """The type of a value."""
        match schema:
            case {"$ref": str(reference)} | {"allOf": [{"$ref": str(reference)}]}:
                return reference.rpartition("/")[2]
            case {"const": value}:
                return self.literal([value])
            case {"enum": values}:
                return self.literal(values)
            case {"not": _}:
                return self.words["never"]
            case {"anyOf": parts} if all(map(_is_known, parts)):
                return " | ".join(map(self.type_of, parts))
            case {"type": "array", "items": items}:
                return self.words["array"].format(self.type_of(items))
            case {"type": str(kind)}:
                return self.words[kind]
            case _:
                return self.words["any"]

    @abstractmethod
    def literal(self, values: Iterable[object]) -> str:
        """The type of some values."""

    @abstractmethod
    def choice(self, name: str, about: str, values: Iterable[str]) -> str:
        """The definition of some texts."""

    @abstractmethod
    def union(self, name: str, about: str, types: Iterable[str]) -> str:
        """The definition of one of several types."""

    @abstractmethod
    def object(self, name: str, schema: Schema) -> str:
        """The definition of an object."""


def _is_known(schema: Schema) -> bool:
    return not schema.keys().isdisjoint({"$ref", "type", "const", "enum"})


class _TypeScript(_Language):
    head = (
        "// The messages of docs/protocol.md. Do not edit it: it was made by\n"
        "// `trio-odin asyncapi --types typescript`.\n"
        "// biome-ignore-all format: made by a program\n"
    )
    words: ClassVar = {
        "string": "string",
        "integer": "number",
        "number": "number",
        "boolean": "boolean",
        "null": "null",
        "array": "readonly {}[]",
        "object": "object",
        "any": "unknown",
        "never": "never",
    }

    def literal(self, values: Iterable[object]) -> str:
        return " | ".join(map(json.dumps, values))

    def choice(self, name: str, about: str, values: Iterable[str]) -> str:
        return self.union(name, about, map(json.dumps, values))

    def union(self, name: str, about: str, types: Iterable[str]) -> str:
        parts = "".join(f"\n  | {one}" for one in types)
        return f"\n{self._comment(about)}export type {name} ={parts};\n"

    def object(self, name: str, schema: Schema) -> str:
        required = schema.get("required", ())
        lines = [f"\n{self._comment(schema['description'])}export interface {name} {{\n"]
        for key, value in schema["properties"].items():
            if "description" in value:
                lines.append(self._comment(value["description"], indent="  "))
            optional = "" if key in required else "?"
            lines.append(f"  readonly {key}{optional}: {self.type_of(value)};\n")
        return "".join([*lines, "}\n"])

    def _comment(self, about: str, indent: str = "") -> str:
        words = " ".join(about.split())
        if len(words) + len(indent) + len("/**  */") <= _WIDTH:
            return f"{indent}/** {words} */\n"
        lines = textwrap.wrap(words, _WIDTH - len(indent) - len(" * "))
        return "".join(
            [f"{indent}/**\n", *(f"{indent} * {line}\n" for line in lines), f"{indent} */\n"]
        )


class _Python(_Language):
    head = (
        '"""The messages of docs/protocol.md, as they are after `json.loads`.\n\n'
        "Do not edit it: it was made by `trio-odin asyncapi --types python`.\n"
        '"""\n\nfrom __future__ import annotations\n\n'
        "from typing import Any, Literal, Never, NotRequired, TypeAlias, TypedDict\n"
    )
    words: ClassVar = {
        "string": "str",
        "integer": "int",
        "number": "float",
        "boolean": "bool",
        "null": "None",
        "array": "list[{}]",
        "object": "dict[str, Any]",
        "any": "Any",
        "never": "Never",
    }

    def literal(self, values: Iterable[object]) -> str:
        shown = (json.dumps(one) if isinstance(one, str) else repr(one) for one in values)
        return f"Literal[{', '.join(shown)}]"

    def choice(self, name: str, about: str, values: Iterable[str]) -> str:
        lines = "".join(f"    {json.dumps(value)},\n" for value in values)
        return f"\n# {about}\n{name}: TypeAlias = Literal[\n{lines}]\n"

    def union(self, name: str, about: str, types: Iterable[str]) -> str:
        parts = "\n    | ".join(types)
        return f"\n\n# {about}\n{name}: TypeAlias = (\n    {parts}\n)\n"

    def object(self, name: str, schema: Schema) -> str:
        required = schema.get("required", ())
        keys = {
            key: self.type_of(value) if key in required else f"NotRequired[{self.type_of(value)}]"
            for key, value in schema["properties"].items()
        }
        if any(map(keyword.iskeyword, keys)):
            lines = "".join(f'        "{key}": {kind},\n' for key, kind in keys.items())
            about = textwrap.indent(textwrap.fill(schema["description"], _WIDTH - 2), "# ")
            return f'\n\n{about}\n{name} = TypedDict(\n    "{name}",\n    {{\n{lines}    }},\n)\n'
        lines = "".join(f"    {key}: {kind}\n" for key, kind in keys.items())
        return f"\n\nclass {name}(TypedDict):\n{self._docstring(schema)}\n{lines}"

    def _docstring(self, schema: Schema) -> str:
        described = {
            key: value["description"]
            for key, value in schema["properties"].items()
            if "description" in value
        }
        paragraphs = schema["description"].split("\n\n")
        about = "\n\n".join(textwrap.fill(" ".join(one.split()), _WIDTH - 4) for one in paragraphs)
        if not described:
            return f'    """{about}"""\n'
        lines = [
            textwrap.fill(f"{key}: {text}", _WIDTH - 8, subsequent_indent="    ")
            for key, text in described.items()
        ]
        attributes = textwrap.indent("\n".join(lines), "    ")
        return textwrap.indent(f'"""{about}\n\nAttributes:\n{attributes}\n"""\n', "    ")


def typescript() -> str:
    """A module of TypeScript."""
    return _TypeScript().text()


def python() -> str:
    """A module of Python: dictionaries with the types of their keys."""
    return _Python().text()
