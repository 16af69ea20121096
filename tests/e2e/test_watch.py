"""`trio-odin watch` against real sockets: it shows messages, or the reason for none."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import trio_odin.demo.watch as module
from tests.e2e.conftest import StartServer, url_of
from tests.lab.fleet.test_tls import certificate  # noqa: F401 - a fixture
from tests.signing import rsa_signer, write_key_set
from trio_odin.demo.watch import WatchError, watch

pytestmark = pytest.mark.e2e

NOWHERE = "nats://127.0.0.1:1"


async def shown(url: str) -> list[str]:
    """Watch until the first message has come."""
    lines: list[str] = []

    def show(line: str) -> bool:
        lines.append(line)
        return False

    with trio.fail_after(20):
        assert await watch(url, ["BTC.trade"], show) == "nobody reads any more"
    return lines


async def complaint(url: str) -> str:
    with trio.fail_after(20), pytest.raises(WatchError) as caught:
        await watch(url, ["BTC.trade"], bool)
    return str(caught.value)


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
async def test_it_shows_the_messages(host: str, start_server: StartServer) -> None:
    if host == "[::1]" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    server = await start_server(NATS_URL=NOWHERE, WS_ADDR=f"{host}:0")
    (line,) = await shown(f"ws://{host}:{server.addresses[0].port}/ws?x=1")
    assert line == '{"type":"subscription_ack","subscribed":["BTC.trade"],"count":1}'


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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_CONNECT_SECONDS", 0.5)
    async with answering(answer) as address:
        said = await complaint(f"{scheme}://{address}/ws")
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
        "http://user:SECRET@a?access_token=SECRET",
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
    assert await complaint(url) == f"{url} answers 401: A token is needed"
