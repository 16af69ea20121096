"""A server leaves, changes and is replaced while clients are connected."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from websockets.exceptions import InvalidStatus
from websockets.trio.client import ClientConnection, connect

from tests.e2e.conftest import Ending, ending_of, receive
from tests.e2e.nats import free_port, nats_client, running_nats
from tests.e2e.test_cli import children_of, ended, ready
from tests.e2e.test_workers import Running
from tests.waiting import wait_until
from trio_odin.settings.reading import read_settings
from trio_odin.workers import slot as worker_slot
from trio_odin.workers.supervisor import Supervisor, serve_with_workers

pytestmark = pytest.mark.e2e

CLIENTS = 300
SUBSCRIBE = '{"type":"subscribe","channels":["BTC.trade"]}'


@asynccontextmanager
async def server(folder: Path, *arguments: str, **variables: str) -> AsyncIterator[Running]:
    """`trio-odin serve` without a terminal, and NATS; killed at the end of the test."""
    port = free_port()
    with running_nats(folder) as nats:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "trio_odin", "serve", "--addr", f"127.0.0.1:{port}", *arguments],
            env={**os.environ, "NATS_URL": nats.url, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            await ready(port)
            yield Running(process, port, nats.url)
        finally:
            process.kill()


def url_of(running: Running) -> str:
    return f"ws://127.0.0.1:{running.port}/ws"


async def subscribe(client: ClientConnection) -> None:
    await client.send(SUBSCRIBE)
    assert (await receive(client))["type"] == "subscription_ack"


def logged(text: str, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if line["event"] == event]


async def end(running: Running) -> tuple[int, str]:
    running.process.send_signal(signal.SIGTERM)
    code, _, log = await ended(running.process)
    return code, log


# --- SIGTERM


@attrs.define
class Leavers:
    """Clients that receive until they are closed."""

    endings: dict[int, Ending] = attrs.Factory(dict)
    closed_at: dict[int, float] = attrs.Factory(dict)

    async def run(self, number: int, client: ClientConnection) -> None:
        self.endings[number] = await ending_of(client)
        self.closed_at[number] = trio.current_time()


async def test_sigterm_under_load_closes_each_of_300_at_its_own_time(
    tmp_path: Path,
) -> None:
    async with (
        server(tmp_path, WS_ACCEPT_RATE="100", WS_DRAIN_SECONDS="20") as running,
        trio.open_nursery() as nursery,
        AsyncExitStack() as stack,
    ):
        leavers = Leavers()
        for number in range(CLIENTS):
            client = await stack.enter_async_context(connect(url_of(running)))
            await subscribe(client)
            nursery.start_soon(leavers.run, number, client)
        nursery.start_soon(publish_until_cancelled, running, nursery.cancel_scope)
        await trio.sleep(0.2)
        running.process.send_signal(signal.SIGTERM)
        began = trio.current_time()
        await check_that_nobody_is_let_in(running)
        await wait_until(lambda: len(leavers.endings) == CLIENTS)
        took = trio.current_time() - began
        code, _, log = await ended(running.process)
        assert code == 0
        assert trio.current_time() - began < 20
        assert 2.9 < took < 15
        for ending in leavers.endings.values():
            assert (ending.code, ending.text) == (1001, "Server is shutting down")
            seqs = [event["seq"] for event in ending.events]
            assert seqs == list(range(1, len(seqs) + 1)), "nothing was lost"
        slots = sorted(slot for (slot,) in (e.reconnect_in_ms for e in leavers.endings.values()))
        assert slots[-1] == pytest.approx(3000, abs=200)
        assert all(math.isclose(slot, 10 * n, abs_tol=200) for n, slot in enumerate(slots))
        early = [n for n, ending in leavers.endings.items() if ending.reconnect_in_ms[0] < 1000]
        late = [n for n, ending in leavers.endings.items() if ending.reconnect_in_ms[0] > 2000]
        assert max(leavers.closed_at[n] for n in early) < min(leavers.closed_at[n] for n in late)
        assert len(leavers.endings[early[0]].events) < len(leavers.endings[late[0]].events)
        (finished,) = logged(log, "drain.finished")
        assert finished["imbalance"] == 0
        assert finished["matched"] == finished["written"] + sum(finished["dropped"].values())
        assert finished["written"] == sum(len(e.events) for e in leavers.endings.values())
        assert not logged(log, "drain.cut")
        nursery.cancel_scope.cancel()


async def publish_until_cancelled(running: Running, scope: trio.CancelScope) -> None:
    # nats-py runs in its own loop: it is cancelled only between two events.
    async with nats_client(running.nats_url) as publisher:
        while not scope.cancel_called:
            await publisher.publish("odin.token.BTC.trade", b"1")
            with trio.CancelScope(shield=True):
                await trio.sleep(0.05)


async def check_that_nobody_is_let_in(running: Running) -> None:
    with trio.fail_after(2):
        while (await running.page("/ready"))[0] != 503:
            await trio.sleep(0.01)
    with pytest.raises(InvalidStatus, match="503") as refused:
        await connect(url_of(running)).__aenter__()
    body = refused.value.response.body
    assert body is not None
    assert body.startswith(b"Server is shutting down")


async def test_a_client_that_reads_nothing_does_not_delay_the_exit(tmp_path: Path) -> None:
    async with server(tmp_path, WS_DRAIN_SECONDS="2", WS_WRITE_DEADLINE="60s") as running:
        stream = await trio.open_tcp_stream("127.0.0.1", running.port)
        async with stream:
            await stream.send_all(
                b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            await stream.receive_some()
            began = trio.current_time()
            code, log = await end(running)
        assert code == 0
        assert 1 < trio.current_time() - began < 20, "not the time of a write"
        assert logged(log, "drain.cut")[0]["connections"] == 1
        assert logged(log, "drain.finished")[0]["imbalance"] == 0


# --- SIGHUP


async def reloads(running: Running, **wanted: float) -> None:
    """Send SIGHUP, and wait for its result."""
    running.process.send_signal(signal.SIGHUP)
    with trio.fail_after(10):
        while await counted(running) != wanted:
            await trio.sleep(0.02)


async def counted(running: Running) -> dict[str, float]:
    _, page = await running.page("/metrics")
    prefix = 'ws_config_reloads_total{result="'
    lines = [line.removeprefix(prefix) for line in page.splitlines() if line.startswith(prefix)]
    return {line.split('"')[0]: float(line.split()[-1]) for line in lines}


@pytest.mark.parametrize("count", [1, 2])
async def test_sighup_reloads_the_file_and_a_bad_file_changes_nothing(
    count: int, tmp_path: Path
) -> None:
    file = tmp_path / "settings"
    file.write_text("WS_MAX_CONNECTIONS=2\n")
    async with server(
        tmp_path, "--workers", str(count), WS_RELOAD_FILE=str(file), WS_MAX_CONNECTIONS="99"
    ) as running:
        assert await limit(running) == 2
        file.write_text("# more\nWS_MAX_CONNECTIONS=7\nWS_OUTBOX_CAPACITY=5\nWS_TYPO=1\n")
        await reloads(running, ok=count, failed=0)
        assert await limit(running) == 7
        file.write_text("WS_MAX_CONNECTIONS=8\nWS_MAX_CHANNELS=many\n")
        await reloads(running, ok=count, failed=1)
        assert await limit(running) == 7
        file.write_text("")
        await reloads(running, ok=2 * count, failed=1)
        assert await limit(running) == 99, "the environment's again"
        code, log = await end(running)
    assert code == 0
    done = logged(log, "reload.done")
    assert [line["changed"] for line in done if "WS_MAX_CONNECTIONS" in line["changed"]]
    assert any("WS_OUTBOX_CAPACITY" in line["reason"] for line in logged(log, "reload.later"))
    (failed,) = logged(log, "reload.failed")
    assert failed["reason"].startswith("WS_MAX_CHANNELS='many': allowed is a whole number")
    (typo,) = logged(log, "setting.ignored")
    assert "WS_TYPO is unknown" in typo["reason"]


async def limit(running: Running) -> float:
    return (await running.metrics())["ws_capacity_max_connections"]


async def test_a_restarted_worker_has_the_settings_of_the_last_good_file(
    tmp_path: Path,
) -> None:
    file = tmp_path / "settings"
    file.write_text("")
    async with server(tmp_path, "--workers", "2", WS_RELOAD_FILE=str(file)) as running:
        await running.wait_for_workers(alive=2)
        file.write_text("WS_OUTBOX_CAPACITY=5\nWS_MAX_CONNECTIONS=7\n")
        await reloads(running, ok=2, failed=0)
        file.write_text("WS_MAX_CONNECTIONS=many\n")
        await reloads(running, ok=2, failed=1)
        for worker in children_of(running.process.pid):
            os.kill(worker, signal.SIGKILL)
            await running.wait_for_workers(alive=2)
        await running.wait_for_workers(alive=2, restarts=2)
        assert await limit(running) == 7
        assert (await end(running))[0] == 0


# --- SIGUSR2


async def test_sigusr2_is_refused_by_a_server_of_one_process(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        running.process.send_signal(signal.SIGUSR2)
        await trio.sleep(0.1)
        assert (await running.page("/ready"))[0] == 200
        code, log = await end(running)
    assert code == 0
    assert len(logged(log, "rolling.refused")) == 1


async def test_a_rolling_restart_refuses_nobody_and_loses_nothing(tmp_path: Path) -> None:
    async with (
        server(tmp_path, "--workers", "2", WS_CPU_REJECT_THRESHOLD="0") as running,
        AsyncExitStack() as stack,
    ):
        await running.wait_for_workers(alive=2)
        before = children_of(running.process.pid)
        residents = [await stack.enter_async_context(connect(url_of(running))) for _ in range(32)]
        for client in residents:
            await subscribe(client)
        log = Visitors()
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(log.visit, running)
            nursery.start_soon(log.look, running)
            await wait_until(lambda: log.visits > 20)
            running.process.send_signal(signal.SIGUSR2)
            await wait_for_rollings(running, 2)
            # The old ones keep their clients for two seconds more.
            await wait_until(lambda: len(children_of(running.process.pid)) == 2)
            log.is_over = True
        assert log.refused == []
        assert log.not_ready == []
        assert log.visits > 50
        after = children_of(running.process.pid)
        assert len(after) == 2
        assert not before & after
        for client in residents:
            ending = await ending_of(client)
            assert (ending.code, ending.text) == (1001, "Server is shutting down")
            assert len(ending.reconnect_in_ms) == 1
        metrics = await running.metrics()
        assert metrics["ws_worker_restarts_total"] == 0
        assert metrics["ws_ledger_imbalance"] == 0
        assert metrics["ws_connections_rejected_total"] == 0
        assert metrics["ws_workers_alive"] == 2
        code, printed = await end(running)
    assert code == 0
    assert len(logged(printed, "worker.retired")) == 2
    assert len(logged(printed, "rolling.finished")) == 1
    assert not [line for line in printed.splitlines() if '"level": "error"' in line]


@attrs.define
class Visitors:
    """Clients that come and go, and their outcomes."""

    visits: int = 0
    is_over: bool = False
    refused: list[str] = attrs.Factory(list)
    not_ready: list[str] = attrs.Factory(list)

    async def visit(self, running: Running) -> None:
        """Connect again and again; a later close by the server does not matter."""
        while not self.is_over and self.visits < 5000:
            try:
                with trio.fail_after(10):
                    async with connect(url_of(running)):
                        self.visits += 1
            except (OSError, InvalidStatus, trio.TooSlowError) as error:
                self.refused.append(repr(error))
            await trio.sleep(0.02)

    async def look(self, running: Running) -> None:
        while not self.is_over:
            for page in ("/ready", "/health"):
                status, text = await running.page(page)
                # A successor that has just begun to listen does not have NATS for a moment.
                if status != 200 and "NATS is disconnected" not in text:
                    self.not_ready.append(text)
            await trio.sleep(0.02)


async def wait_for_rollings(running: Running, count: int) -> None:
    with trio.fail_after(40):
        while (await running.metrics())["ws_worker_rollings_total"] < count:
            await trio.sleep(0.05)


async def test_a_successor_that_cannot_serve_leaves_the_old_server_running(tmp_path: Path) -> None:
    file = tmp_path / "settings"
    file.write_text("")
    async with server(tmp_path, "--workers", "2", WS_RELOAD_FILE=str(file)) as running:
        await running.wait_for_workers(alive=2)
        before = children_of(running.process.pid)
        file.write_text("JS_STREAM_NAME=OTHER\nNATS_MODE=jetstream\nNATS_URL=nats://127.0.0.1:1\n")
        await reloads(running, ok=2, failed=0)
        running.process.send_signal(signal.SIGUSR2)
        await wait_until(lambda: len(children_of(running.process.pid)) == 3)
        running.process.send_signal(signal.SIGUSR2)
        (successor,) = children_of(running.process.pid) - before
        os.kill(successor, signal.SIGKILL)
        with trio.fail_after(10):
            while (await running.metrics())["ws_worker_restarts_total"] < 1:
                await trio.sleep(0.02)
        await wait_until(lambda: children_of(running.process.pid) == before)
        assert (await running.metrics())["ws_worker_rollings_total"] == 0
        code, log = await end(running)
    assert code == 0
    assert len(logged(log, "rolling.failed")) == 1
    assert len(logged(log, "rolling.refused")) == 1


# --- a worker that hangs


async def test_a_worker_that_is_silent_too_long_is_killed_and_replaced(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker_slot.HUNG_SECONDS == 30
    monkeypatch.setattr(worker_slot, "HUNG_SECONDS", 4.0)
    with running_nats(tmp_path) as nats:
        variables = {"WS_WORKERS": "2", "WS_ADDR": "127.0.0.1:0", "NATS_URL": nats.url}
        parent: Supervisor = await nursery.start(
            serve_with_workers, read_settings(variables), {**os.environ, **variables}
        )
        await wait_until(lambda: serving(parent.workers))
        first, second = (worker.process for worker in parent.workers)
        assert first is not None
        os.kill(first.pid, signal.SIGSTOP)
        await wait_until(lambda: parent.workers[0].restarts == 1)
        await wait_until(lambda: serving(parent.workers))
        assert first.returncode == -signal.SIGKILL
        assert parent.workers[1].process is second, "nobody falls with another"
        parent.drain()
        await parent.finished.wait()


def serving(workers: Sequence[worker_slot.WorkerSlot]) -> bool:
    return all(worker.missing_since is None for worker in workers)


# --- a process that hangs, and the notices to systemd


async def test_a_stalled_process_ends_so_that_it_is_started_again(tmp_path: Path) -> None:
    async with server(tmp_path, WS_WATCHDOG_SECONDS="5") as running:
        assert (await running.page("/ready"))[0] == 200
        running.process.send_signal(signal.SIGSTOP)
        await trio.sleep(6)
        running.process.send_signal(signal.SIGCONT)
        code, _, log = await ended(running.process)
        assert code == 1
        assert "Timeout (0:00:05)!" in log
        assert "trio/_core/_run.py" in log, "where it stood"


async def test_without_the_watchdog_a_stalled_process_continues(tmp_path: Path) -> None:
    async with server(tmp_path, WS_WATCHDOG_SECONDS="0") as running:
        running.process.send_signal(signal.SIGSTOP)
        await trio.sleep(3)
        running.process.send_signal(signal.SIGCONT)
        assert (await running.page("/ready"))[0] == 200
        assert (await end(running))[0] == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_systemd_is_notified_of_serving_of_life_and_of_leaving(
    tmp_path: Path, workers: str
) -> None:
    path = str(tmp_path / "notify")
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        await systemd.bind(path)
        async with server(tmp_path, "--workers", workers, NOTIFY_SOCKET=path) as running:
            states: list[str] = []
            with trio.fail_after(30):
                while states.count("WATCHDOG=1") < 3:
                    states.append((await systemd.recv(100)).decode())
            assert (await end(running))[0] == 0
            with trio.fail_after(30):
                while "STOPPING=1" not in states:
                    states.append((await systemd.recv(100)).decode())
    assert states.count("READY=1") == 1
    assert states[-1] == "STOPPING=1"


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_sigusr1_ends_nothing(tmp_path: Path, workers: str) -> None:
    async with server(tmp_path, "--workers", workers) as running:
        await running.wait_for_workers(alive=int(workers))
        pids = [running.process.pid, *children_of(running.process.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGUSR1)
        await running.wait_for_workers(alive=int(workers), restarts=0)
        code, log = await end(running)
        assert code == 0
        assert [line["signal"] for line in logged(log, "signal.ignored")] == ["SIGUSR1"]
