"""TLS on two sockets, with trio's own at the other end: every byte, whatever a socket takes."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from tests.certificates import make_certificates
from trio_odin.fanout.client_socket import ClientSocket
from trio_odin.fanout.flight import FlightRecorder
from trio_odin.ledger.counters import Traffic
from trio_odin.net.tls_stream import (
    HandshakeFailed,
    TlsIdentity,
    TlsStream,
    accept_tls,
    socket_of,
    speaks_tls,
)


@attrs.frozen
class Ends:
    """The two ends of a connection: ours, and the other as a stream of trio."""

    near: TlsStream
    far: trio.SSLStream[trio.SocketStream]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def identity(folder: Path) -> TlsIdentity:
    files = make_certificates(folder, "localhost")
    return TlsIdentity.load(files.certificate, files.key)


def client_context(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "ca.pem"))


async def sockets() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two ends of a TCP connection, with small buffers."""
    with trio.socket.socket() as listening:
        await listening.bind(("127.0.0.1", 0))
        listening.listen()
        far = trio.socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await far.connect(listening.getsockname())
        near, _ = await listening.accept()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return trio.SocketStream(near), trio.SocketStream(far)


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
async def ends(
    request: pytest.FixtureRequest, folder: Path, identity: TlsIdentity
) -> AsyncIterator[Ends]:
    plain, far_plain = await sockets()
    context = client_context(folder)
    context.maximum_version = request.param
    far = trio.SSLStream(far_plain, context, server_hostname="localhost", https_compatible=True)
    near: TlsStream | None = None

    async def accept() -> None:
        nonlocal near
        near = await accept_tls(plain, identity.context)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            nursery.start_soon(far.do_handshake)
    assert near is not None
    async with near, far:
        yield Ends(near, far)


async def test_bytes_go_both_ways(ends: Ends) -> None:
    await ends.near.send_all(b"to the client")
    assert await ends.far.receive_some() == b"to the client"
    await ends.far.send_all(b"to the server")
    assert await ends.near.receive_some() == b"to the server"


async def test_a_socket_that_is_full_takes_nothing_and_loses_nothing(ends: Ends) -> None:
    """What `write_now` counts as written arrives once and in order, however slowly it is read."""
    sent, received = hashlib.sha256(), hashlib.sha256()
    sizes = random.Random(7)
    total, refusals = 3_000_000, 0

    async def write() -> None:
        nonlocal refusals
        waiting = b""
        done = 0
        while done < total:
            waiting = waiting or os.urandom(sizes.choice([2, 3, 350, 16_384, 16_385, 70_000]))
            try:
                taken = ends.near.write_now(-1, waiting)
            except BlockingIOError:
                refusals += 1
                await trio.lowlevel.wait_writable(ends.near.socket)
                continue
            assert 0 < taken <= len(waiting)
            sent.update(waiting[:taken])
            done += taken
            waiting = waiting[taken:]
        await ends.near.send_all(waiting)
        sent.update(waiting)
        await ends.near.send_eof()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            async for chunk in ends.far:
                received.update(chunk)
                if sizes.random() < 0.02:
                    await trio.sleep(0.001)
    assert refusals > 10
    assert received.digest() == sent.digest()


async def test_a_record_that_is_cut_is_completed_before_anything_else(ends: Ends) -> None:
    """The last byte of what is cut comes back as the first of the rest, once."""
    data = bytes(range(256)) * 400
    taken = 0
    while True:
        try:
            taken += ends.near.write_now(-1, data[taken % 256 :])
        except BlockingIOError:
            break
    written = taken
    received = bytearray()

    async def finish() -> None:
        nonlocal written
        rest = data[written % 256 : written % 256 + 1]
        await ends.near.send_all(rest)
        written += 1

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(finish)
            while len(received) < taken + 1:
                received += await ends.far.receive_some()
    assert len(received) == written
    assert all(value == number % 256 for number, value in enumerate(received))


async def test_two_tasks_can_wait_until_it_is_writable(ends: Ends) -> None:
    """The reader does so for what the peer wants as an answer, while the writer waits too."""
    socket = ClientSocket(ends.near, traffic=Traffic(), flight=FlightRecorder(0))
    piece = b"x" * 16_384
    written = False
    with suppress(BlockingIOError):
        while True:  # the byte that counts as not written is one more of the same
            ends.near.write_now(-1, piece)

    async def write() -> None:
        nonlocal written
        assert await socket.write_all([piece * 100], seconds=30)
        await ends.near.send_all(piece)
        written = True

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.near.wait_writable)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(write)
            nursery.start_soon(ends.near.wait_send_all_might_not_block)
            await trio.testing.wait_all_tasks_blocked(0.01)
            while not written:
                await ends.far.receive_some()


async def test_what_is_left_of_a_record_is_there_without_a_wait(ends: Ends) -> None:
    await ends.far.send_all(b"x" * 10_000)
    assert await ends.near.receive_some(4) == b"xxxx"
    assert ends.near.has_more
    got = 4
    while ends.near.has_more:
        got += len(ends.near.read_now(4096))
    assert got == 10_000
    with pytest.raises(BlockingIOError):
        ends.near.read_now(1)


async def test_after_the_end_nothing_is_sent_in_clear(ends: Ends) -> None:
    await ends.near.send_eof()
    with pytest.raises(OSError, match="ended"):
        ends.near.write_now(-1, b"secret")
    with pytest.raises(trio.BrokenResourceError):
        await ends.near.send_all(b"secret")
    assert await ends.far.receive_some() == b""


async def test_closing_now_says_goodbye_and_may_be_done_twice(ends: Ends) -> None:
    ends.near.close_now()
    ends.near.close_now()
    assert ends.near.socket.fileno() == -1
    assert await ends.far.receive_some() == b""


async def test_the_end_of_the_client_is_the_end(ends: Ends) -> None:
    await ends.far.aclose()
    with trio.fail_after(5):
        assert await ends.near.receive_some() == b""
    await ends.near.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await ends.near.send_all(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await ends.near.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await ends.near.wait_send_all_might_not_block()


async def test_a_reset_is_a_broken_stream(ends: Ends) -> None:
    raw = ends.far.transport_stream.socket
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    raw.close()
    with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
        await ends.near.send_all(b"x" * 1_000_000)


async def test_garbage_breaks_the_stream(ends: Ends) -> None:
    await ends.far.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + b"?" * 32)
    with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
        await ends.near.receive_some()


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
async def test_a_client_that_wants_small_records_gets_every_byte(
    folder: Path, identity: TlsIdentity
) -> None:
    """RFC 6066, 4: then OpenSSL makes many records of one write.

    `write_now` relies on what Python's ssl does then: a write that was cut and is repeated sends
    all of them, as SSL_MODE_ENABLE_PARTIAL_WRITE is off.
    """
    data = b"".join(b"%07d\n" % number for number in range(100_000))
    received = bytearray()
    with trio.socket.socket() as listening, trio.fail_after(60):
        await listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        command = ["openssl", "s_client", "-quiet", "-maxfraglen", "512", "-connect", address]
        async with trio.open_nursery() as nursery:
            process = await trio.lowlevel.open_process(
                [*command, "-CAfile", str(folder / "ca.pem")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            try:
                assert process.stdout is not None
                plain, _ = await listening.accept()
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                near = await accept_tls(trio.SocketStream(plain), identity.context)

                async def write() -> None:
                    async with near:
                        await near.send_all(data)

                nursery.start_soon(write)
                await trio.sleep(0.2)  # its socket and its pipe fill up
                async for chunk in process.stdout:
                    received += chunk
            finally:
                process.kill()
                await process.wait()
    assert len(received) == len(data)
    assert received == data


# --- before it is encrypted


@pytest.mark.parametrize(
    ("first", "is_tls"), [(b"GET / HTTP/1.1\r\n", False), (b"\x16\x03\x01", True), (b"", True)]
)
async def test_the_first_byte_shows_whether_it_is_tls(first: bytes, is_tls: bool) -> None:
    near, far = await sockets()
    async with near, far:
        if first:
            await far.send_all(first)
        else:
            await far.aclose()
        assert await speaks_tls(near) is is_tls
        assert await near.receive_some() == first, "it stays there"


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x00\x05hello", b"GET / HTTP/1.1\r\n\r\n", b""])
async def test_a_handshake_that_fails_closes_the_socket(sent: bytes, identity: TlsIdentity) -> None:
    near, far = await sockets()
    async with far:
        if sent:
            await far.send_all(sent)
        await far.send_eof()
        with trio.fail_after(5), pytest.raises(HandshakeFailed):
            await accept_tls(near, identity.context)
        with trio.fail_after(5), suppress(trio.BrokenResourceError):
            while await far.receive_some():
                pass  # an alert, then the end, or a reset as something was not read


async def test_a_socket_that_cannot_be_used_is_closed(
    identity: TlsIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*, fileno: int) -> socket.socket:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    near, far = await sockets()
    async with far:
        with monkeypatch.context() as patched:
            patched.setattr("trio_odin.net.tls_stream.socket.socket", fails)
            with pytest.raises(HandshakeFailed, match="buffer"):
                await accept_tls(near, identity.context)
        with trio.fail_after(5):
            assert await far.receive_some() == b""


async def test_old_versions_are_refused(folder: Path, identity: TlsIdentity) -> None:
    near, far = await sockets()
    context = client_context(folder)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")

    async def connect() -> None:
        stream = trio.SSLStream(far, context, server_hostname="localhost")
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await far.aclose()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
            with pytest.raises(HandshakeFailed, match="PROTOCOL"):
                await accept_tls(near, identity.context)


async def test_a_cancelled_handshake_closes_the_socket(identity: TlsIdentity) -> None:
    near, far = await sockets()
    async with far:
        with trio.move_on_after(0.01) as scope:
            await accept_tls(near, identity.context)
        assert scope.cancelled_caught
        with trio.fail_after(5):
            assert await far.receive_some() == b""


async def test_the_socket_is_known_where_there_is_one(ends: Ends) -> None:
    assert socket_of(ends.near) is ends.near.socket
    assert socket_of(ends.far.transport_stream) is ends.far.transport_stream.socket
    assert socket_of(ends.far) is None
