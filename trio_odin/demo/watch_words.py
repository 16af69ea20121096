"""What `trio-odin watch` says about gaps, and about names that bring nothing."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from trio_odin.client.errors import printable
from trio_odin.wire.channels import is_name

# The reasons of `Gap`.
_WHY: Final = {
    "resume": "missed while offline, and no longer kept",
    "slow": "taken too slowly by this program or its network",
    "hole": "the event before another one has not come",
    "snapshot": "not all first values came: too many, or read too slowly",
    "start": "published before the server had reached NATS",
    "window": "the server was without NATS for too long",
    "stream": "the stream of NATS was made anew or emptied",
    "core": "published while the server was without NATS",
    "unreadable": "the server could not read an event",
    "shed": "more than the server could handle",
}


def json_text(data: Any) -> str:
    """Whatever came as JSON, as JSON."""
    try:
        return msgspec.json.encode(data).decode()
    except (ValueError, ArithmeticError):  # half a character, or a number of more than 64 bits
        return json.dumps(data, separators=(",", ":"))


def why_of(reason: str) -> str:
    """Why there is a gap, in words that fit on a line."""
    return _WHY.get(reason, printable(reason))


def hint_for(name: str) -> str:
    """Another name that may be meant; empty if there is none."""
    symbol, dot, kind = name.partition(".")
    meant = f"{symbol.upper()}.{kind if dot else '*'}"
    return meant if meant != name and is_name(meant) else ""


def question_for(name: str) -> str:
    """What may be meant by a name that cannot be a channel; empty if that is not known."""
    hint = hint_for(name)
    return f"; did you mean {hint} ?" if hint else "; or * for a part, or > for all"
