"""Ends a command by signals without an exception in the middle of something.

A KeyboardInterrupt may come between two escape sequences and leave the terminal as it is then.
Outside of `until_signal` a signal is only noted.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

from trio_odin.signals import end_signals

_T = TypeVar("_T")


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note the signals that end a process, in a list, for `until_signal`. Ignored ones stay so."""
    noted: list[int] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, lambda came, _: noted.append(came))
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def until_signal(noted: list[int], function: Callable[[], Awaitable[_T]]) -> _T | str:
    """Call `function`, and cancel it at a signal.

    Args:
        noted: the list of `noted_signals`. What came before this began counts, too.
        function: what to call.

    Returns:
        What it returns, or a word about the signal.
    """
    with end_signals() as signals:
        if noted:
            return _word(noted[0])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at_signal, signals, noted, nursery.cancel_scope)
            result = await function()
            nursery.cancel_scope.cancel(reason="it has ended")
            return result
    return _word(noted[0])


async def _cancel_at_signal(
    signals: AsyncIterator[int], noted: list[int], scope: trio.CancelScope
) -> None:
    async for number in signals:
        noted.append(number)
        scope.cancel(reason="a signal has come")


def _word(number: int) -> str:
    return "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
