"""The examples of docs/clients, each run as it is against a server with a market."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
import pytest

from tests.e2e.nats import free_port

pytestmark = pytest.mark.e2e

_ROOT: Final = Path(__file__).parents[2]
_PACKAGE: Final = _ROOT / "clients" / "js"
_BLOCK: Final = re.compile(r"^```(python|jsx?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SECONDS: Final = 30.0


@attrs.frozen
class _Example:
    """A block of code of a page."""

    page: str
    number: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"


def _examples(language: str) -> list[_Example]:
    found = []
    for path in sorted((_ROOT / "docs" / "clients").glob("*.md")):
        for number, (kind, code) in enumerate(_BLOCK.findall(path.read_text())):
            if kind == language:
                found.append(_Example(path.stem, number, kind, code))
    assert found
    return found


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a server with a market."""
    where = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "trio_odin", "up", "--addr", where, "--rate", "60"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + _SECONDS
            while not _is_ready(f"http://{where}/ready"):
                assert time.monotonic() < deadline, "it did not get ready"
                time.sleep(0.1)
            yield where
        finally:
            process.terminate()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _lines_of(command: list[str], count: int, folder: Path) -> list[str]:
    """The first lines that a program prints; it is killed then."""
    error = folder / "error"
    with (
        error.open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder, env=os.environ
        ) as process,
    ):
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if len(lines) == count:
                break
        process.kill()
    assert error.read_text() == ""
    return lines


@pytest.mark.parametrize("example", _examples("python"), ids=str)
def test_an_example_in_python_prints_prices(
    example: _Example, address: str, tmp_path: Path
) -> None:
    program = tmp_path / "example.py"
    program.write_text(example.code.replace("127.0.0.1:3002", address))
    lines = _lines_of([sys.executable, str(program)], 8, tmp_path)
    assert len(lines) == 8
    assert any(re.search(r"\.trade.*\d\.\d", line) for line in lines), lines


@pytest.mark.parametrize("example", _examples("js"), ids=str)
def test_an_example_in_javascript_prints_prices(
    example: _Example, address: str, tmp_path: Path
) -> None:
    if shutil.which("node") is None or not (_PACKAGE / "dist" / "index.js").exists():
        pytest.skip("it needs Node, and the package built: `nox -s js`")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "trio-odin").symlink_to(_PACKAGE)
    # The whole of an example is read before it closes what it opened.
    code = example.code.replace("127.0.0.1:3002", address)
    program = tmp_path / "example.mjs"
    program.write_text(
        re.sub(
            r"^(\w+)\.close\(\);$", r"setTimeout(() => \1.close(), 1500);", code, flags=re.MULTILINE
        )
    )
    command = ["node", "--no-warnings", "--experimental-websocket", str(program)]
    lines = _lines_of(command, 6, tmp_path)
    assert any(re.search(r"\d\.\d", line) for line in lines), lines


# Shows what the component `App` of an example has on its page.
_SHOW: Final = """
import { Window } from "happy-dom";
import { createRoot } from "react-dom/client";
globalThis.window = new Window();
globalThis.document = window.document;
globalThis.requestAnimationFrame = (frame) => setTimeout(frame, 16);
const box = document.body.appendChild(document.createElement("div"));
createRoot(box).render(<App />);
setInterval(() => console.log(box.textContent), 200);
"""


@pytest.mark.parametrize("example", _examples("jsx"), ids=str)
def test_an_example_of_react_shows_prices(example: _Example, address: str, tmp_path: Path) -> None:
    bundler = _PACKAGE / "node_modules" / ".bin" / "esbuild"
    if shutil.which("node") is None or not (_PACKAGE / "dist" / "react.js").exists():
        pytest.skip("it needs Node, and the package built: `nox -s js`")
    (tmp_path / "node_modules").mkdir()
    for name in ("react", "react-dom", "happy-dom", "scheduler"):
        (tmp_path / "node_modules" / name).symlink_to(_PACKAGE / "node_modules" / name)
    (tmp_path / "node_modules" / "trio-odin").symlink_to(_PACKAGE)
    code = example.code.replace("127.0.0.1:3002", address)
    (tmp_path / "example.jsx").write_text(code.replace("import.meta.env.", "({}).") + _SHOW)
    how = ["--bundle", "--platform=node", "--format=esm", "--jsx=automatic", "--log-level=error"]
    how += ["--packages=external", "--outfile=example.mjs", "example.jsx"]
    subprocess.run([str(bundler), *how], cwd=tmp_path, check=True)
    lines = _lines_of(
        ["node", "--no-warnings", "--experimental-websocket", "example.mjs"], 12, tmp_path
    )
    assert re.search(r"live.*\d", lines[-1]), lines
