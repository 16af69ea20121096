"""A server of several processes: one port, one set of figures, separate failures."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.trio.client import ClientConnection, connect

from tests.e2e.conftest import ending_of, receive
from tests.e2e.nats import free_port, nats_client, running_nats
from tests.e2e.test_cli import children_of, ended, ready, run, start
from tests.waiting import wait_until
from trio_odin.lab.fleet.dialects import upgrade_request
from trio_odin.lab.load.pages import parse_metrics

pytestmark = pytest.mark.e2e

# By chance all of these connections go to one of two workers once in 2**31 runs.
ENOUGH = 32


@attrs.define
class Running:
    """A server of two workers, with the clients of the test."""

    process: trio.Process
    port: int
    nats_url: str
    clients: list[ClientConnection] = attrs.Factory(list)

    async def page(self, path: str) -> tuple[int, str]:
        """A page over its own connection, so from any one worker."""

        def ask() -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            finally:
                connection.close()

        with trio.fail_after(10):
            while True:
                try:
                    return await trio.to_thread.run_sync(ask)
                except ConnectionError:  # it was in the queue of a killed worker
                    await trio.sleep(0.01)

    async def metrics(self) -> dict[str, float]:
        _, page = await self.page("/metrics")
        return parse_metrics(page)

    async def workers(self) -> dict[str, Any]:
        _, page = await self.page("/health")
        of_all: dict[str, Any] = json.loads(page)["workers"]
        return of_all

    async def wait_for_workers(self, **wanted: Any) -> None:
        with trio.fail_after(15):
            while not wanted.items() <= (await self.workers()).items():
                await trio.sleep(0.05)

    async def publish(self, payload: bytes = b"1") -> None:
        async with nats_client(self.nats_url) as publisher:
            await publisher.publish("odin.token.BTC.trade", payload)


@asynccontextmanager
async def server(
    folder: Path,
    *,
    clients: int,
    stream: dict[str, Any] | None = None,
    alive: int = 2,
    **variables: str,
) -> AsyncIterator[Running]:
    """Two workers, NATS, and `clients` subscribed to BTC.trade; killed at the end of the test.

    `stream` is made first; it waits for `alive` workers.
    """
    port = free_port()
    async with AsyncExitStack() as stack:
        nats = stack.enter_context(running_nats(folder))
        if stream is not None:
            async with nats_client(nats.url) as maker:
                made = await maker.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", stream)
                assert "error" not in made, made
        process = await start(
            "serve", "--workers", "2", "--addr", f"127.0.0.1:{port}", "--nats", nats.url,
            **variables,
        )  # fmt: skip
        stack.callback(process.kill)
        url = await ready(port)
        running = Running(process, port, nats.url)
        await running.wait_for_workers(alive=alive)
        for _ in range(clients):
            client = await stack.enter_async_context(connect(url))
            await client.send('{"type":"subscribe","channels":["BTC.trade"]}')
            assert (await receive(client))["type"] == "subscription_ack"
            running.clients.append(client)
        yield running


async def end(running: Running) -> tuple[int, str]:
    """Stop the server in order; returns its exit code and its log."""
    running.process.send_signal(signal.SIGTERM)
    code, _, logged = await ended(running.process)
    return code, logged


async def test_two_workers_share_port_and_events_and_leave_together(tmp_path: Path) -> None:
    async with server(tmp_path, clients=ENOUGH) as running:
        held = (await running.workers())["connections"]
        assert sum(held) == ENOUGH
        assert all(held), "both have some"
        await running.publish()
        for client in running.clients:
            event = await receive(client)
            assert (event["seq"], event["channel"], event["data"]) == (1, "BTC.trade", 1)
        running.process.send_signal(signal.SIGTERM)
        for client in running.clients:
            ending = await ending_of(client)
            assert (ending.code, ending.text) == (1001, "Server is shutting down")
            assert len(ending.reconnect_in_ms) == 1
        code, _, logged = await ended(running.process)
        assert code == 0
        assert logged.count('"event": "drain.finished"') == 2
        lines = [json.loads(line) for line in logged.splitlines()]
        assert {1, 2} <= {line.get("worker") for line in lines}
        assert {line["level"] for line in lines} == {"info"}


async def test_any_worker_answers_for_all(tmp_path: Path) -> None:
    async with server(tmp_path, clients=10, WS_MAX_CONNECTIONS="12") as running:
        for _ in range(6):
            metrics = await running.metrics()
            assert metrics["ws_connections_current"] == metrics["ws_connections_total"] == 10
            assert metrics["ws_worker_connections"] == 10
            assert (metrics["ws_workers"], metrics["ws_workers_alive"]) == (2, 2)
            assert metrics["ws_nats_connected"] == 1
            status, page = await running.page("/health")
            content = json.loads(page)
            assert (status, content["status"]) == (200, "healthy")
            assert content["checks"]["capacity"]["current"] == 10
            assert sum(content["workers"]["connections"]) == 10
            assert (await running.page("/ready"))[0] == 200
        await check_limit(running, free=2)
        assert (await end(running))[0] == 0


async def check_limit(running: Running, *, free: int) -> None:
    """There is one limit for all workers, so it does not matter which one a client meets."""
    url = f"ws://127.0.0.1:{running.port}/ws"
    async with AsyncExitStack() as stack:
        for _ in range(free):
            await stack.enter_async_context(connect(url))
        while (await running.metrics())["ws_connections_current"] < 10 + free:
            await trio.sleep(0.02)
        # For a page the parent asks all workers and distributes their figures before the next page.
        await running.page("/health")
        for _ in range(6):
            with pytest.raises(InvalidStatus, match="503"):
                await stack.enter_async_context(connect(url))
    assert (await running.metrics())["ws_connections_rejected_total"] == 6


async def test_a_killed_worker_is_replaced_and_no_other_client_notices(tmp_path: Path) -> None:
    async with server(tmp_path, clients=ENOUGH) as running:
        await running.publish()
        for client in running.clients:
            await receive(client)
        before = await running.metrics()
        held = (await running.workers())["connections"]
        killed, spared = children_of(running.process.pid)
        os.kill(killed, signal.SIGKILL)
        await running.wait_for_workers(alive=2, restarts=1)
        after = await running.metrics()
        gone_down = {n for n in before if n.endswith("_total") and after[n] < before[n]}
        assert not gone_down
        assert after["ws_ledger_imbalance"] == 0
        assert after["ws_connections_current"] in held
        lost = ENOUGH - after["ws_connections_current"]
        assert after["ws_connections_closed_total"] == lost
        assert spared in children_of(running.process.pid)
        await running.publish(b"2")
        outcomes = [await outcome(client) for client in running.clients]
        assert outcomes.count(2) == ENOUGH - lost
        assert outcomes.count(None) == lost
        code, logged = await end(running)
        assert code == 0
        assert logged.count('"how": "SIGKILL"') == 1


async def outcome(client: ClientConnection) -> object:
    """The data of the next event, None if the connection was lost."""
    try:
        return (await receive(client))["data"]
    except ConnectionClosed:
        return None


async def test_a_worker_that_leaves_in_order_loses_nothing(tmp_path: Path) -> None:
    async with server(tmp_path, clients=8) as running:
        held = (await running.workers())["connections"]
        os.kill(min(children_of(running.process.pid)), signal.SIGTERM)
        await running.wait_for_workers(alive=2, restarts=1)
        metrics = await running.metrics()
        _, page = await running.page("/metrics")
        assert re.findall(r'"worker_lost"\} (\S+)', page) == ["0.0"] * 3
        assert metrics["ws_connections_closed_total"] in held
        assert metrics["ws_connections_total"] == 8
        assert metrics["ws_ledger_imbalance"] == 0
        assert (await end(running))[0] == 0


async def test_a_hung_worker_does_not_stop_the_pages(
    tmp_path: Path,
) -> None:
    async with server(tmp_path, clients=0) as running:
        hung = min(children_of(running.process.pid))
        os.kill(hung, signal.SIGSTOP)
        try:
            alive: set[int | None] = set()
            async with trio.open_nursery() as nursery:
                for _ in range(12):
                    nursery.start_soon(ask_who_is_alive, running, alive)
        finally:
            os.kill(hung, signal.SIGCONT)
        assert alive - {None} == {1}  # a request to the hung one itself gets no answer
        await running.wait_for_workers(alive=2, restarts=0)
        assert (await end(running))[0] == 0


async def ask_who_is_alive(running: Running, answers: set[int | None]) -> None:
    """Ask how many workers are alive; None if the asked one does not answer."""

    def ask() -> int | None:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=0.9)
        try:
            connection.request("GET", "/health")
            return int(json.loads(connection.getresponse().read())["workers"]["alive"])
        except TimeoutError:
            return None
        finally:
            connection.close()

    answers.add(await trio.to_thread.run_sync(ask))


async def test_workers_whose_parent_is_killed_leave_by_themselves(tmp_path: Path) -> None:
    async with server(tmp_path, clients=4) as running:
        workers = children_of(running.process.pid)
        assert len(workers) == 2
        running.process.kill()
        for client in running.clients:
            ending = await ending_of(client)
            assert (ending.code, ending.text) == (1001, "Server is shutting down")
            assert len(ending.reconnect_in_ms) == 1
        code, _, logged = await ended(running.process)  # their standard error ends with them
        assert code == -signal.SIGKILL
        assert logged.count('"workers.parent_gone"') == 2
        assert logged.count('"drain.finished"') == 2
        await wait_until(lambda: not any(is_running(worker) for worker in workers))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_while_workers_leave_new_clients_are_answered_at_once(
    tmp_path: Path, number: signal.Signals
) -> None:
    """One has a client that stays; the other ends at once, and its queue is answered."""
    async with server(tmp_path, clients=1, WS_DRAIN_SECONDS="5s") as running:
        with trio.socket.socket() as stays:
            await stays.connect(("127.0.0.1", running.port))
            await stays.send(upgrade_request("127.0.0.1", "/ws"))
            assert (await stays.recv(4096)).startswith(b"HTTP/1.1 101")
            workers = children_of(running.process.pid)
            running.process.send_signal(number)
            await wait_until(lambda: sum(map(is_running, workers)) == 1)
            await trio.sleep(0.5)
            for _ in range(20):
                with trio.fail_after(2):
                    assert await asked(running.port) == b"HTTP/1.1 503 "
            await ended(running.process)


async def asked(port: int) -> bytes:
    with trio.socket.socket() as sock:
        await sock.connect(("127.0.0.1", port))
        await sock.send(upgrade_request("127.0.0.1", "/ws"))
        return (await sock.recv(4096))[:13]


async def test_a_second_signal_cuts_the_workers(tmp_path: Path) -> None:
    async with server(tmp_path, clients=2) as running:
        workers = children_of(running.process.pid)
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)  # they cannot leave in order
        running.process.send_signal(signal.SIGTERM)
        await trio.sleep(0.2)
        running.process.send_signal(signal.SIGTERM)
        assert (await ended(running.process))[0] == 0
        assert not any(is_running(worker) for worker in workers)


async def test_a_taken_port_is_one_sentence_and_only_from_the_parent(tmp_path: Path) -> None:
    with running_nats(tmp_path) as someone:
        address = f"127.0.0.1:{someone.port}"
        result = await trio.to_thread.run_sync(run, "serve", "--workers", "2", "--addr", address)
    assert result.returncode == 2
    said = [line for line in result.stderr.splitlines() if '"server.starting"' not in line]
    assert said == [f"trio-odin: cannot listen on {address}: another program is listening there"]


ONE_CONSUMER = {
    "name": "ODIN_TOKENS", "subjects": ["odin.token.>"], "storage": "memory", "retention": "limits",
    "max_consumers": 1, "max_age": 30_000_000_000, "discard": "old",
}  # fmt: skip


async def test_a_worker_that_nats_has_no_room_for_accepts_no_clients(tmp_path: Path) -> None:
    async with server(tmp_path, clients=ENOUGH, stream=ONE_CONSUMER, alive=1) as running:
        await trio.sleep(6)  # longer than one waits if nobody has NATS
        assert sorted((await running.workers())["connections"]) == [0, ENOUGH]
        await running.publish()
        for client in running.clients:
            assert (await receive(client))["data"] == 1
        for _ in range(10):
            assert (await running.page("/ready"))[0] == 200
        status, page = await running.page("/health")
        assert status == 503
        assert "1 of 2 workers alive" in page
        assert "maximum consumers limit reached" in page
        assert (await end(running))[0] == 0


async def test_workers_without_nats_accept_clients_after_a_while(
    tmp_path: Path,
) -> None:
    port = free_port()
    url = f"ws://127.0.0.1:{port}/ws"
    process = await start(
        "serve", "--workers", "2", "--addr", f"127.0.0.1:{port}",
        "--nats", f"nats://127.0.0.1:{free_port()}",
    )  # fmt: skip
    try:
        running = Running(process, port, "")
        with trio.fail_after(60):
            while True:
                try:
                    await running.page("/")
                    break
                except (OSError, trio.TooSlowError):
                    await trio.sleep(0.1)
        await running.wait_for_workers(alive=2)
        assert (await running.page("/ready"))[0] == 503
        async with connect(url):
            pass
        assert (await end(running))[0] == 0
    finally:
        process.kill()


async def test_while_the_parent_is_stopped_no_page_shows_one_worker_as_all(
    tmp_path: Path,
) -> None:
    async with server(tmp_path, clients=ENOUGH) as running:
        assert (await running.page("/metrics"))[0] == 200
        os.kill(running.process.pid, signal.SIGSTOP)
        try:
            for _ in range(4):
                status, page = await running.page("/metrics")
                assert (status, "ws_" in page) == (503, False)
            status, page = await running.page("/health")
            assert status == 503
            assert "The parent of the workers does not answer" in page
            assert json.loads(page)["workers"]["configured"] == 2
            assert (await running.page("/ready"))[0] == 200
            await running.publish()
            for client in running.clients:
                assert (await receive(client))["data"] == 1
        finally:
            os.kill(running.process.pid, signal.SIGCONT)
        await running.wait_for_workers(alive=2, restarts=0)
        assert (await running.metrics())["ws_connections_current"] == ENOUGH
        assert (await end(running))[0] == 0
