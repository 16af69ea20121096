"""Completes a teardown despite cancellation and any number of Ctrl-C."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from trio_odin.lab.hosts.hosts import HostsUnavailable


@trio.lowlevel.enable_ki_protection
async def to_the_end(work: Callable[[], Awaitable[object]], seconds: float) -> None:
    """Run `work` for at most `seconds`; a cancellation or a Ctrl-C takes effect after it.

    trio raises KeyboardInterrupt in the main task, even inside a shield. So the work has its own
    task, and the main task, if it is the caller, waits for it.

    Raises:
        HostsUnavailable: the work was not done in time and was cancelled.
    """
    failures: list[Exception] = []
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_shielded, work, seconds, failures)
    except BaseExceptionGroup as interrupt:
        # The task raises nothing, so the group contains only the exception raised here.
        raise interrupt.exceptions[0] from None
    if failures:
        raise failures[0]


# Explicitly, as a task does not inherit the protection.
@trio.lowlevel.enable_ki_protection
async def _shielded(
    work: Callable[[], Awaitable[object]], seconds: float, failures: list[Exception]
) -> None:
    try:
        with trio.move_on_after(seconds, shield=True) as deadline:
            await work()
        if deadline.cancelled_caught:
            raise HostsUnavailable(
                f"tearing down was not done within {seconds:.0f} s: "
                "`trio-odin lab down` does the rest"
            )
    except Exception as failure:  # noqa: BLE001 - raised by who waits, without a group around it
        failures.append(failure)
