"""`trio-odin watch` against real sockets: it shows events, or the reason for none."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.client.rig import Place
from tests.e2e.conftest import StartServer, url_of
from tests.e2e.nats import nats_client
from tests.lab.fleet.test_tls import certificate  # noqa: F401 - a fixture
from tests.signing import rsa_signer, write_key_set
from tests.waiting import wait_until
from trio_odin.client import ClientError, Options, Position
from trio_odin.demo.watch import Ending, Wanted, watch
from trio_odin.demo.watch_lines import Lines

pytestmark = pytest.mark.e2e

NOWHERE = "nats://127.0.0.1:1"


async def first_line(url: str) -> dict[str, Any]:
    """Watch until the first line has come."""
    lines: list[str] = []

    def write(line: str) -> None:
        lines.append(line)
        raise BrokenPipeError

    with trio.fail_after(20):
        wanted = Wanted(urls=[url], channels=["BTC.trade"])
        assert (await watch(wanted, Lines(write))).sentence == "nobody reads any more"
    (line,) = lines
    found: dict[str, Any] = json.loads(line)
    return found


async def complaint(url: str, **options: Any) -> str:
    wanted = Wanted(urls=[url], channels=["BTC.trade"], options=Options(**options))
    with trio.fail_after(20):
        ending = await watch(wanted, Lines(lambda _: None))
    assert ending.is_failure
    return ending.sentence


@asynccontextmanager
async def answering(
    answer: Callable[[trio.SocketStream], Awaitable[None]],
) -> AsyncIterator[str]:
    """Host and port of a listener with any behaviour."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await answer(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel(reason="end of the test")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_it_shows_what_comes(host: str, start_server: StartServer) -> None:
    if host == "[::1]" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    server = await start_server(NATS_URL=NOWHERE, WS_ADDR=f"{host}:0")
    line = await first_line(f"ws://{host}:{server.addresses[0].port}/ws?x=1")
    assert (line["type"], line["state"]) == ("state", "stale")
    assert line["cause"] == "NATS is away"


async def test_tls_at_a_plain_port_is_named_as_the_reason(start_server: StartServer) -> None:
    server = await start_server(NATS_URL=NOWHERE)
    said = await complaint(f"wss://{server.addresses[0]}/ws")
    assert said.startswith(f"cannot connect to wss://{server.addresses[0]}/ws: it does not speak")


async def test_an_untrusted_certificate_is_named_as_the_reason(certificate: Path) -> None:  # noqa: F811
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def serve(stream: trio.SocketStream) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await trio.SSLStream(stream, context, server_side=True).do_handshake()

    async with answering(serve) as address:
        said = await complaint(f"wss://{address}/ws")
        assert said.startswith(f"cannot connect to wss://{address}/ws: its certificate is not ")
        assert await complaint(f"ws://{address}/ws")


async def _leave(stream: trio.SocketStream) -> None:
    await stream.receive_some()


async def _talk_nonsense(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"\x15\x03\x01\x00\x02\x02\x16")  # TLS's answer to plain HTTP


async def _reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


async def _say_nothing(_: trio.SocketStream) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize("scheme", ["ws", "wss"])
@pytest.mark.parametrize("answer", [_leave, _talk_nonsense, _reset, _say_nothing])
async def test_there_is_always_a_reason_for_a_failure(
    answer: Callable[[trio.SocketStream], Awaitable[None]],
    scheme: str,
) -> None:
    async with answering(answer) as address:
        said = await complaint(f"{scheme}://{address}/ws", dial_ms=500)
    place, _, reason = said.partition(f"{address}/ws")
    assert place.endswith(f"{scheme}://")
    assert len(reason) > 10, said


async def test_an_unused_port_gives_a_reason() -> None:
    assert "refused" in await complaint("ws://127.0.0.1:1/ws")
    assert "refused" in await complaint("wss://127.0.0.1:1/ws")


async def test_a_token_in_the_url_is_not_repeated(start_server: StartServer) -> None:
    server = await start_server(NATS_URL=NOWHERE)
    address = server.addresses[0]
    for url in (
        f"ws://user:SECRET@{address}/nothing?access_token=SECRET",
        f"wss://user:SECRET@{address}/ws?access_token=SECRET",
        "ws://user:SECRET@127.0.0.1:1/ws?access_token=SECRET",
    ):
        said = await complaint(url)
        assert "SECRET" not in said
        assert "://" in said


async def test_a_refusal_is_shown_in_the_words_of_the_server(
    start_server: StartServer, tmp_path: Path
) -> None:
    keys = write_key_set(tmp_path / "keys.json", rsa_signer("one"))
    server = await start_server(NATS_URL=NOWHERE, WS_JWT_KEYS=str(keys))
    url = url_of(server)
    reason = "the server answers 401: A token is needed"
    assert await complaint(url) == f"cannot connect to {url}: {reason}"


async def test_bad_input_is_an_error_that_names_it() -> None:
    for url, channel, sentence in (
        ("http://user:SECRET@a?access_token=SECRET", "BTC.trade", "cannot connect to http://a: "),
        ("ws://a", "BTC", "'BTC': a channel is SYMBOL.event_type"),
    ):
        with pytest.raises(ClientError, match=sentence) as caught:
            await watch(Wanted(urls=[url], channels=[channel]), Lines(lambda _: None))
        assert "SECRET" not in str(caught.value)


async def test_the_next_server_is_tried_before_it_gives_up(start_server: StartServer) -> None:
    server = await start_server(NATS_URL=NOWHERE)
    urls = ["ws://127.0.0.1:1/ws", url_of(server)]
    lines: list[dict[str, Any]] = []

    def write(line: str) -> None:
        lines.append(json.loads(line))
        if lines[-1]["state"] == "stale":
            raise BrokenPipeError

    await watch(Wanted(urls=urls, channels=["BTC.trade"]), Lines(write))
    assert lines[0]["state"] == "offline"


async def test_it_goes_on_after_a_restart_and_ends_after_a_number_of_events(
    nats_url: str,
) -> None:
    place = Place(nats_url)
    lines: list[dict[str, Any]] = []
    endings: list[Ending] = []

    async def run() -> None:
        wanted = Wanted(urls=[place.url], channels=["BTC.trade"], count=2)
        view = Lines(lambda line: lines.append(json.loads(line)))
        endings.append(await watch(wanted, view))

    async with nats_client(nats_url) as nats, trio.open_nursery() as nursery:
        async with place.serving():
            nursery.start_soon(run)
            await wait_until(lambda: any(line.get("state") == "live" for line in lines))
            await nats.publish("odin.token.BTC.trade", b'{"price":1}')
            await nats.flush()
            await wait_until(lambda: any(line["type"] == "price:update" for line in lines))
        async with place.serving():
            await nats.publish("odin.token.BTC.trade", b'{"price":2}')
            await nats.flush()
            await wait_until(lambda: endings)
    assert endings == [Ending("2 events")]
    events = [line for line in lines if line["type"] == "price:update"]
    assert [event["data"] for event in events] == [{"price": 1}, {"price": 2}]
    assert events[1].items() >= {"offset": 2, "prev": 1, "channel": "BTC.trade"}.items()


async def test_it_names_a_position_from_which_it_goes_on(nats_url: str) -> None:
    place = Place(nats_url)

    async def lines_of(count: int, after: Position | None, *prices: bytes) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        endings: list[Ending] = []

        async def run() -> None:
            wanted = Wanted(urls=[place.url], channels=["*.trade"], count=count, after=after)
            endings.append(await watch(wanted, Lines(lambda line: lines.append(json.loads(line)))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await wait_until(lambda: endings or any(line.get("state") == "live" for line in lines))
            await publish(*prices)
            await wait_until(lambda: endings)
        return lines

    async def publish(*prices: bytes) -> None:
        for price in prices:
            await nats.publish("odin.token.BTC.trade", price)
        await nats.flush()

    async with nats_client(nats_url) as nats, place.serving():
        first = await lines_of(2, None, b"1", b"2")
        await publish(b"3", b"4")
        # It may lie before what has come.
        last = [line for line in first if line["type"] == "position"][-1]
        then = await lines_of(3, Position(last["epoch"], last["offset"]), b"5")
    seen = [line["data"] for line in (*first, *then) if line["type"] == "price:update"]
    assert seen in ([1, 2, 3, 4, 5], [1, 2, 2, 3, 4], [1, 2, 1, 2, 3]), "none is missing"
    assert not [line for line in then if line["type"] == "gap"]
