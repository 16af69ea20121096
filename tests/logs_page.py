"""The content of docs/logs.md: its tables of events, its queries."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeAlias

LABELS = {"job", "instance", "service", "level"}
LEVELS = {"debug", "info", "warning", "error", "unknown"}
OF_EVERY_LINE = {"event", "level", "timestamp", "worker", "logger", "exception"}

Rows: TypeAlias = dict[str, tuple[set[str], set[str]]]

_PAGE = (Path(__file__).parents[1] / "docs" / "logs.md").read_text()


def of_server() -> Rows:
    """The events of the server, with their levels and fields."""
    return _table("## Events of the server", "## Events of the publisher")


def of_publisher() -> Rows:
    """The events of the publisher."""
    return _table("## Events of the publisher", "## Events of HAProxy")


def of_haproxy() -> Rows:
    """The lines of HAProxy that are JSON."""
    return _table("## Events of HAProxy", "## The way to Loki")


def unknown_in(query: str) -> set[str]:
    """The labels, levels, fields and events in a LogQL query that no line has."""
    events = of_server() | of_publisher() | of_haproxy()
    fields = OF_EVERY_LINE | LABELS | {"__error__"}
    fields |= {field for _, fields in events.values() for field in fields}
    selectors = "".join(re.findall(r"\{job=[^}]*\}", query))
    assert '{job="odin"' in selectors, "Loki wants a label that cannot be empty"
    asked = re.findall(r'(\w+) *[!=~]+ *"([^"]*)"', selectors)
    levels = {level for name, text in asked if name == "level" for level in text.split("|")}
    behind = re.sub(r"\{[^{}]*\}", "", query)
    named = set(re.findall(r"\| *(\w+) *[!=~><]|unwrap (\w+)|by \(([^)]*)\)", behind))
    names = {name for found in named for text in found for name in re.findall(r"\w+", text)}
    # In `json event="event"` it is the field.
    patterns = set(re.findall(r'event=~?"([^"]*)"', behind)) - {"event"}
    return (
        ({name for name, _ in asked} - LABELS)
        | (levels - LEVELS - {".*"})
        | (names - fields)
        | {one for one in patterns if not any(re.fullmatch(one, event) for event in events)}
    )


def fields_of(event: str) -> set[str]:
    """The fields of a server's line, in addition to those of every line."""
    _, fields = of_server()[event]
    return fields


def queries() -> list[str]:
    """The LogQL queries of the page."""
    return re.findall(r"^```logql\n(.+)\n```$", _PAGE, re.MULTILINE)


def _table(start: str, end: str) -> Rows:
    text = _PAGE[_PAGE.index(start) : _PAGE.index(end)]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return {
        event.strip("`"): (set(levels.split(", ")), set(re.findall(r"`(\w+)`", fields)))
        for event, levels, _, fields in rows
    }
