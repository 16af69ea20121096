"""`--oracle-faults` and `--oracle-seed`: the number of random faults, and their seed."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--oracle-faults", type=int, metavar="N", help="random faults in all worlds")
    parser.addoption("--oracle-seed", type=int, metavar="SEED", help="what they are drawn from")
