"""Traces, from a message with a `traceparent` to a collector and to clients of others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from websockets.trio.client import ClientConnection, connect

from tests.collector import Collector, Received, running_collector
from tests.e2e.conftest import StartServer, client_of, receive, url_of, wait_for_nats
from tests.e2e.nats import nats_client
from tests.e2e.test_cli import ended
from tests.e2e.test_cli import start as start_command
from tests.e2e.test_slow_clients import slow_client
from tests.e2e.test_workers import ENOUGH
from tests.e2e.test_workers import end as end_of
from tests.e2e.test_workers import server as workers
from tests.server_rig import UPGRADE
from tests.waiting import wait_until
from trio_odin import server as server_module
from trio_odin.server import Server
from trio_odin.wire.trace_context import parse_traceparent

pytestmark = pytest.mark.e2e

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{SPAN}-01"
CONSUMER, PRODUCER, INTERNAL = 5, 4, 1  # as OTLP has them


@pytest.fixture(autouse=True)
def _export_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as collector:
        yield collector


async def publish(url: str, channel: str, value: object, **headers: str) -> None:
    async with nats_client(url, headers=True) as publisher:
        payload = json.dumps(value).encode()
        if headers:
            await publisher.publish_with(f"odin.token.{channel}", payload, headers)
        else:
            await publisher.publish(f"odin.token.{channel}", payload)
        await publisher.flush()


async def start(
    start_server: StartServer, nats_url: str, collector: Collector, **more: str
) -> Server:
    server = await start_server(
        NATS_URL=nats_url, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **more
    )
    await wait_for_nats(server)
    return server


async def event_of(client: ClientConnection) -> dict[str, Any]:
    message = await receive(client)
    while message["type"] not in {"price:update", "price:batch"}:
        message = await receive(client)
    return message


def check_tree(spans: list[Received], trace: str) -> dict[str, Received]:
    """Check how the three spans hang together, and that `trace` names the fan-out; by name."""
    by_name = {span.name: span for span in spans}
    received, fan_out, last = (by_name[n] for n in ("received", "fan-out", "last write"))
    assert {span.trace_id for span in spans} == {TRACE}
    assert received.parent_id == SPAN
    assert fan_out.parent_id == received.span_id
    assert last.parent_id == fan_out.span_id
    assert (received.kind, fan_out.kind, last.kind) == (CONSUMER, PRODUCER, INTERNAL)
    assert trace == f"00-{TRACE}-{fan_out.span_id}-01"
    assert received.begin_ns <= received.end_ns == fan_out.begin_ns == last.begin_ns
    assert fan_out.end_ns >= fan_out.begin_ns
    assert last.end_ns >= last.begin_ns
    return by_name


async def test_a_price_is_traced_from_its_arrival_to_the_last_socket(
    start_server: StartServer, nats_url: str, collector: Collector
) -> None:
    server = await start(start_server, nats_url, collector)
    async with client_of(server, "BTC.trade") as one, client_of(server, "BTC.*") as other:
        await publish(nats_url, "BTC.trade", 1, traceparent=SAMPLED)
        event, same = await event_of(one), await event_of(other)
        await wait_until(lambda: len(collector.spans) >= 3)
    assert event["trace"] == same["trace"]
    spans = check_tree(collector.spans, event["trace"])
    for span in spans.values():
        assert span.attributes["messaging.destination.name"] == "odin.token.BTC.trade"
        assert span.attributes["trio_odin.offset"] == event["offset"]
        assert span.attributes["trio_odin.worker"] == 0
        assert span.attributes["trio_odin.node"] == span.resource["host.name"]
        assert span.resource["service.name"] == "trio-odin"
    assert spans["last write"].attributes["trio_odin.subscribers"] == 2
    assert spans["last write"].attributes["trio_odin.is_unfinished"] is False
    assert collector.paths == {"/v1/traces"}
    await wait_until(lambda: server.ledger.traces.spans_exported == 3)
    assert server.ledger.traces.events == 1


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Nats-Msg-Id": "1", "X": "traceparent"},
        {"traceparent": SAMPLED[:-1] + "0"},
        {"traceparent": SAMPLED.upper()},
        {"traceparent": f"00-{'0' * 32}-{SPAN}-01"},
        {"traceparent": SAMPLED, "Traceparent": SAMPLED},
    ],
)
async def test_without_a_valid_sampled_header_an_event_is_byte_for_byte_as_without_a_collector(
    start_server: StartServer, nats_url: str, collector: Collector, headers: dict[str, str]
) -> None:
    traced = await start(start_server, nats_url, collector)
    plain = await start_server(NATS_URL=nats_url)
    await wait_for_nats(plain)
    async with client_of(traced, "BTC.trade") as one, client_of(plain, "BTC.trade") as other:
        await publish(nats_url, "BTC.trade", {"price": 1}, **headers)
        first, second = await one.recv(), await other.recv()
        assert first == second
        assert "trace" not in json.loads(first)
    assert traced.ledger.traces.events == traced.ledger.traces.over_limit == 0


async def test_without_a_collector_a_sampled_header_changes_nothing(
    start_server: StartServer, nats_url: str
) -> None:
    server = await start_server(NATS_URL=nats_url)
    await wait_for_nats(server)
    async with client_of(server, "BTC.trade") as client:
        await publish(nats_url, "BTC.trade", 1, traceparent=SAMPLED)
        assert "trace" not in await event_of(client)


async def test_in_core_mode_events_are_traced_too(
    start_server: StartServer, nats_url: str, collector: Collector
) -> None:
    server = await start(start_server, nats_url, collector, NATS_MODE="core")
    async with client_of(server, "BTC.trade") as client:
        await publish(nats_url, "BTC.trade", 1, Traceparent=SAMPLED)
        event = await event_of(client)
        await wait_until(lambda: len(collector.spans) >= 3)
    spans = check_tree(collector.spans, event["trace"])
    assert "trio_odin.offset" not in spans["received"].attributes


async def test_a_client_with_a_rate_gets_the_trace_of_the_event_in_its_batch(
    start_server: StartServer, nats_url: str, collector: Collector
) -> None:
    server = await start(start_server, nats_url, collector)
    async with connect(url_of(server)) as client:
        await client.send(
            json.dumps({"type": "subscribe", "channels": ["A.x", "B.x"], "every_ms": 100})
        )
        assert (await receive(client))["type"] == "subscription_ack"
        await publish(nats_url, "A.x", 1, traceparent=SAMPLED)
        await publish(nats_url, "B.x", 2)
        events: list[dict[str, Any]] = []
        while len(events) < 2:
            events += (await event_of(client))["events"]
        await wait_until(lambda: len(collector.spans) >= 2)
    traces = {event["channel"]: event.get("trace") for event in events}
    (received,), (fan_out,) = collector.named("received"), collector.named("fan-out")
    assert received.parent_id == SPAN
    assert traces == {"A.x": f"00-{TRACE}-{fan_out.span_id}-01", "B.x": None}
    # Nobody was written to at once: a client with a rate closes the chain itself.
    assert not collector.named("last write")
    assert fan_out.attributes["trio_odin.subscribers"] == 0


async def test_a_resume_and_a_replay_send_the_same_trace_and_a_first_value_none(
    start_server: StartServer, nats_url: str, collector: Collector
) -> None:
    server = await start(start_server, nats_url, collector)
    async with client_of(server, "BTC.trade") as client:
        await publish(nats_url, "BTC.trade", 1)
        before = await event_of(client)
        await publish(nats_url, "BTC.trade", 2, traceparent=SAMPLED)
        event = await event_of(client)
        await client.send(json.dumps({"type": "replay", "data": {"from": 1, "to": 2}}))
        again = [await event_of(client), await event_of(client)]
        assert again == [before, event]
        await client.send(json.dumps({"type": "heartbeat", "data": {"nats": True}}))
        await receive(client)
    async with connect(url_of(server)) as client:
        ask = {"type": "subscribe", "channels": ["BTC.trade"], "snapshot": True}
        await client.send(json.dumps(ask))
        first = await event_of(client)
        assert first["snapshot"]
        assert "trace" not in first
    async with connect(url_of(server)) as client:
        ask = {"type": "subscribe", "channels": ["ETH.trade"], "notices": True}
        await client.send(json.dumps(ask))
        ack = await receive(client)
        while ack["type"] != "subscription_ack":
            ack = await receive(client)
        resume = {
            "type": "subscribe",
            "channels": ["BTC.trade"],
            "after": before["offset"],
            "epoch": ack["epoch"],
        }
        await client.send(json.dumps(resume))
        assert (await event_of(client))["trace"] == event["trace"]
    # What is sent again is no second fan-out.
    await wait_until(lambda: len(collector.spans) >= 3)
    assert len(collector.spans) == 3


async def test_publishers_that_sample_everything_are_traced_up_to_the_limit(
    start_server: StartServer, nats_url: str, collector: Collector
) -> None:
    server = await start(start_server, nats_url, collector, WS_TRACES_PER_SECOND="3")
    async with (
        client_of(server, "BTC.trade") as client,
        nats_client(nats_url, headers=True) as publisher,
    ):
        for number in range(50):
            subject, payload = "odin.token.BTC.trade", b"%d" % number
            await publisher.publish_with(subject, payload, {"traceparent": SAMPLED})
        await publisher.flush()
        events = [await event_of(client) for _ in range(50)]
    traced = sum("trace" in event for event in events)
    traces = server.ledger.traces
    assert 3 <= traced < 50
    assert (traces.events, traces.over_limit) == (traced, 50 - traced)


async def test_an_event_that_nobody_gets_is_traced_with_what_became_of_it(
    start_server: StartServer, nats_url: str, collector: Collector
) -> None:
    server = await start(start_server, nats_url, collector)
    await publish(nats_url, "BTC.trade", 1, traceparent=SAMPLED)
    async with client_of(server, "BTC.x"), nats_client(nats_url, headers=True) as publisher:
        await publisher.publish_with("odin.token.BTC.x", b"no JSON", {"traceparent": SAMPLED})
        await publisher.flush()
        await wait_until(lambda: len(collector.spans) >= 2)
    outcomes = [span.attributes["trio_odin.outcome"] for span in collector.spans]
    assert sorted(outcomes) == ["invalid", "unmatched"]
    assert {span.name for span in collector.spans} == {"received"}


async def test_a_client_with_compressed_events_gets_the_trace(
    start_server: StartServer, nats_url: str, collector: Collector
) -> None:
    server = await start(start_server, nats_url, collector)
    async with connect(url_of(server), compression="deflate") as client:
        await client.send(json.dumps({"type": "subscribe", "channels": ["BTC.trade"]}))
        await receive(client)
        await publish(nats_url, "BTC.trade", 1, traceparent=SAMPLED)
        event = await event_of(client)
    context = parse_traceparent(event["trace"])
    assert context is not None
    assert (context.trace_id, context.is_sampled) == (TRACE, True)


async def test_a_collector_that_hangs_delays_no_event_and_its_failures_are_counted(
    start_server: StartServer,
    nats_url: str,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    server = await start(start_server, nats_url, collector)
    collector.hang.clear()
    async with client_of(server, "BTC.trade") as client:
        for number in range(3):
            await publish(nats_url, "BTC.trade", number, traceparent=SAMPLED)
            with trio.fail_after(5):
                assert (await event_of(client))["data"] == number
        await wait_until(lambda: server.ledger.traces.spans_failed == 9)
        collector.hang.set()
        await publish(nats_url, "BTC.trade", 9, traceparent=SAMPLED)
        assert (await event_of(client))["data"] == 9
        await wait_until(lambda: server.ledger.traces.spans_exported == 3)


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_drain_exports_what_waits_within_a_bound(
    start_server: StartServer,
    nats_url: str,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    hangs: bool,
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    server = await start(start_server, nats_url, collector)
    async with client_of(server, "BTC.trade") as client:
        await publish(nats_url, "BTC.trade", 1, traceparent=SAMPLED)
        await event_of(client)
    if hangs:
        collector.hang.clear()
    began = trio.current_time()
    server.drain()
    with trio.fail_after(30):
        await server.finished.wait()
    assert hangs or len(collector.spans) == 3
    assert trio.current_time() - began < 15
    assert server.ledger.traces.spans_exported == (0 if hangs else 3)


async def test_spans_that_nobody_takes_do_not_prolong_a_drain(
    start_server: StartServer,
    nats_url: str,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    monkeypatch.setattr(server_module, "_FLUSH_SECONDS", 20.0)
    server = await start(start_server, nats_url, collector, WS_DRAIN_SECONDS="1s")
    (address,) = server.addresses
    async with await trio.open_tcp_stream(address.host, address.port) as silent:
        await silent.send_all(UPGRADE)
        assert await silent.receive_some()
        await publish(nats_url, "BTC.trade", 1, traceparent=SAMPLED)
        await wait_until(lambda: server.ledger.traces.events == 1)
        collector.hang.clear()
        began = trio.current_time()
        with capture_logs() as lines, trio.fail_after(30):
            server.drain()
            await server.finished.wait()
        took = trio.current_time() - began
    collector.hang.set()
    events = [line["event"] for line in lines]
    assert "drain.cut" in events, "the client has used the time of the clients"
    # What the supervisor, and who reads the log, has to know does not wait for a collector.
    assert events.index("drain.finished") < events.index("traces.unsent")
    assert took < 10, "not the time of spans on top"


async def test_the_last_write_is_that_of_the_slowest_client(
    start_server: StartServer, nats_url: str, collector: Collector
) -> None:
    server = await start(start_server, nats_url, collector)
    slow = await slow_client(server)
    payload = "x" * 100_000  # more than the buffers of the sockets take
    async with slow.stream, client_of(server, "BTC.trade") as good:
        await publish(nats_url, "BTC.trade", payload, traceparent=SAMPLED)
        event = await event_of(good)
        await trio.sleep(0.7)
        assert not collector.named("last write")
        await slow.until("price:update")
        await wait_until(lambda: len(collector.spans) >= 3)
    spans = check_tree(collector.spans, event["trace"])
    last = spans["last write"]
    assert last.end_ns - last.begin_ns > 0.5e9 > spans["fan-out"].end_ns - last.begin_ns
    assert last.attributes["trio_odin.subscribers"] == 2
    assert last.attributes["trio_odin.is_unfinished"] is False


async def test_each_worker_exports_its_own_spans_and_says_which_it_is(
    tmp_path: Path, collector: Collector
) -> None:
    async with workers(
        tmp_path,
        clients=ENOUGH,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20SECRET",
        OTEL_SERVICE_NAME="prices",
    ) as running:
        await publish(running.nats_url, "BTC.trade", 1, traceparent=SAMPLED)
        named = {(await event_of(client))["trace"] for client in running.clients}
        await wait_until(lambda: len(collector.spans) >= 6)
        assert (await running.metrics())["ws_traced_events_total"] == 2
        code, logged = await end_of(running)
    assert code == 0
    assert len(named) == 2
    for worker in (1, 2):
        its = [one for one in collector.spans if one.attributes["trio_odin.worker"] == worker]
        fan_out = next(span for span in its if span.name == "fan-out")
        trace = f"00-{TRACE}-{fan_out.span_id}-01"
        assert trace in named
        check_tree(its, trace)
    counts = [span.attributes["trio_odin.subscribers"] for span in collector.named("last write")]
    assert sum(counts) == ENOUGH
    assert {span.resource["service.name"] for span in collector.spans} == {"prices"}
    assert collector.headers["authorization"] == "Bearer SECRET"
    assert "SECRET" not in logged


@pytest.mark.parametrize("count", ["1", "2"])
async def test_where_the_extra_is_missing_a_server_serves_without_traces(
    tmp_path: Path, count: str
) -> None:
    """A platform sets the variable for all programs; not all of them can trace."""
    (tmp_path / "opentelemetry.py").write_text("raise ImportError\n")
    process = await start_command(
        *("serve", "--addr", "127.0.0.1:0", "--workers", count),
        PYTHONPATH=str(tmp_path),
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
    )
    logged = b""
    assert process.stderr is not None
    with trio.fail_after(30):
        while logged.count(b"server.listening") < int(count):
            chunk = await process.stderr.receive_some()
            assert chunk, logged
            logged += chunk
    process.terminate()
    code, *_ = await ended(process)
    assert code == 0
    lines = [line for line in logged.decode().splitlines() if "traces.off" in line]
    assert len(lines) == int(count)
    for line in lines:
        assert "OTEL_EXPORTER_OTLP_ENDPOINT='http://127.0.0.1:1': traces need" in line
        assert "pip install 'trio-odin[otel]'" in line


async def test_a_wrong_variable_of_the_library_is_named_with_exit_code_2() -> None:
    process = await start_command(
        *("serve", "--addr", "127.0.0.1:0"),
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="http://127.0.0.1:1/v1/traces",
        OTEL_BSP_SCHEDULE_DELAY="-1",
    )
    code, _, printed = await ended(process)
    assert code == 2
    assert "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT='http://127.0.0.1:1/v1/traces': " in printed
    assert "schedule_delay_millis must be positive" in printed


async def test_what_is_disabled_needs_no_collector(start_server: StartServer) -> None:
    server = await start_server(
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", OTEL_SDK_DISABLED="true"
    )
    assert server.hub.traces is None
