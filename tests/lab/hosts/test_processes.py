from __future__ import annotations

import os

import trio

from tests.lab.hosts.rig import first_line, python, start
from trio_odin.lab.hosts.processes import end_processes, members

_DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


async def test_a_process_that_does_not_stop_is_killed() -> None:
    with start(python(_DEAF)) as process:
        await first_line(process)

        with trio.fail_after(3):
            ended = await end_processes(lambda pid: pid == process.pid, grace_seconds=0.1)

        assert ended == 1
        # Dead but not yet waited for: a zombie does not need to be ended.
        assert members(lambda pid: pid == process.pid) == set()
    assert process.returncode == -9


async def test_a_process_that_stops_is_not_killed() -> None:
    with start(["sleep", "60"]) as process:
        assert await end_processes(lambda pid: pid == process.pid) == 1
    assert process.returncode == -15


async def test_the_own_process_is_never_ended() -> None:
    assert await end_processes(lambda pid: pid == os.getpid()) == 0
