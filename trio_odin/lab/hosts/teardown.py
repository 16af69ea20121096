"""Tearing down to the end: whatever cancels us meanwhile, and however often Ctrl-C is pressed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from trio_odin.lab.hosts.hosts import HostsUnavailable


@trio.lowlevel.enable_ki_protection
async def to_the_end(work: Callable[[], Awaitable[object]], seconds: float) -> None:
    """Run `work` for `seconds` at most; a cancellation or a Ctrl-C takes effect when it is done.

    trio raises KeyboardInterrupt in the main task, also behind a shield. So the work has a task of
    its own, and the main task, if that is where we are, waits for it.

    Raises:
        HostsUnavailable: it was not done in time; it has been cancelled.
    """
    failures: list[Exception] = []
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_shielded, work, seconds, failures)
    except BaseExceptionGroup as interrupt:
        # The task raises nothing: what is in the group is what was raised in us, alone.
        raise interrupt.exceptions[0] from None
    if failures:
        raise failures[0]


# On its own: a task does not inherit it.
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
