"""How to install an extra of this package, in one form wherever one is missing."""

from __future__ import annotations


def install_hint(extra: str) -> str:
    """The command that adds `extra`, or several with commas between, to what is installed.

    It names the package, not a folder with its sources: who runs a command may have none.
    """
    return f"pip install 'trio-odin[{extra}]'"
