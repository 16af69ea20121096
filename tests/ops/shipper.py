"""The shipper's script, run as Fluent Bit runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from tests.ops.conftest import OPS

Label: TypeAlias = Callable[[str, dict[str, Any]], dict[str, str] | None]

JSON_LINE = '{"connections": 3, "event": "summary", "level": "info", "timestamp": "…Z"}'


def load_script() -> Label:
    """The script in LuaJIT: what becomes of a line. Skips where there is no LuaJIT."""
    lupa = pytest.importorskip("lupa.luajit21")
    lua = lupa.LuaRuntime()
    lua.execute((OPS / "fluent-bit" / "labels.lua").read_text())

    def label(line: str, attributes: dict[str, Any]) -> dict[str, str] | None:
        record = lua.table_from({"log": line, "stream": "stderr"})
        if attributes:
            record["attrs"] = lua.table_from(attributes)
        code, _, result = lua.globals().label("docker", lua.table_from({"sec": 1}), record)
        assert code in {-1, 2}
        return None if code == -1 else dict(result)

    return label
