from __future__ import annotations

import re
import tomllib
from pathlib import Path

from trio_odin.settings.extras import install_hint

ROOT = Path(__file__).parents[2]


def test_the_hint_is_a_command_for_a_shell() -> None:
    assert install_hint("demo,lab") == "pip install 'trio-odin[demo,lab]'"


def test_each_extra_in_a_hint_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {
        extra
        for module in (ROOT / "trio_odin").rglob("*.py")
        for extra in re.findall(r"trio-odin\[(\w+)\]|install_hint\('(\w+)'\)", module.read_text())
    }
    extras = {one for pair in named for one in pair if one}
    assert extras >= {"auth", "demo", "lab", "otel", "top"}
    assert extras <= set(project["optional-dependencies"])
