"""A file of `NAME=value` lines, as systemd reads an EnvironmentFile."""

from __future__ import annotations

import re

_LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")
_QUOTES = ("'", '"')


class BadLine(ValueError):
    """A line is no assignment. The message says which; not what is in it, which may be a secret."""


def parse_assignments(text: str) -> dict[str, str]:
    """The variables that `text` sets; of two lines for one name the second counts.

    Empty lines are left out, and those that begin with # or ;. White space around names and values
    does not count, nor do quotes of one kind around a value. Nothing is substituted or escaped.

    Raises:
        BadLine: a line is none of these.
    """
    variables: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        match = _LINE.fullmatch(line)
        if match is None or not match[2].isprintable():
            raise BadLine(f"line {number} is not NAME=value")
        variables[match[1]] = _unquoted(match[2])
    return variables


def _unquoted(value: str) -> str:
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in _QUOTES
    return value[1:-1] if is_quoted else value
