from __future__ import annotations

import os

import pytest
import trio

from tests.telemetry.snapshots import snapshot
from trio_odin.config import read_settings
from trio_odin.core.address import Address
from trio_odin.server.workers import (
    Parent,
    Worker,
    WorkerUnfit,
    environment_of_worker,
    serve_with_workers,
)


async def test_a_worker_that_ends_again_and_again_comes_back_later_and_later() -> None:
    worker = Worker(1)
    pauses = [worker.next_pause_seconds(1.0) for _ in range(9)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


async def test_a_worker_that_was_in_order_for_long_comes_back_at_once() -> None:
    worker = Worker(1)
    for _ in range(5):
        worker.next_pause_seconds(1.0)
    assert [worker.next_pause_seconds(30.0), worker.next_pause_seconds(1.0)] == [0.1, 0.2]


async def test_a_worker_is_missing_until_it_serves_and_while_it_is_silent() -> None:
    worker = Worker(1)
    assert worker.missing_since is not None
    worker.note(snapshot(connections=4))
    assert worker.missing_since is None
    assert worker.connections == 4
    worker.note_missing()
    since = worker.missing_since
    worker.note_missing()
    assert worker.missing_since == since, "the first moment counts"
    assert worker.connections == 4, "what it held when it was asked last"


async def test_a_worker_that_has_ended_holds_nothing_and_leaves_its_figures() -> None:
    worker = Worker(1)
    assert worker.end() is None
    worker.note(snapshot(connections=4))
    assert worker.end() == snapshot(connections=4)
    assert (worker.last, worker.connections) == (None, 0)
    assert worker.missing_since is not None


async def test_a_worker_that_cannot_be_configured_ends_the_whole(
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings = read_settings({"WS_WORKERS": "2", "WS_ADDR": "127.0.0.1:0"})
    environment = os.environ | {"WS_WORKERS": "2", "WS_MAX_CHANNELS": "none"}
    with pytest.raises(ExceptionGroup) as caught, trio.fail_after(10):
        await serve_with_workers(settings, environment)
    assert caught.group_contains(WorkerUnfit)
    assert "trio-odin: WS_MAX_CHANNELS='none': allowed is" in capfd.readouterr().err


async def test_workers_that_cannot_start_are_tried_again_until_the_drain(
    capfd: pytest.CaptureFixture[str], nursery: trio.Nursery
) -> None:
    settings = read_settings({"WS_WORKERS": "2", "WS_ADDR": "127.0.0.1:0"})
    environment = os.environ | {"PYTHONHOME": "/nowhere"}
    parent: Parent = await nursery.start(serve_with_workers, settings, environment)
    with trio.fail_after(10):
        while sum(worker.restarts for worker in parent.workers) < 4:
            await trio.sleep(0.05)
        assert parent.snapshot() is None
        parent.drain()
        await parent.finished.wait()
    assert "Fatal Python error" in capfd.readouterr().err


@pytest.mark.parametrize(("limit", "share"), [("3", "0.750"), ("0", None)])
def test_a_worker_gets_the_settings_with_the_real_port_and_its_share_of_the_cpu(
    limit: str, share: str | None
) -> None:
    environment = {"WS_WORKERS": "4", "WS_ADDR": ":0", "WS_CPU_LIMIT": limit, "NATS_URL": "n"}
    given = environment_of_worker(
        read_settings(environment), environment, Address("127.0.0.1", 5000)
    )
    assert (given["WS_ADDR"], given["NATS_URL"]) == ("127.0.0.1:5000", "n")
    cores = len(os.sched_getaffinity(0))
    assert given["WS_CPU_LIMIT"] == (share or f"{cores / 4:.3f}")
    read_settings(given)
