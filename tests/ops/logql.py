"""Grafana's own grammar of LogQL, which npm has, asked about queries."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from tests.ops.tools import tool

_PACKAGES = ("@grafana/lezer-logql@0.3.0", "@lezer/common@1", "@lezer/lr@1")
_SECONDS = 120
_SCRIPT = """\
import { parser } from "@grafana/lezer-logql";
import { readFileSync } from "node:fs";
const found = JSON.parse(readFileSync(0, "utf8")).map((text) => {
  const wrong = [], names = [];
  parser.parse(text).iterate({
    enter(node) {
      if (node.type.isError) wrong.push(text.slice(node.from, node.to) || `at ${node.from}`);
      if (node.name === "Identifier") names.push(text.slice(node.from, node.to));
    },
  });
  return { wrong, names };
});
console.log(JSON.stringify(found));
"""


class Parsed(msgspec.Struct):
    """What the grammar finds `wrong` in a query, and the `names` in it."""

    wrong: list[str]
    names: list[str]


def parsed(folder: Path, queries: Sequence[str]) -> list[Parsed]:
    """Each of them; skips where npm cannot get the grammar. It is installed in `folder`."""
    node, npm = tool("node"), tool("npm")
    install = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), *_PACKAGES]
    done = subprocess.run(install, capture_output=True, timeout=_SECONDS, check=False)
    if done.returncode:
        pytest.skip("npm cannot get @grafana/lezer-logql here")
    script = folder / "parse.mjs"
    script.write_text(_SCRIPT)
    answer = subprocess.run(
        [node, script],
        input=json.dumps([*queries]).encode(),
        capture_output=True,
        timeout=_SECONDS,
        check=True,
    )
    return msgspec.json.decode(answer.stdout, type=list[Parsed])
