"""Completion in a real shell, with the script that `trio-odin completion` prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_cli import run

pytestmark = pytest.mark.e2e


def completed(folder: Path, line: str) -> list[str]:
    """What bash offers at the end of `line`."""
    program = folder / "trio-odin"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m trio_odin "$@"\n')
    program.chmod(0o755)
    (folder / "script").write_text(run("completion", "bash").stdout)
    words = " ".join(f"'{word}'" for word in line.split(" "))
    script = (
        f"source {folder}/script; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        '_trio_odin_completion trio-odin; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    found = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert not found.stderr
    return found.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("trio-odin s", ["serve", "settings"]),
        ("trio-odin serve --ch", ["--check"]),
        ("trio-odin serve --nats-mode j", ["jetstream"]),
        ("trio-odin serve --workers ", ["auto"]),
        ("trio-odin completion f", ["fish"]),
    ],
)
def test_bash_completes_commands_options_and_words(
    tmp_path: Path, line: str, offered: list[str]
) -> None:
    assert completed(tmp_path, line) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_each_shell(shell: str) -> None:
    printed = run("completion", shell)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert "_TRIO_ODIN_COMPLETE" in printed.stdout
    assert shell in printed.stdout or shell == "zsh"
    if (program := shutil.which(shell)) is not None:
        checked = subprocess.run([program, "-n"], input=printed.stdout, text=True, check=False)
        assert checked.returncode == 0


def test_another_shell_ends_with_2() -> None:
    refused = run("completion", "tcsh")
    assert refused.returncode == 2
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in refused.stderr
