"""Every call in the source that logs: which event, how grave, with which fields."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import attrs

from tests.ops.conftest import ROOT
from trio_odin.core.admission import Load
from trio_odin.core.gaps import Gap
from trio_odin.lab.control import Stats
from trio_odin.server.guard import _rounded
from trio_odin.server.outlet import Outlet

SOURCE = ROOT / "trio_odin"

_LEVELS = {"exception": "error"} | {name: name for name in ("debug", "info", "warning", "error")}
_LOGGERS = ("_log", "log", "self._log", "structlog.get_logger")


@attrs.frozen
class Call:
    """One call. `expands`: it takes further fields from a mapping."""

    file: str
    event: str
    level: str
    fields: frozenset[str]
    expands: bool


@functools.cache
def log_calls() -> list[Call]:
    """All of them, of the server, the publisher and the commands that start them."""
    return [
        call
        for path in sorted(SOURCE.rglob("*.py"))
        for call in _calls_in(path)
        if not call.file.startswith("lab/capacity")
    ]


def _calls_in(path: Path) -> Iterator[Call]:
    text = path.read_text()
    if "log" not in text:
        return
    tree = ast.parse(text)
    file = path.relative_to(SOURCE).as_posix()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in _own_nodes(function):
                if isinstance(node, ast.Call) and _is_log_call(node):
                    yield from _events(file, node, function)
    yield from _made_records(file, tree)


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """What is in a function, without the functions within it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _own_nodes(child)


def _is_log_call(node: ast.Call) -> bool:
    if not isinstance(node.func, ast.Attribute) or node.func.attr not in _LEVELS:
        return False
    return ast.unparse(node.func.value).startswith(_LOGGERS)


def _events(file: str, node: ast.Call, function: ast.AST) -> Iterator[Call]:
    assert isinstance(node.func, ast.Attribute)
    # An exception has the same field with every event.
    names = {keyword.arg for keyword in node.keywords} - {"exc_info"}
    for event in _values(node.args[0], function, before=node.lineno):
        yield Call(
            file=file,
            event=event,
            level=_LEVELS[node.func.attr],
            fields=frozenset(name for name in names if name is not None),
            expands=None in names,
        )


def _values(node: ast.expr, function: ast.AST, *, before: int) -> list[str]:
    """The texts that an expression can be: one, one of two, or what a variable was set to last."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.IfExp):
        branches = (node.body, node.orelse)
        return [text for branch in branches for text in _values(branch, function, before=before)]
    assert isinstance(node, ast.Name), f"an event that cannot be found out: {ast.unparse(node)}"
    *_, last = (
        inner.value
        for inner in _own_nodes(function)
        if isinstance(inner, ast.Assign)
        and ast.unparse(inner.targets[0]) == node.id
        and inner.lineno < before
    )
    return _values(last, function, before=before)


def _made_records(file: str, tree: ast.AST) -> Iterator[Call]:
    """Of the writer of lines, which makes a record of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            entries = {
                key.value: value
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
            }
            if isinstance(text := entries.get("msg"), ast.Constant) and "count" in entries:
                yield Call(file, str(text.value), "error", frozenset({"count"}), expands=False)


def _keys_of(file: str, *functions: str) -> set[str]:
    """Of the mappings that these functions return, in one file of the server."""
    tree = ast.parse((SOURCE / "server" / file).read_text())
    found = {
        node.name: {
            key.value
            for mapping in ast.walk(node)
            if isinstance(mapping, ast.Dict)
            for key in mapping.keys
            if isinstance(key, ast.Constant)
        }
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name in functions
    }
    assert set(found) == set(functions)
    return {str(key) for keys in found.values() for key in keys}


def _fields_of_connection(event: str) -> set[str]:
    who = _keys_of("connection_log.py", "_who")
    counts = _keys_of("outlet.py", Outlet.counts.__name__)
    not_logged = _keys_of("connection_log.py", "_left_out")
    match event:
        case "connection.opened":
            return who
        case "connection.closed":
            return who | counts | not_logged
    return who | counts | _keys_of("outlet.py", Outlet.report.__name__) | not_logged


def expanded_fields(event: str) -> set[str]:
    """The fields that an event takes from a mapping."""
    match event.partition("."):
        case ("nats", _, "gap"):
            return {field.name for field in attrs.fields(Gap)}
        case ("door" | "pause", _, _):
            return set(_rounded(Load()))
        case ("run", _, "ended"):
            return set(Stats().as_json())
        case ("connection", _, _):
            return _fields_of_connection(event)
        case ("control", _, _):
            return {"success", "message", "stats", "activeTokens"}
    raise AssertionError(f"whence has {event} its fields?")
