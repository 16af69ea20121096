from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from trio_odin.net.http import Request, Response, receive_head, response_bytes, serve_request


async def echo(request: Request) -> Response:
    return Response.json(200, [request.method, request.path, request.body.decode()])


async def answer_to(nursery: trio.Nursery, *pieces: bytes, received: bytes = b"") -> bytes:
    """Send a request in pieces and return the whole answer."""
    client, server = trio.testing.memory_stream_pair()

    async def serve() -> None:
        await serve_request(server, echo, received=received)

    nursery.start_soon(serve)
    for piece in pieces:
        await client.send_all(piece)
        await trio.testing.wait_all_tasks_blocked()
    await client.send_stream.aclose()
    answer = b""
    with trio.fail_after(5):
        async for chunk in client:
            answer += chunk
    return answer


POST = b"POST /a%20b?c=d HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"


async def test_a_body_may_come_in_any_pieces(nursery: trio.Nursery) -> None:
    for pieces in ([POST + b"hello"], [POST, b"hel", b"lo"], [POST[:9], POST[9:] + b"hello"]):
        answer = await answer_to(nursery, *pieces)
        assert answer.endswith(b'["POST","/a b","hello"]')
        assert b"\r\nContent-Type: application/json\r\n" in answer
        assert b"\r\nConnection: close\r\n" in answer


async def test_bytes_received_earlier_count(nursery: trio.Nursery) -> None:
    answer = await answer_to(nursery, b"lo", received=POST + b"hel")
    assert answer.endswith(b'["POST","/a b","hello"]')


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n" + b"x" * 99999, 413),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 70 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 20_000, 431),
        (b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    ],
)
async def test_a_bad_request_becomes_a_status(
    request_bytes: bytes, status: int, nursery: trio.Nursery
) -> None:
    answer = await answer_to(nursery, request_bytes)
    assert int(answer.split(b" ")[1]) == status


@pytest.mark.parametrize(
    ("received", "sentence"),
    [
        (bytes.fromhex("16030100a5010000a10303") + bytes(160), b"This port speaks plain HTTP"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\n\r\n", b"The PROXY protocol"),
        (b"PROXY UNKNOWN\r\n", b"The PROXY protocol is not spoken here"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12), b"The PROXY protocol"),
        (b"\xff\xfe", b"Not HTTP"),
        (b'{"type":"subscribe"}\n', b"Not HTTP"),
    ],
)
async def test_another_protocol_is_refused_at_once(
    received: bytes, sentence: bytes, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    client, server = trio.testing.memory_stream_pair()
    started = trio.current_time()

    async def serve() -> None:
        head = await receive_head(server, max_bytes=16_384)
        await serve_request(server, echo, received=head)

    nursery.start_soon(serve)
    await client.send_all(received)  # and nothing more: it waits for an answer
    answer = bytes(await client.receive_some())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.partition(b"\r\n\r\n")[2].startswith(sentence)
    assert trio.current_time() == started


async def test_a_fault_of_the_server_is_a_500_and_is_not_hidden() -> None:
    async def fail(_: Request) -> Response:
        raise ZeroDivisionError("which is nobody's business")

    client, server = trio.testing.memory_stream_pair()
    await client.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    with trio.fail_after(5):
        with pytest.raises(ZeroDivisionError):
            await serve_request(server, fail)
        answer = bytes(await client.receive_some())
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"business" not in answer


async def test_a_204_has_no_content_and_no_length() -> None:
    head = response_bytes(Response(204, headers=[("Allow", "GET")]))
    assert head.startswith(b"HTTP/1.1 204 No Content\r\n")
    assert head.endswith(b"\r\n\r\n")
    assert b"Content-" not in head


async def test_http_1_0_is_served(nursery: trio.Nursery) -> None:
    assert (await answer_to(nursery, b"GET /x HTTP/1.0\r\n\r\n")).endswith(b'["GET","/x",""]')


async def test_a_request_that_does_not_end_is_timed_out(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    client, server = trio.testing.memory_stream_pair()

    async def serve() -> None:
        await serve_request(server, echo, deadline_seconds=3)

    nursery.start_soon(serve)
    await client.send_all(POST)
    answer = b""
    async for chunk in client:
        answer += chunk
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_peer_that_leaves_is_not_an_error(nursery: trio.Nursery) -> None:
    assert await answer_to(nursery) == b""


async def test_a_peer_that_reads_nothing_does_not_block_the_server(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    client, server = trio.testing.lockstep_stream_pair()

    async def serve() -> Any:
        return await serve_request(server, echo, deadline_seconds=3)

    async with trio.open_nursery() as serving:
        serving.start_soon(serve)
        await client.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        started = trio.current_time()
    assert trio.current_time() - started <= 3 + 1


async def test_an_answer_ends_also_if_nothing_of_it_was_sent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ended = 0

    async def send(stream: trio.abc.SendStream) -> None:
        raise AssertionError("the head was not sent")

    async def end() -> None:
        nonlocal ended
        ended += 1

    async def respond(request: Request) -> Response:
        return Response(200, stream=send, on_end=end)

    client, server = trio.testing.lockstep_stream_pair()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve_request, server, respond, deadline_seconds=3))
            await client.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert ended == 1


async def test_a_peer_that_goes_away_from_a_body_sent_by_several_tasks_is_no_error() -> None:
    async def send(stream: trio.abc.SendStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, b"x")

    async def respond(request: Request) -> Response:
        await client.aclose()
        return Response(200, stream=send)

    client, server = trio.testing.memory_stream_pair()
    await client.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    with trio.fail_after(5):
        assert await serve_request(server, respond) == 200
