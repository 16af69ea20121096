"""docs/logs.md as it is written: its tables of events, its queries."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeAlias

Rows: TypeAlias = dict[str, tuple[set[str], set[str]]]

_PAGE = (Path(__file__).parents[1] / "docs" / "logs.md").read_text()


def of_server() -> Rows:
    """The events of the server, with their levels and fields."""
    return _table("## Events of the server", "## Events of the publisher")


def of_publisher() -> Rows:
    """Those of the publisher."""
    return _table("## Events of the publisher", "## The way to Loki")


def fields_of(event: str) -> set[str]:
    """The fields of a line of the server, beside those that every line has."""
    _, fields = of_server()[event]
    return fields


def queries() -> list[str]:
    """In LogQL."""
    return re.findall(r"^```logql\n(.+)\n```$", _PAGE, re.MULTILINE)


def _table(start: str, end: str) -> Rows:
    text = _PAGE[_PAGE.index(start) : _PAGE.index(end)]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return {
        event.strip("`"): (set(levels.split(", ")), set(re.findall(r"`(\w+)`", fields)))
        for event, levels, _, fields in rows
    }
