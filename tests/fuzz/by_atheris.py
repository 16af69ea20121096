"""One target under atheris: `python -m tests.fuzz.by_atheris TARGET [CORPUS] [LIBFUZZER OPTION …]`.

Tests do not import it: the code must be imported through atheris, which then sees its branches.
"""

from __future__ import annotations

import sys

import atheris


def main() -> None:
    packages = ["trio_odin.wire", "trio_odin.net", "trio_odin.connection", "wsproto", "h11"]
    with atheris.instrument_imports(include=packages):
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415

    name, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
