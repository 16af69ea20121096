"""Waits for a condition with a deadline, and with a message for a failure."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

T = TypeVar("T")

_SECONDS = 30.0
_LOOK_SECONDS = 0.05


def until(condition: Callable[[], T], *, what: str, seconds: float = _SECONDS) -> T:
    """Wait until `condition` returns a true value; returns it. For tests without trio."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, _too_late(what, seconds)
        time.sleep(_LOOK_SECONDS)
    return found


async def wait_until(
    condition: Callable[[], object], seconds: float = _SECONDS, *, what: str = "see the test"
) -> None:
    """The same for tests with trio."""
    with trio.move_on_after(seconds):
        while not condition():
            await trio.sleep(_LOOK_SECONDS / 5)
        return
    raise AssertionError(_too_late(what, seconds))


async def until_answer(
    ask: Callable[[], Awaitable[T]], *, what: str, seconds: float = _SECONDS
) -> T:
    """The same for a condition that must be awaited."""
    with trio.move_on_after(seconds):
        while not (found := await ask()):
            await trio.sleep(_LOOK_SECONDS)
        return found
    raise AssertionError(_too_late(what, seconds))


def _too_late(what: str, seconds: float) -> str:
    return f"not within {seconds:.0f} s: {what}"
