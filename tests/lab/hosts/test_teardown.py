from __future__ import annotations

import signal

import pytest
import trio

from trio_odin.lab.hosts.hosts import HostsUnavailable
from trio_odin.lab.hosts.teardown import to_the_end


async def test_a_cancellation_waits_for_the_end_of_the_teardown(
    autojump_clock: trio.abc.Clock,
) -> None:
    is_done = False

    async def work() -> None:
        nonlocal is_done
        await trio.sleep(2)
        is_done = True

    with trio.move_on_after(1) as scope:
        await to_the_end(work, seconds=5)
        await trio.sleep_forever()
    assert is_done
    assert scope.cancelled_caught


async def test_work_that_takes_too_long_is_cancelled(autojump_clock: trio.abc.Clock) -> None:
    with trio.move_on_after(1), pytest.raises(HostsUnavailable, match="not done within"):
        await to_the_end(trio.sleep_forever, seconds=5)
    assert trio.current_time() == pytest.approx(5)


async def test_a_failure_is_raised_without_a_group() -> None:
    async def work() -> None:
        raise LookupError("of the work")

    with pytest.raises(LookupError, match="of the work"):
        await to_the_end(work, seconds=5)


def test_any_number_of_ctrl_c_takes_effect_after_the_teardown() -> None:
    steps: list[int] = []

    async def work() -> None:
        for step in range(5):
            signal.raise_signal(signal.SIGINT)
            await trio.sleep(0.001)
            steps.append(step)

    async def main() -> None:
        await to_the_end(work, seconds=5)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert steps == [0, 1, 2, 3, 4]
