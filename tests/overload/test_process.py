from __future__ import annotations

import errno
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.overload import process
from trio_odin.overload.process import cpu_seconds, files_needed


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


# --- the garbage collector


class Node:
    """An object that can be in a cycle, and whose end can be observed."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def settled() -> Iterator[None]:
    """A settled collector; afterwards it is restored."""
    thresholds, callbacks = gc.get_threshold(), list(gc.callbacks)
    is_enabled = gc.isenabled()
    process.settle_garbage_collector()
    gc.disable()  # it collects only when the test calls it
    try:
        yield
    finally:
        gc.callbacks[:] = callbacks
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        if is_enabled:
            gc.enable()


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("generation", [0, 1, 2])
def test_objects_that_survive_a_collection_are_not_traversed_again(generation: int) -> None:
    survivors: list[list[int]] = [[] for _ in range(1000)]
    before = gc.get_freeze_count()
    gc.collect(generation)
    assert gc.get_freeze_count() >= before + len(survivors)
    assert not any(one is survivors for one in gc.get_objects())


@pytest.mark.usefixtures("settled")
def test_a_young_cycle_is_freed_by_the_first_collection() -> None:
    gone = weakref.ref(Node())
    assert gone() is not None
    gc.collect(0)
    assert gone() is None


@pytest.mark.usefixtures("settled")
def test_settling_twice_equals_settling_once() -> None:
    callbacks = list(gc.callbacks)
    process.settle_garbage_collector()
    assert gc.callbacks == callbacks
    assert gc.get_threshold()[0] == 5_000


def frozen_cycle() -> weakref.ref[Node]:
    node = Node()
    gc.collect(0)
    return weakref.ref(node)


@pytest.mark.usefixtures("settled")
def test_an_unexplained_number_of_objects_is_collected_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "_OBJECTS_PER_CONNECTION_MAX", 10)
    monkeypatch.setattr(process, "_OBJECTS_BESIDE_MAX", gc.get_freeze_count() // 2)
    leaked = frozen_cycle()
    gc.collect()
    assert leaked() is not None, "it is frozen"
    process.collect_what_leaked(connections=0)
    assert leaked() is None
    assert gc.get_freeze_count() > 0, "what is alive is frozen again"


@pytest.mark.usefixtures("settled")
def test_objects_explained_by_connections_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_OBJECTS_PER_CONNECTION_MAX", 1_000_000)
    monkeypatch.setattr(process, "_OBJECTS_BESIDE_MAX", gc.get_freeze_count() // 2)
    leaked = frozen_cycle()
    frozen = gc.get_freeze_count()
    process.collect_what_leaked(connections=100)
    assert leaked() is not None
    # What other tests have left may go by itself meanwhile.
    assert 0.99 * frozen < gc.get_freeze_count() <= frozen
    process.collect_what_leaked(connections=0)
    assert leaked() is None


@pytest.mark.usefixtures("settled")
def test_a_small_server_never_collects_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_OBJECTS_PER_CONNECTION_MAX", 0)
    monkeypatch.setattr(process, "_OBJECTS_BESIDE_MAX", gc.get_freeze_count() * 2 + 100_000)
    leaked = frozen_cycle()
    process.collect_what_leaked(connections=0)
    assert leaked() is not None


def test_memory_is_known_even_if_no_file_can_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    now = process.resident_bytes()

    def read_text(_: Path) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_text", read_text)
    assert now / 2 < process.resident_bytes() < now * 100
