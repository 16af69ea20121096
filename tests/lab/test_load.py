from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from threading import Thread

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from websockets.sync.server import ServerConnection, serve

from tests.e2e.conftest import StartServer, wait_for_nats
from tests.e2e.conftest import start_server as start_server  # noqa: PLC0414 - a fixture
from trio_odin.core.publication import NatsMessage, Publication
from trio_odin.lab.load import LoadImpossible, LoadPlan, LoadReport, run_load
from trio_odin.lab.load.books import Books, Histogram, Numbering
from trio_odin.lab.load.scrape import parse_metrics


def envelope(seq: int, channel: str = "BTC.trade", *, offset: int = 1, ts: int = 1000) -> bytes:
    """The payload of an envelope as the server frames it."""
    made = Publication(channel, b'{"timestamp":%d}' % (ts - 5), offset=offset, unix_ms=ts)
    frame = made.frame(seq)
    return frame[frame.index(b"{") :]


@given(
    numbers=st.lists(st.integers(1, 500), max_size=200),
    channels=st.lists(st.sampled_from(["BTC.trade", "ETH.trade", "SOL.trade"]), min_size=1),
)
def test_the_books_count_as_a_plain_model_does(numbers: list[int], channels: list[str]) -> None:
    books, numbering = Books(), Numbering(["BTC.trade", "ETH.trade"])
    highest = missing = repeated = foreign = 0
    for position, number in enumerate(numbers):
        channel = channels[position % len(channels)]
        assert books.take(numbering, envelope(number, channel, offset=position), 1010)
        if number > highest:
            missing += number - highest - 1
            highest = number
        else:
            repeated += 1
        foreign += channel == "SOL.trade"
    assert (books.gaps, books.duplicates, books.foreign) == (missing, repeated, foreign)
    assert books.received == len(numbers)
    assert books.offsets_backwards == 0


def test_an_offset_that_does_not_rise_is_seen() -> None:
    books, numbering = Books(), Numbering(["BTC.trade"])
    books.take(numbering, envelope(1, offset=7), 1010)
    books.take(numbering, envelope(2, offset=7), 1010)
    books.take(numbering, envelope(3, offset=6), 1010)
    assert books.offsets_backwards == 2


@pytest.mark.parametrize(
    "payload", [b"", b"{", b'{"type":"pong","ts":1}', b'{"seq":x}', b'{"seq":1,"no":"envelope"}']
)
def test_what_is_no_envelope_leaves_the_books_as_they_were(payload: bytes) -> None:
    books = Books()
    assert not books.take(Numbering(), payload, 0)
    assert books.received == 0


def test_completeness_finds_what_one_subscriber_missed_and_one_got_twice() -> None:
    books = Books()
    first, second = Numbering(["BTC.trade"]), Numbering(["BTC.trade"])
    books.take(first, envelope(1, offset=1), 1010)
    books.take(second, envelope(1, offset=1), 1010)
    books.take(first, envelope(2, offset=2), 1010)  # the second never gets it
    books.take(first, envelope(3, offset=3), 1010)
    books.take(second, envelope(2, offset=3), 1010)
    books.take(second, envelope(3, offset=3), 1010)  # again
    books.take(first, envelope(4, offset=4, ts=9999), 1010)  # outside of the window
    found = books.completeness({"BTC.trade": 2}, first_ms=0, last_ms=2000)
    assert (found.publications, found.expected) == (3, 6)
    assert (found.lost, found.duplicated) == (1, 1)


@given(st.lists(st.integers(0, 3000), min_size=1))
def test_percentiles_are_those_of_the_sorted_values(values: list[int]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    ordered = sorted(values)
    for fraction in (0.01, 0.5, 0.99, 1.0):
        rank = max(0, -(-len(ordered) * fraction // 1) - 1)
        assert histogram.percentile(fraction) == ordered[int(rank)]


def test_a_metrics_page_is_summed_over_labels() -> None:
    page = '# HELP a b\na{x="1"} 2\na{x="2"} 3\nb 1.5e3\nc NaNsense\n'
    assert parse_metrics(page) == {"a": 5.0, "b": 1500.0}


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (LoadPlan(url="http://x", connections=1, channels_per_connection=1, tokens=["A"],
                  hold_seconds=1), "http://x"),
        (LoadPlan(connections=1, channels_per_connection=2, tokens=["A"], hold_seconds=1),
         "2 channels a connection"),
        (LoadPlan(connections=10_000_000, channels_per_connection=1, tokens=["A"],
                  hold_seconds=1), "open files"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_a_sentence(plan: LoadPlan, sentence: str) -> None:
    with pytest.raises(LoadImpossible, match=sentence):
        run_load(plan, lambda _: None)


@contextmanager
def stand_in(numbers: list[int]) -> Iterator[str]:
    """A server of the `websockets` library that sends envelopes with just these numbers."""

    def handle(client: ServerConnection) -> None:
        channels = json.loads(client.recv())["channels"]
        ack = {"type": "subscription_ack", "subscribed": channels, "count": len(channels)}
        client.send(json.dumps(ack))
        for offset, number in enumerate(numbers):
            client.send(envelope(number, channels[0], offset=offset).decode())
        for _ in client:
            pass

    with serve(handle, "127.0.0.1", 0) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/ws"
        finally:
            server.shutdown()
            thread.join()


def load_on(url: str, connections: int = 10) -> LoadReport:
    plan = LoadPlan(
        url=url,
        connections=connections,
        channels_per_connection=1,
        tokens=["BTC"],
        hold_seconds=0.5,
        metrics_url=None,
    )
    return run_load(plan, lambda _: None)


@pytest.mark.e2e
def test_a_server_that_skips_a_number_is_not_perfect() -> None:
    with stand_in([1, 2, 4]) as url:
        report = load_on(url)
    assert (report.connected, report.received, report.gaps) == (10, 30, 10)
    assert not report.is_perfect


@pytest.mark.e2e
def test_a_server_that_repeats_a_number_is_not_perfect() -> None:
    with stand_in([1, 2, 2]) as url:
        report = load_on(url)
    assert report.duplicates == 10
    assert not report.is_perfect


@pytest.mark.e2e
async def test_a_load_on_the_real_server_is_perfect_and_knows_what_it_cost(
    start_server: StartServer, nats_url: str, nursery: trio.Nursery
) -> None:
    server = await start_server(NATS_URL=nats_url)
    await wait_for_nats(server)

    async def publish() -> None:
        for offset in range(1, 10_000):
            server._hub.publish(
                NatsMessage("odin.token.BTC.trade", b"{}", offset, trio.current_time())
            )
            await trio.sleep(0.01)

    nursery.start_soon(publish)
    plan = LoadPlan(
        url=f"ws://{server.addresses[0]}/ws",
        connections=50,
        channels_per_connection=1,
        tokens=["BTC"],
        hold_seconds=3,
    )
    seen: list[str] = []
    report = await trio.to_thread.run_sync(
        partial(run_load, plan, lambda progress: seen.append(progress.phase.value))
    )
    nursery.cancel_scope.cancel(reason="the load has ended")
    assert report.is_perfect
    assert report.publications > 10
    assert report.received_in_window == report.expected > 0
    assert report.closed_cleanly == 50
    assert report.server.cpu_us_per_delivery is not None
    assert [*dict.fromkeys(seen)] == ["connecting", "subscribing", "holding", "closing"]
    assert json.loads(report.as_json())["summary"]["verdict"] == "perfect"
    assert any("50 of 50 connected" in line for line in report.lines())
