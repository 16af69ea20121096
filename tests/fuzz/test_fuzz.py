"""A short fuzz run; `nox -s fuzz` runs for any given time."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.inputs import INPUTS, SEEDS
from tests.fuzz.targets import TARGETS

EXAMPLES = {"commands": 60, "head": 60, "frames": 60, "deflated": 60, "whole": 30}


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_handled(name: str) -> None:
    @settings(max_examples=EXAMPLES[name], deadline=None, suppress_health_check=list(HealthCheck))
    @given(INPUTS[name])
    def check(data: bytes) -> None:
        TARGETS[name](data)

    check()


@pytest.mark.parametrize(("name", "seed"), [(n, s) for n, seeds in SEEDS.items() for s in seeds])
def test_known_attacks_are_handled(name: str, seed: bytes) -> None:
    TARGETS[name](seed)


def test_a_target_can_fail() -> None:
    """Otherwise the tests above mean nothing."""
    with pytest.raises(AssertionError, match="broken a rule"):
        TARGETS["commands"].__globals__["_events"](b"\x81\x81xxxxx")


def test_every_target_has_inputs_and_seeds() -> None:
    assert INPUTS.keys() == SEEDS.keys() == TARGETS.keys()
    assert all(isinstance(strategy, st.SearchStrategy) for strategy in INPUTS.values())
