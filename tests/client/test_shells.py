"""The client against a real server, on trio and on asyncio: restarts, drains, tokens, refusals."""

from __future__ import annotations

import asyncio
import socket
from itertools import count
from pathlib import Path

import pytest
import trio

from tests.client.rig import Library, Place, Recording, recording
from tests.e2e.nats import NatsClient, nats_client
from tests.signing import secret_signer
from tests.waiting import until_answer, wait_until
from trio_odin.client import ClientError, Options, Position, State, tokens, z1

pytestmark = pytest.mark.e2e

HASTY = Options(retry_min_ms=50, retry_max_ms=200)


async def publish(nats: NatsClient, *data: int, channel: str = "BTC.trade") -> None:
    for one in data:
        await nats.publish(f"odin.token.{channel}", str(one).encode())
    await nats.flush()


async def test_it_resumes_after_a_restart_and_misses_nothing(
    library: Library, nats_url: str
) -> None:
    place = Place(nats_url)
    async with (
        nats_client(nats_url) as nats,
        recording(library, place.url, "BTC.trade", options=HASTY, queue="wait") as client,
    ):
        async with place.serving():
            await client.until_live()
            await publish(nats, 1, 2)
            await client.until_data(1, 2)
        await publish(nats, 3, 4)
        async with place.serving():
            await client.until_data(1, 2, 3, 4)
            await client.until_live(times=2)
            await publish(nats, 5)
            await client.until_data(1, 2, 3, 4, 5)
    assert client.data == [1, 2, 3, 4, 5]
    assert not client.gaps
    assert [state.name for state in client.states if state.name == "offline"]


async def test_it_begins_after_a_position_of_an_earlier_run(
    library: Library, nats_url: str
) -> None:
    place = Place(nats_url)
    async with nats_client(nats_url) as nats, place.serving():
        async with recording(library, place.url, "BTC.trade") as client:
            await client.until_live()
            await publish(nats, 1)
            await client.until_data(1)
        last = client.events[-1]
        await publish(nats, 2, 3)
        assert last.epoch is not None
        assert last.offset is not None
        after = Position(last.epoch, last.offset)
        async with recording(library, place.url, "BTC.trade", after=after, queue="wait") as again:
            await again.until_data(2, 3)
            await again.until_live()
            await publish(nats, 4)
            await again.until_data(2, 3, 4)
        assert not again.gaps
        elsewhere = Position("another", 1)
        async with recording(library, place.url, "BTC.trade", after=elsewhere) as lost:
            await lost.until_data(4)
            await wait_until(lambda: lost.gaps)
        assert lost.gaps[0].reason == "resume"


async def position_of(client: Recording) -> Position | None:
    """Where it is, asked for where the client runs."""
    feed, found = client.feed, []
    assert feed is not None
    client.call(lambda: found.append(feed.position()))
    await wait_until(lambda: found)
    return found[0]


async def test_it_goes_on_from_its_position_on_another_day(library: Library, nats_url: str) -> None:
    place = Place(nats_url)
    async with nats_client(nats_url) as nats, place.serving():
        async with recording(library, place.url, "BTC.trade", queue="wait") as client:
            await client.until_live()
            await publish(nats, 1, 2)
            await client.until_data(1, 2)
            client.is_paused = True
            await publish(nats, 3)
            await client.until_data(3)
            await publish(nats, 4, 5)
            assert client.feed is not None
            feed = client.feed
            await wait_until(lambda: getattr(feed.newest("BTC.trade"), "data", None) == 5)
            after = await position_of(client)
        assert client.data == [1, 2, 3], "two events were not taken"
        assert after is not None
        taken = client.events[-1]
        assert taken.offset is not None
        assert after.epoch == taken.epoch
        assert after.offset <= taken.offset
        assert feed.position() == after, "also after the end"
        await publish(nats, 6)
        async with recording(library, place.url, "BTC.trade", after=after, queue="wait") as again:
            await again.until_data(4, 5, 6)
        offsets = [event.offset for event in again.events]
        assert len(set(offsets)) == len(offsets)
        assert not again.gaps


async def test_its_position_moves_on_with_what_is_taken(library: Library, nats_url: str) -> None:
    place = Place(nats_url)
    async with (
        nats_client(nats_url) as nats,
        place.serving(),
        recording(library, place.url, "BTC.trade", queue="wait") as client,
    ):
        await client.until_live()
        began = await position_of(client)
        assert began is not None
        numbers = count(1)

        async def has_moved() -> bool:
            await publish(nats, next(numbers))
            at = await position_of(client)
            return at is not None and at.offset > began.offset + 5

        await until_answer(has_moved, what="the position has moved")
        await publish(nats, 1000)
        await client.until_data(1000)
        client.is_paused = True
        # The first one is taken, those after it wait.
        await publish(nats, 1001)
        await client.until_data(1001)
        await publish(nats, 1002, 1003)
        feed = client.feed
        assert feed is not None
        await wait_until(lambda: getattr(feed.newest("BTC.trade"), "data", None) == 1003)
        last = client.events[-1]
        assert await position_of(client) == Position(str(last.epoch), last.offset or 0)


async def test_it_hands_over_when_the_server_drains(library: Library, nats_url: str) -> None:
    """Of two servers the other one takes over, before the first one has closed."""
    first, second = Place(nats_url), Place(nats_url)
    async with (
        nats_client(nats_url) as nats,
        first.serving() as leaving,
        second.serving() as staying,
        recording(library, [first.url, second.url], "BTC.trade", queue="wait") as client,
    ):
        await client.until_live()
        await publish(nats, 1)
        await client.until_data(1)
        leaving.drain()
        await wait_until(lambda: staying.snapshot().fan_out.connections == 1)
        await publish(nats, 2)
        await client.until_data(1, 2)
        await leaving.finished.wait()
    assert client.data == [1, 2]
    assert "offline" not in {state.name for state in client.states}


async def test_a_new_token_comes_before_the_old_one_expires(
    library: Library, nats_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_VALID_LEAST_MS", 0)  # half of it would be long for a test
    place = Place(nats_url)
    keys = tmp_path / "secret"
    keys.write_bytes(secret_signer().private)
    calls = count(1)

    def token() -> str:
        # Renewed 30 s before the end: the first one at once.
        return secret_signer().token(expires_in=29 if next(calls) == 1 else 600)

    async with (
        place.serving(WS_JWT_KEYS=str(keys), WS_JWT_ALGORITHMS="HS256") as server,
        recording(library, place.url, "BTC.trade", token=token) as client,
    ):
        await client.until_live()
        await wait_until(lambda: next(calls) > 2)
        assert server.ledger.traffic.closed == {}


async def test_a_token_that_the_server_refuses_is_replaced(
    library: Library, nats_url: str, tmp_path: Path
) -> None:
    place = Place(nats_url)
    keys = tmp_path / "secret"
    keys.write_bytes(secret_signer().private)
    clients: list[Recording] = []
    calls = count(1)

    async def seen(cause: str) -> None:
        # A state gives way to the next one if it was not taken by then.
        while not clients or not any(cause in state.cause for state in clients[0].states):
            await sleep(0.01)

    async def token() -> str:
        call = next(calls)
        if call == 1:
            raise RuntimeError("the shop is closed")
        if call == 2:
            await seen("the shop is closed")
            return secret_signer().token(expires_in=-60)
        await seen("401: The token has expired")
        return secret_signer().token()

    sleep = trio.sleep if library == "trio" else asyncio.sleep

    async with (
        place.serving(WS_JWT_KEYS=str(keys), WS_JWT_ALGORITHMS="HS256"),
        recording(library, place.url, "BTC.trade", token=token, options=HASTY) as client,
    ):
        clients.append(client)
        await client.until_live()
    assert next(calls) == 4, "it was called three times, and waited for both causes"


async def test_a_fixed_token_that_the_server_refuses_is_the_end(
    library: Library, tmp_path: Path
) -> None:
    place = Place()
    keys = tmp_path / "secret"
    keys.write_bytes(secret_signer().private)
    async with (
        place.serving(WS_JWT_KEYS=str(keys), WS_JWT_ALGORITHMS="HS256"),
        recording(library, place.url, "BTC.trade", token="nonsense") as client,
    ):
        await client.until_over()
    assert isinstance(client.failure, ClientError)
    assert str(client.failure).startswith(f"{place.url}: the server answers 401: The token ")
    assert client.states[-1].name == "closed"


async def test_events_come_compressed_if_they_may(library: Library, nats_url: str) -> None:
    z1._dictionaries.clear()
    place = Place(nats_url)
    async with nats_client(nats_url) as nats:
        for is_compressed, protocols in ((True, "z1"), (True, "z1"), (False, "plain")):
            async with (
                place.serving() as server,
                recording(
                    library, place.url, "BTC.trade", compression=is_compressed, snapshot=False
                ) as client,
            ):
                await client.until_live()
                await publish(nats, 7)
                await client.until_data(7)
                connections = server.snapshot().fan_out.encodings
            assert connections == {protocols: 1}
    assert len(z1._dictionaries) == 1


async def test_a_server_that_is_full_is_asked_again_after_the_time_it_names(
    library: Library,
) -> None:
    place = Place()
    async with (
        place.serving(WS_MAX_CONNECTIONS="1"),
        recording("trio", place.url) as first,
    ):
        await first.until_connected()
        async with recording(library, place.url) as client:
            await wait_until(lambda: "offline" in {state.name for state in client.states})
            (offline, *_) = [state for state in client.states if state.name == "offline"]
    assert offline.cause.startswith("the server answers 503: Server at capacity; again in ")
    seconds = int(offline.cause.split()[-2])
    assert offline.retry_at is not None
    assert offline.retry_at >= offline.at + seconds * 1000


async def test_what_never_works_is_an_error(library: Library) -> None:
    place = Place()
    async with place.serving() as server:
        for url, sentence in {
            place.url.replace("/ws", "/nothing?access_token=SECRET"): "is it ws://127.0.0.1:",
            place.url.replace("ws://", "wss://"): "does not speak TLS, is it ws:// ?",
            "http://example.com": "allowed is a URL like ws://",
            "ws://user:SECRET@127.0.0.1:0/ws": "allowed is a URL like ws://",
            "ws://[::1": "Invalid IPv6 URL",
        }.items():
            async with recording(library, url, "BTC.trade") as client:
                await client.until_over()
            assert isinstance(client.failure, ClientError), url
            assert sentence in str(client.failure)
            assert "SECRET" not in str(client.failure)
        async with recording(library, place.url, "BTC") as client:
            await client.until_over()
        assert "'BTC': a channel is SYMBOL.event_type" in str(client.failure)
        assert server.snapshot().fan_out.connections == 0


async def test_what_may_work_later_is_tried_again(library: Library) -> None:
    place = Place()
    async with recording(library, place.url, options=HASTY) as client:
        await wait_until(lambda: len(client.states) > 3)
        assert client.states[-1].cause == "Connection refused"
        async with place.serving():
            await client.until_connected()


async def test_a_name_that_is_refused_is_reported(library: Library, nats_url: str) -> None:
    place = Place(nats_url)
    async with (
        place.serving(WS_MAX_PATTERNS="0"),
        recording(library, place.url, "*.trade") as client,
    ):
        await wait_until(lambda: client.refused)
    assert client.refused[0].channel == "*.trade"
    assert client.refused[0].code == "TOO_MANY_PATTERNS"


@pytest.mark.parametrize("answer", [b"", b"\x15\x03\x01\x00\x02\x02\x16", b"HTTP/1.1 200 OK\r\n"])
async def test_whatever_answers_there_is_a_cause(library: Library, answer: bytes) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            if answer:
                await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/ws"
        async with recording(library, url, options=HASTY) as client:
            await wait_until(lambda: any(state.name == "offline" for state in client.states))
        causes = [state.cause for state in client.states if state.name == "offline"]
        assert all(len(cause) > 10 for cause in causes), causes
        nursery.cancel_scope.cancel(reason="end of the test")


async def test_a_network_that_does_not_answer_is_given_up(library: Library) -> None:
    """A full queue of connections: the kernel drops every further SYN."""
    with socket.socket() as listener, socket.socket() as filling, socket.socket() as more:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for one in (filling, more):
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/ws"
        options = Options(dial_ms=300, retry_min_ms=50, retry_max_ms=100)
        async with recording(library, url, options=options) as client:
            await wait_until(lambda: any(state.name == "offline" for state in client.states))
            offline = next(state for state in client.states if state.name == "offline")
            assert offline.cause == "no answer"


def test_states_are_values() -> None:
    assert State(name="live") == State(name="live")
