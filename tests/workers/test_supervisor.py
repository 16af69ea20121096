from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.telemetry.snapshots import changed, snapshot
from trio_odin.ledger.snapshot import Trouble, Workers
from trio_odin.net.address import Address
from trio_odin.overload.load import OtherWorkers
from trio_odin.settings.reading import read_settings
from trio_odin.workers.link import Accept, StatsReport
from trio_odin.workers.poll import Poll
from trio_odin.workers.process import environment_of_worker
from trio_odin.workers.slot import WorkerSlot
from trio_odin.workers.supervisor import Supervisor, WorkerUnfit, serve_with_workers


async def test_a_worker_that_ends_repeatedly_is_restarted_later_and_later() -> None:
    worker = WorkerSlot(1)
    pauses = [worker.next_pause_seconds(1.0) for _ in range(9)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


async def test_a_worker_that_ran_well_for_long_is_restarted_at_once() -> None:
    worker = WorkerSlot(1)
    for _ in range(5):
        worker.next_pause_seconds(1.0)
    assert [worker.next_pause_seconds(5.0), worker.next_pause_seconds(1.0)] == [0.1, 0.2]


async def test_a_worker_is_missing_until_it_serves_and_while_it_is_silent() -> None:
    worker = WorkerSlot(1)
    assert worker.missing_since is not None
    worker.note(snapshot(connections=4))
    assert worker.missing_since is None
    assert worker.connections == 4
    worker.note_silent()
    since = worker.missing_since
    worker.note_silent()
    assert worker.missing_since == since, "the first moment counts"
    assert worker.connections == 4, "what it held when it was asked last"


async def test_an_ended_worker_holds_nothing_and_leaves_its_figures() -> None:
    worker = WorkerSlot(1)
    assert worker.end() is None
    worker.note(snapshot(connections=4))
    assert worker.end() == snapshot(connections=4)
    assert (worker.last, worker.connections) == (None, 0)
    assert worker.missing_since is not None


async def test_a_worker_that_cannot_be_configured_ends_the_server(
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
    parent: Supervisor = await nursery.start(serve_with_workers, settings, environment)
    with trio.fail_after(10):
        while sum(worker.restarts for worker in parent.workers) < 4:
            await trio.sleep(0.05)
        assert parent.snapshot() is None
        parent.drain()
        await parent.finished.wait()
    assert "Fatal Python error" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("given", "share"),
    [
        ({"WS_TOTAL_OUTBOX_BYTES": "8000", "WS_REPLAY_BYTES": "4000"}, (2000, 1000)),
        ({"WS_MEMORY_LIMIT": "1600000"}, (100_000, 50_000)),
        # 0 would be a quarter, or an eighth, of the memory
        ({"WS_TOTAL_OUTBOX_BYTES": "2", "WS_REPLAY_BYTES": "2"}, (1, 1)),
    ],
)
def test_the_byte_limits_are_shared_by_all_workers(
    given: dict[str, str], share: tuple[int, int]
) -> None:
    environment = {"WS_WORKERS": "4", **given}
    settings = read_settings(environment)
    of_worker = environment_of_worker(settings, environment, Address("127.0.0.1", 5000))
    settings = read_settings(of_worker)
    assert (settings.total_outbox_bytes, settings.total_replay_bytes) == share


def test_a_worker_gets_the_real_port_and_the_total_limits() -> None:
    environment = {"WS_WORKERS": "4", "WS_ADDR": ":0", "WS_CPU_LIMIT": "3", "NATS_URL": "n"}
    settings = read_settings(environment)
    given = environment_of_worker(settings, environment, Address("127.0.0.1", 5000))
    assert (given["WS_ADDR"], given["NATS_URL"]) == ("127.0.0.1:5000", "n")
    settings = read_settings(given)
    assert (settings.cpu_limit_cores, settings.workers) == (3, 4)


async def test_each_worker_learns_the_load_of_the_others() -> None:
    parent = Supervisor(read_settings({"WS_WORKERS": "3"}), {}, Address("", 1))
    told: dict[int, object] = {}
    for worker, busy in zip(parent.workers, (90.0, 30.0, None), strict=True):
        worker.tell = partial(told.__setitem__, worker.number)  # type: ignore[assignment, method-assign]
        if busy is not None:
            worker.note(snapshot(connections=int(busy), loop_busy_percent=busy, memory_bytes=2**40))
    Poll(parent.workers).tell_of_others()
    first, third = told[1], told[3]
    assert isinstance(first, OtherWorkers)
    assert isinstance(third, OtherWorkers)
    assert (first.connections, first.cpu_cores) == (30, 0.3)
    assert third.connections == 120
    assert third.cpu_cores == pytest.approx(1.2)
    assert 2**40 < first.memory_bytes < 2**40 + 2**32, "one worker, and the parent"


async def test_clients_of_a_leaving_worker_are_not_counted_elsewhere() -> None:
    """They reconnect to the others, which would refuse them although the limit is not reached."""
    parent = Supervisor(read_settings({"WS_WORKERS": "2"}), {}, Address("", 1))
    told: dict[int, OtherWorkers] = {}
    for worker in parent.workers:
        worker.tell = partial(told.__setitem__, worker.number)  # type: ignore[assignment, method-assign]
        worker.note(snapshot(connections=100 * worker.number))
    parent.workers[0].is_leaving.set()
    Poll(parent.workers).tell_of_others()
    assert {number: elsewhere.connections for number, elsewhere in told.items()} == {1: 200, 2: 0}


async def test_clients_of_a_worker_that_leaves_by_itself_are_not_counted() -> None:
    parent, (leaving, other), (_, told) = parent_of(2)
    leaving.note(snapshot(connections=100, is_draining=True))
    other.note(TAKING)
    Poll(parent.workers).tell_of_others()
    assert [m.connections for m in told.messages if isinstance(m, OtherWorkers)] == [0]


async def test_a_new_worker_knows_the_others_load_before_it_serves(
    nursery: trio.Nursery,
) -> None:
    """Until then its limits would be those of a single worker."""
    parent, (new, other), (told, _) = parent_of(2)
    other.note(changed(TAKING, connections=100))
    says = iter([StatsReport(0, WITH_NATS), None])

    class Says:
        async def receive(self) -> StatsReport | None:
            return next(says)

    await parent._converse(new, Says(), nursery)  # type: ignore[arg-type]
    others, accept = told.messages
    assert isinstance(others, OtherWorkers)
    assert (others.connections, accept) == (100, Accept([1]))


async def test_keys_that_no_worker_could_load_are_refused_by_the_parent(
    tmp_path: Path,
) -> None:
    environment = {"WS_WORKERS": "2"}
    parent = Supervisor(read_settings(environment), environment, Address("", 1))
    before = parent._environment
    parent.reload(lambda: {**environment, "WS_JWT_KEYS": str(tmp_path / "missing")})
    assert parent._environment == before
    assert parent._past.ledger.traffic.reloads == {"failed": 1}


# --- sharing the port


class Told:
    """A process from its parent's view: the messages sent to it, and whether it was ended."""

    def __init__(self, worker: WorkerSlot) -> None:
        self.messages: list[object] = []
        self.times_ended = 0
        self.takes_messages = True
        worker.begin(self, self)  # type: ignore[arg-type]

    def send(self, message: object) -> bool:
        if self.takes_messages:
            self.messages.append(message)
        return self.takes_messages

    def terminate(self) -> None:
        self.times_ended += 1


WITHOUT_NATS = snapshot(is_open=False, is_connected=False, was_connected=False)
WITH_NATS = snapshot(is_open=False)
TAKING = snapshot()
DEAF = snapshot(is_connected=False, was_connected=False)


def parent_of(count: int) -> tuple[Supervisor, list[WorkerSlot], list[Told]]:
    queues: dict[int, list[trio.socket.SocketType]] = {n: [] for n in range(1, count + 1)}
    settings = read_settings({"WS_WORKERS": str(count)})
    parent = Supervisor(settings, {}, Address("", 1), queues)
    return parent, parent.workers, [Told(worker) for worker in parent.workers]


async def test_a_worker_serves_once_it_has_nats() -> None:
    parent, (worker,), (told,) = parent_of(1)
    parent._share_out_queues()
    worker.note(WITHOUT_NATS)
    parent._share_out_queues()
    assert told.messages == []
    worker.note(WITH_NATS)
    for _ in range(2):
        parent._share_out_queues()
    assert told.messages == [Accept([1])]
    assert not worker.takes_clients, "it has not said so yet"
    worker.note(TAKING)
    assert worker.takes_clients
    worker.note_silent()
    assert not worker.takes_clients


async def test_the_queue_of_an_ended_or_silent_worker_goes_to_another() -> None:
    parent, (one, other), (told_one, told_other) = parent_of(2)
    for worker in parent.workers:
        worker.note(TAKING)
    parent._share_out_queues()
    one.note_silent()
    parent._share_out_queues()
    assert told_other.messages == [Accept([2]), Accept([1, 2])]
    one.note(TAKING)
    parent._share_out_queues()
    assert told_other.messages[2:] == [Accept([2])]
    assert told_one.messages == [Accept([1])]
    one.end()
    parent._share_out_queues()
    assert told_other.messages[3:] == [Accept([1, 2])]
    other.end()
    parent._share_out_queues()  # without a worker they wait
    told_one = Told(one)
    one.note(WITH_NATS)
    parent._share_out_queues()
    assert told_one.messages == [Accept([1, 2])]


async def test_a_worker_that_leaves_by_itself_accepts_no_more_clients() -> None:
    parent, (one, other), (told_one, told_other) = parent_of(2)
    for worker in parent.workers:
        worker.note(TAKING)
    parent._share_out_queues()
    one.note(snapshot(is_draining=True))
    parent._share_out_queues()
    assert told_one.messages == [Accept([1]), Accept([])]
    assert told_other.messages == [Accept([2]), Accept([1, 2])]
    assert other.takes_clients


async def test_while_all_leave_the_last_ones_answer_new_clients() -> None:
    parent, (one, other), (told_one, told_other) = parent_of(2)
    for worker in parent.workers:
        worker.note(TAKING)
    parent._share_out_queues()
    parent.drain()
    for worker in parent.workers:
        worker.is_leaving.set()
        worker.note(snapshot(is_draining=True))
    parent._share_out_queues()
    one.end()
    parent._share_out_queues()
    assert told_one.messages == [Accept([1])]
    assert told_other.messages == [Accept([2]), Accept([1, 2])]
    assert other.takes_clients


async def test_a_worker_without_nats_serves_after_a_while_if_all_lack_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    parent, (one, other), (told_one, told_other) = parent_of(2)
    one.note(WITHOUT_NATS)
    other.note(WITHOUT_NATS)
    await trio.sleep(4.9)
    parent._share_out_queues()
    assert told_one.messages == told_other.messages == []
    await trio.sleep(0.2)
    parent._share_out_queues()
    assert (told_one.messages, told_other.messages) == ([Accept([1])], [Accept([2])])
    one.note(DEAF)
    other.note(TAKING)
    parent._share_out_queues()
    assert told_one.messages[1:] == [Accept([])]
    assert told_other.messages[1:] == [Accept([1, 2])]


async def test_a_worker_that_waits_for_nats_is_missing_but_not_hung(
    autojump_clock: trio.testing.MockClock,
) -> None:
    worker = WorkerSlot(1)
    Told(worker)
    worker.note(WITHOUT_NATS)
    await trio.sleep(100)
    worker.note(WITHOUT_NATS)
    assert worker.missing_since == 0
    assert not worker.hangs()
    worker.note_silent()
    await trio.sleep(31)
    assert worker.hangs()


async def test_a_serving_worker_without_nats_is_ended_once_others_have_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    parent, (deaf, other), (told, _) = parent_of(2)
    deaf.note(changed(DEAF, connections=3))
    other.note(WITHOUT_NATS)
    for ended in (0, 1):
        for _ in range(15):
            parent._end_deaf()
            await trio.sleep(1)
        assert told.times_ended == ended
        other.note(TAKING)


async def test_a_worker_is_not_ended_without_clients_or_in_a_later_outage(
    autojump_clock: trio.testing.MockClock,
) -> None:
    parent, (empty, lost, well), (told_empty, told_lost, _) = parent_of(3)
    empty.note(DEAF)
    lost.note(snapshot(is_connected=False, connections=3))
    well.note(TAKING)
    for _ in range(15):
        parent._end_deaf()
        await trio.sleep(1)
    assert (told_empty.times_ended, told_lost.times_ended) == (0, 0)


async def test_a_worker_that_hands_over_slowly_is_not_ended_for_nats(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A drain may take longer than that; two signals would cut its clients."""
    parent, (leaving, _), (told, _) = parent_of(2)
    for worker in parent.workers:
        worker.note(changed(TAKING, connections=3))
    leaving.is_leaving.set()
    for _ in range(15):
        parent._end_deaf()
        await trio.sleep(1)
    assert told.times_ended == 0


async def test_a_worker_that_cannot_be_asked_to_hand_over_gets_a_signal(
    nursery: trio.Nursery,
) -> None:
    parent, (worker, _), (told, _) = parent_of(2)
    told.takes_messages = False
    worker.note(TAKING)
    nursery.start_soon(parent._retire, worker)
    await trio.testing.wait_all_tasks_blocked()
    assert told.times_ended == 1


async def test_the_problem_of_a_worker_that_is_not_open_is_in_the_figures() -> None:
    parent = Supervisor(read_settings({"WS_WORKERS": "2"}), {}, Address("", 1))
    waiting, other = parent.workers
    for worker in parent.workers:
        Told(worker)
    waiting.note(changed(WITHOUT_NATS, trouble=Trouble("maximum consumers limit reached", 1.0)))
    other.note(TAKING)
    figures = workers_of(parent)
    assert (figures.alive, figures.configured) == (1, 2)
    assert figures.trouble == "maximum consumers limit reached"
    waiting.note(TAKING)
    figures = workers_of(parent)
    assert (figures.alive, figures.trouble) == (2, None)


def workers_of(parent: Supervisor) -> Workers:
    whole = parent.snapshot()
    assert whole is not None
    return whole.workers
