from __future__ import annotations

import http.client
import json
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing
import trio_asyncio

from tests.e2e.nats import NatsServer, nats_client, running_nats
from trio_odin.demo.market import DEFAULT_TOKENS
from trio_odin.demo.publisher import Publisher, PublisherSettings, publish
from trio_odin.net.listening import Address
from trio_odin.wire.trace_context import parse_traceparent


@pytest.fixture
async def publisher(monkeypatch: pytest.MonkeyPatch) -> Publisher:
    """A publisher without sockets; its events are counted and go nowhere."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    settings = PublisherSettings(rate=10, tokens=("BTC", "ETH"))
    it = Publisher(settings, [listener])
    await listener.aclose()
    it.autostart()

    async def count(ticks: Sequence[int]) -> None:
        it.control.stats.published += len(ticks)

    monkeypatch.setattr(it, "_publish", count)
    return it


async def test_a_delayed_publisher_catches_up_and_keeps_its_schedule(
    publisher: Publisher, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(publisher.pump)
    await trio.sleep(1.05)
    assert publisher.control.stats.published == 10
    autojump_clock.jump(3)  # the whole process was stopped
    await trio.sleep(0.1)
    assert publisher.control.stats.published == 41
    await trio.sleep(1)
    assert publisher.control.stats.published == 51


async def test_a_run_with_a_duration_ends_by_itself(
    publisher: Publisher, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(publisher.pump)
    await trio.sleep(0.01)
    publisher.control.stop()
    await trio.sleep(1)
    now = trio.current_time()
    publisher.control.command(b'{"action":"start","duration":2000}', now=now, unix_ms=0)
    publisher._changed.set()
    await trio.sleep(1)
    publisher.control.command(b'{"action":"configure","tokens":["SOL"]}', now=now + 1, unix_ms=0)
    await trio.sleep(10)
    assert publisher.control.run is None
    assert publisher.control.stats.published == pytest.approx(20, abs=3)


async def test_after_a_long_sleep_only_the_last_seconds_are_made_up(
    publisher: Publisher, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(publisher.pump)
    await trio.sleep(0.01)
    autojump_clock.jump(3600)
    await trio.sleep(0.01)
    assert publisher.control.stats.published == 50
    assert publisher.control.stats.errors == pytest.approx(36_000 - 50, abs=1)


async def test_without_nats_ticks_are_errors_and_are_not_sent_later(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    it = Publisher(PublisherSettings(rate=10), [listener])
    await listener.aclose()
    it.autostart()
    nursery.start_soon(it.pump)
    await trio.sleep(2.05)
    assert (it.control.stats.published, it.control.stats.errors) == (0, 20)


@pytest.mark.parametrize("taken", [1, 0])
async def test_an_event_in_flight_is_an_error_only_if_it_fails(
    taken: int,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    it = Publisher(PublisherSettings(rate=1), [listener])
    await listener.aclose()
    it.autostart()

    def take(_: object) -> Callable[[], Awaitable[int]]:
        async def publish_batch() -> int:
            await trio.sleep(0.5)
            return taken

        return publish_batch

    class Link:
        is_up = True

    monkeypatch.setattr(trio_asyncio, "aio_as_trio", take)
    monkeypatch.setattr(it, "_link", Link())
    pumping = trio.CancelScope()

    async def pump() -> None:
        with pumping:
            await it.pump()

    nursery.start_soon(pump)
    await trio.sleep(1.25)
    assert (it.control.stats.published, it.control.stats.errors) == (0, 0)
    await trio.sleep(0.5)
    assert (it.control.stats.published, it.control.stats.errors) == (taken, 1 - taken)
    await trio.sleep(0.5)
    pumping.cancel()
    await trio.sleep(0.01)
    assert it.control.stats.errors == 2 - taken


async def test_a_late_event_carries_its_due_time(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    it = Publisher(PublisherSettings(rate=10, tokens=("BTC", "ETH"), seed=1), [listener])
    await listener.aclose()
    it.autostart()
    sent: list[tuple[str, float]] = []

    def take(function: partial[None]) -> Callable[[], Awaitable[int]]:
        async def publish_batch() -> int:
            _, batch = function.args
            sent.extend((subject, json.loads(data)["timestamp"]) for subject, data, _ in batch)
            return len(batch)

        return publish_batch

    class Link:
        is_up = True

    monkeypatch.setattr(trio_asyncio, "aio_as_trio", take)
    monkeypatch.setattr(it, "_link", Link())
    # The time of day at 0 of the trio clock, to the millisecond.
    midnight = 1_700_000_000.0 - trio.current_time()
    monkeypatch.setattr(time, "time", lambda: midnight + trio.current_time())
    nursery.start_soon(it.pump)
    await trio.sleep(0.01)
    autojump_clock.jump(2)  # the whole process was stopped
    await trio.sleep(0.01)
    assert [subject for subject, _ in sent] == ["odin.token.BTC.trade", "odin.token.ETH.trade"] * 10
    planned = [1_700_000_000_000 + 100 * tick for tick in range(1, 21)]
    assert [stamp for _, stamp in sent] == pytest.approx(planned, abs=1)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
async def test_a_share_of_the_events_begins_a_sampled_trace(share: float) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    it = Publisher(PublisherSettings(seed=1, traced_share=share), [listener])
    await listener.aclose()
    headers = [it._headers() for _ in range(1000)]
    assert sum(one is not None for one in headers) == pytest.approx(1000 * share, abs=80)
    contexts = [parse_traceparent(one["traceparent"]) for one in headers if one]
    assert all(context and context.is_sampled for context in contexts)
    assert len({context.trace_id for context in contexts if context}) == len(contexts)


@pytest.mark.e2e
async def test_traced_events_have_the_header_in_nats(nursery: trio.Nursery, tmp_path: Path) -> None:
    with running_nats(tmp_path) as nats:
        async with nats_client(nats.url, headers=True) as listener:
            await listener.send(b"SUB odin.token.*.trade 9\r\n")
            await listener.flush()
            settings = PublisherSettings(
                address=Address("127.0.0.1", 0), nats_urls=[nats.url], rate=100, traced_share=1.0
            )
            await nursery.start(publish, settings)
            line = await listener.receive_line(b"traceparent: ")
    context = parse_traceparent(line.decode().removeprefix("traceparent: ").strip())
    assert context is not None
    assert context.is_sampled


async def test_a_believable_market_keeps_the_rate(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    settings = PublisherSettings(rate=30, seed=1, shares="zipf", events=("trade", "analytics"))
    it = Publisher(settings, [listener])
    await listener.aclose()
    it.autostart()
    sent: list[str] = []

    def take(function: partial[None]) -> Callable[[], Awaitable[int]]:
        async def publish_batch() -> int:
            _, batch = function.args
            sent.extend(subject for subject, *_ in batch)
            return len(batch)

        return publish_batch

    class Link:
        is_up = True

    monkeypatch.setattr(trio_asyncio, "aio_as_trio", take)
    monkeypatch.setattr(it, "_link", Link())
    nursery.start_soon(it.pump)
    await trio.sleep(100.02)
    assert len(sent) == it.control.stats.published == 3000
    times = Counter(subject.rpartition(".")[2] for subject in sent)
    assert set(times) == {"trade", "analytics"}
    assert times["trade"] > 4 * times["analytics"]
    of_tokens = Counter(subject.split(".")[2] for subject in sent)
    assert set(of_tokens) == set(DEFAULT_TOKENS)
    assert of_tokens["BTC"] > 3 * of_tokens["DOGE"] > 20 * of_tokens["MATIC"]


async def ask(
    publisher: Publisher, method: str, path: str, body: object = None
) -> tuple[http.client.HTTPResponse, Any]:
    def request() -> tuple[http.client.HTTPResponse, Any]:
        connection = http.client.HTTPConnection(str(publisher.address), timeout=5)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            content = response.read()
            return response, json.loads(content) if content else None
        finally:
            connection.close()

    return await trio.to_thread.run_sync(request)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.01)


@pytest.mark.e2e
async def test_the_control_drives_real_messages_into_nats(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    with running_nats(tmp_path) as nats:
        settings = PublisherSettings(
            address=Address("127.0.0.1", 0), nats_urls=[nats.url], autostart=False, seed=1
        )
        publisher = cast("Publisher", await nursery.start(publish, settings))
        await until(lambda: publisher.is_connected)
        response, health = await ask(publisher, "GET", "/health")
        assert response.status == 200
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert (health["status"], health["nats"], health["publishing"]) == (
            "healthy",
            "connected",
            False,
        )
        async with nats_client(nats.url) as listener:
            await listener._stream.send_all(b"SUB odin.token.*.trade 9\r\n")
            await listener.flush()
            command = {"action": "start", "messagesPerSecond": 100, "tokens": ["SOL", "ADA"]}
            _, answer = await ask(publisher, "POST", "/control", command)
            assert answer["success"] is True
            assert answer["activeTokens"] == ["SOL", "ADA"]
            received = ""
            with trio.fail_after(10):
                while received.count("MSG odin.token.") < 20:
                    received += (await listener._stream.receive_some()).decode()
            assert "MSG odin.token.SOL.trade" in received
            assert "MSG odin.token.ADA.trade" in received
        _, answer = await ask(publisher, "POST", "/control", {"action": "stop"})
        assert answer["success"] is True
        _, stats = await ask(publisher, "GET", "/stats")
        assert stats["isPublishing"] is False
        assert stats["stats"]["messagesPublished"] >= 20
        response, answer = await ask(publisher, "GET", "/nothing")
        assert (response.status, answer["success"]) == (200, False)
        response, _ = await ask(publisher, "OPTIONS", "/control")
        assert response.status == 200
        assert "POST" in response.headers["Access-Control-Allow-Methods"]
        nursery.cancel_scope.cancel(reason="the test is over")


async def _publishes_again(publisher: Publisher) -> None:
    before = publisher.control.stats.published
    await until(lambda: publisher.control.stats.published > before)


async def _counts_errors(publisher: Publisher, *, more_than: int) -> None:
    await until(lambda: publisher.control.stats.errors > more_than)


@pytest.mark.e2e
async def test_it_reconnects_after_a_restart_of_nats(nursery: trio.Nursery, tmp_path: Path) -> None:
    nats = NatsServer(tmp_path)
    settings = PublisherSettings(
        address=Address("127.0.0.1", 0), nats_urls=[nats.url], rate=100, seed=1
    )
    publisher = cast("Publisher", await nursery.start(publish, settings))
    for _ in range(2):
        nats.start()
        try:
            await until(lambda: publisher.is_connected)
            await _publishes_again(publisher)
        finally:
            nats.stop()
        await until(lambda: not publisher.is_connected)
        errors = publisher.control.stats.errors
        await _counts_errors(publisher, more_than=errors)
    nursery.cancel_scope.cancel(reason="the test is over")


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nats-py's task
async def test_it_survives_a_nats_that_hangs_under_load_and_is_killed(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    """With queued data, nats-py cannot close the connection and does not call back."""
    with running_nats(tmp_path) as nats:
        settings = PublisherSettings(
            address=Address("127.0.0.1", 0), nats_urls=[nats.url], rate=20_000, seed=1
        )
        publisher = cast("Publisher", await nursery.start(publish, settings))
        await until(lambda: publisher.control.stats.published > 0)
        nats.signal(signal.SIGSTOP)
        await trio.sleep(1)
        nats.stop()
        await until(lambda: not publisher.is_connected)
        nats.start()
        await until(lambda: publisher.is_connected)
        await _publishes_again(publisher)
        nursery.cancel_scope.cancel(reason="the test is over")
