"""One target under atheris: `python -m tests.fuzz.by_atheris TARGET [CORPUS] [LIBFUZZER OPTION …]`.

Not imported by tests: importing the code through atheris is what makes its branches seen.
"""

from __future__ import annotations

import sys

import atheris


def main() -> None:
    packages = ["trio_odin.core", "trio_odin.net", "trio_odin.server", "wsproto", "h11"]
    with atheris.instrument_imports(include=packages):
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415

    name, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
