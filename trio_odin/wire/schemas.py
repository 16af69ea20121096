"""The JSON Schemas of all messages, of their parts and of what is in `data`, by name. Pure.

They describe what clients should send. The server also takes null for a key that has nothing to
say, and ignores keys that it does not know.
"""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import Any, Final, TypeAlias

import msgspec

from trio_odin.wire import commands, messages, payloads
from trio_odin.wire.commands import COMMANDS
from trio_odin.wire.messages import MESSAGES
from trio_odin.wire.payloads import PAYLOADS

Schema: TypeAlias = dict[str, Any]

SCHEMAS_AT: Final = "#/components/schemas/"
# An object with the payload of each event type: for programs that make types of the schemas.
EVENT_DATA: Final = "EventData"
_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)
# A key that a command needs, in `data` or at the top level.
_NEEDED: Final = {"subscribe": "channels", "unsubscribe": "channels", "token": "token"}
_RANGES: Final = [
    {"required": ["from", "to"], "not": {"required": ["since"]}},
    {"required": ["since"], "not": {"anyOf": [{"required": ["from"]}, {"required": ["to"]}]}},
]


@cache
def schemas() -> dict[str, Schema]:
    """The schemas. It is the same object each time: do not change it."""
    types = (*COMMANDS.values(), *MESSAGES, *PAYLOADS.values())
    _, made = msgspec.json.schema_components(types, ref_template=SCHEMAS_AT + "{name}")
    for name, schema in made.items():
        _complete(schema, _struct(name))
    for kind, command in COMMANDS.items():
        schema = made[command.__name__]
        schema["properties"] = {"type": {"const": kind}, **schema["properties"]}
        schema["required"] = ["type", *schema.get("required", ())]
        if key := _NEEDED.get(kind):
            inside = {"properties": {"data": {"required": [key]}}, "required": ["data"]}
            schema["anyOf"] = [{"required": [key]}, inside]
    made["ReplayCommand"]["required"].append("data")
    made["ReplayKeys"]["oneOf"] = _RANGES
    data = {kind: reference(payload.__name__) for kind, payload in PAYLOADS.items()}
    for name in ("PriceUpdate", "BatchEvent"):
        made[name]["properties"]["data"]["anyOf"] = [*data.values(), {"title": "Any other JSON"}]
    made[EVENT_DATA] = {
        "title": EVENT_DATA,
        "description": "What is in `data`, by the event type: the second part of the channel.",
        "type": "object",
        "properties": data,
    }
    return made


def reference(name: str) -> Schema:
    """A reference to the schema of this name."""
    return {"$ref": SCHEMAS_AT + name}


def descriptions(struct: type) -> tuple[str, dict[str, str]]:
    """The text of a docstring, and those of its attributes and of the inherited ones."""
    found: dict[str, str] = {}
    text = ""
    for one in reversed(struct.__mro__):
        text, _, attributes = inspect.cleandoc(one.__doc__ or "").partition("\n\nAttributes:\n")
        for name, words in _ATTRIBUTE.findall(attributes):
            words = " ".join(words.split())
            found[name.rstrip("_")] = words[0].upper() + words[1:]
    return text, found


def _struct(name: str) -> type:
    """The type with this name."""
    found: type = next(
        vars(module)[name] for module in (commands, messages, payloads) if name in vars(module)
    )
    return found


def _complete(schema: Schema, struct: type) -> None:
    """Add the descriptions to the schema of a type, and leave out what nobody should send."""
    schema["description"], of_keys = descriptions(struct)
    for key, value in schema.get("properties", {}).items():
        if value.get("default", msgspec.UNSET) is None:  # null is the same as nothing
            del value["default"]
            value["anyOf"].remove({"type": "null"})
            if len(value["anyOf"]) == 1:
                value |= value.pop("anyOf")[0]
        if len(value.get("enum", ())) == 1:
            (value["const"],) = value.pop("enum")
        if key in of_keys and "$ref" in value:  # beside a reference nothing counts
            value["allOf"] = [reference(value.pop("$ref").removeprefix(SCHEMAS_AT))]
        if key in of_keys:
            value["description"] = of_keys[key]
