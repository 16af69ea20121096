from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.telemetry.process import cpu_seconds, files_needed


@pytest.mark.parametrize(
    ("connections", "workers", "files"),
    [(10_000, 1, 10_064), (10_000, 2, 6_064), (10_000, 8, 1_564), (0, 4, 64), (1, 64, 65)],
)
def test_a_worker_needs_files_for_its_share_with_head_room(
    connections: int, workers: int, files: int
) -> None:
    assert files_needed(connections, workers) == files


@given(st.integers(0, 10**6), st.integers(1, 64))
def test_no_worker_needs_more_files_than_one_process_alone(connections: int, workers: int) -> None:
    assert files_needed(connections, workers) <= files_needed(connections, 1)


def test_the_cpu_of_this_process_only_grows() -> None:
    assert 0 < cpu_seconds() <= cpu_seconds()
