"""Accepting over real sockets of the loopback, with simulated lack of files."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TypeAlias

import pytest
import structlog.testing
import trio

from tests.server_rig import receive_all
from trio_odin.ledger.counters import Traffic
from trio_odin.listener import acceptor as acceptor_module
from trio_odin.listener.acceptor import Acceptor
from trio_odin.listener.admin import AdminPort
from trio_odin.net.listening import Address, bound_address, open_listeners
from trio_odin.overload.meters import LoopMeter
from trio_odin.overload.pacing import AcceptPace
from trio_odin.overload.turnover import TURNOVER

Serve: TypeAlias = Callable[[trio.SocketStream], Awaitable[None]]


async def greet(stream: trio.SocketStream) -> None:
    async with stream:
        await stream.receive_some()
        await stream.send_all(b"hello")


@asynccontextmanager
async def accepting(
    traffic: Traffic, *, per_second: float = 0.0, loop: LoopMeter | None = None
) -> AsyncIterator[Address]:
    """The address of a listener that greets everybody."""
    (listener,) = await open_listeners(Address("127.0.0.1", 0))
    async with listener, trio.open_nursery() as nursery:
        acceptor = Acceptor(traffic, per_second=per_second, loop=loop)
        nursery.start_soon(acceptor.run, listener, nursery, greet)
        yield bound_address(listener)
        nursery.cancel_scope.cancel(reason="end of the test")


async def ask(address: Address, sent: bytes = b"?") -> bytes:
    stream = await trio.open_tcp_stream(address.host, address.port)
    async with stream:
        await stream.send_all(sent)  # the kernel accepts only clients that have sent something
        with trio.fail_after(10):
            return await receive_all(stream)


async def test_below_the_rate_all_are_accepted_without_a_wait() -> None:
    traffic = Traffic()
    async with accepting(traffic, per_second=2000) as address:
        assert [await ask(address) for _ in range(10)] == [b"hello"] * 10
    assert traffic == Traffic()


async def test_above_the_rate_the_others_wait_and_nobody_is_refused() -> None:
    traffic = Traffic()
    answers: list[bytes] = []

    async def come() -> None:
        answers.append(await ask(address))

    async with accepting(traffic, per_second=100) as address:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(come)
        took = trio.current_time() - began
    assert answers == [b"hello"] * 40, "nobody is refused"
    assert took > 0.25, "10 at once, and 30 at 100 a second"
    assert traffic.accepts_paced > 5


def queue_of_the_kernel(listener: trio.SocketListener) -> int:
    """The number of connections not accepted yet: `tcpi_unacked` of a listening socket."""
    info = listener.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int(struct.unpack_from("=I", info, 24)[0])


async def test_clients_that_wait_do_not_fill_the_queue_of_the_kernel() -> None:
    (listener,) = await open_listeners(Address("127.0.0.1", 0))
    served: list[trio.SocketStream] = []

    async def serve(stream: trio.SocketStream) -> None:
        served.append(stream)

    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        await stack.enter_async_context(listener)
        address = bound_address(listener)
        come = partial(trio.open_tcp_stream, address.host, address.port)
        clients = [await stack.enter_async_context(await come()) for _ in range(600)]
        assert queue_of_the_kernel(listener) == 600
        nursery.start_soon(Acceptor(Traffic(), per_second=1).run, listener, nursery, serve)
        with trio.fail_after(10):
            while queue_of_the_kernel(listener):
                await trio.sleep(0.01)
        assert len(served) < 50, "they wait for their turn"
        nursery.cancel_scope.cancel(reason="end of the test")
    for stream in served:
        await stream.aclose()
    assert len(clients) == 600


async def test_a_client_that_waits_at_the_end_is_closed_at_once() -> None:
    (listener,) = await open_listeners(Address("127.0.0.1", 0))
    async with listener:
        address = bound_address(listener)
        clients = [await trio.open_tcp_stream(address.host, address.port) for _ in range(30)]
        async with trio.open_nursery() as nursery:
            acceptor = Acceptor(Traffic(), per_second=1)
            nursery.start_soon(acceptor.run, listener, nursery, greet)
            with trio.fail_after(10):
                while queue_of_the_kernel(listener):
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel(reason="end of the test")
        for client in clients:
            async with client:
                with trio.fail_after(5):
                    assert await client.receive_some() == b""


async def test_a_client_that_waits_when_accepting_ends_is_still_served() -> None:
    """Their queue goes to another worker, or the port to a successor: nobody is reset."""
    (listener,) = await open_listeners(Address("127.0.0.1", 0))
    answers: list[bytes] = []

    async def come() -> None:
        answers.append(await ask(address))

    async with listener, trio.open_nursery() as nursery:
        address = bound_address(listener)
        acceptor = Acceptor(Traffic(), per_second=100)
        async with trio.open_nursery() as clients:
            for _ in range(50):
                clients.start_soon(come)
            with trio.fail_after(10):
                while queue_of_the_kernel(listener) < 50:
                    await trio.sleep(0.01)
            async with trio.open_nursery() as accepting:
                accepting.start_soon(acceptor.run, listener, nursery, greet)
                with trio.fail_after(10):
                    while queue_of_the_kernel(listener):
                        await trio.sleep(0.01)
                accepting.cancel_scope.cancel(reason="another one takes clients from here")
            assert acceptor.waiting
        assert not acceptor.waiting
    assert answers == [b"hello"] * 50


async def test_two_ports_share_one_limit_of_waiting_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(acceptor_module, "_WAITING_MAX", 20)
    listeners = [(await open_listeners(Address("127.0.0.1", 0)))[0] for _ in range(2)]
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        acceptor = Acceptor(Traffic(), per_second=1)
        for listener in listeners:
            await stack.enter_async_context(listener)
            address = bound_address(listener)
            for _ in range(30):
                client = await trio.open_tcp_stream(address.host, address.port)
                await stack.enter_async_context(client)
        for listener in listeners:
            nursery.start_soon(acceptor.run, listener, nursery, greet)
        with trio.fail_after(10):
            while acceptor.waiting < 20:
                await trio.sleep(0.01)
        await trio.sleep(0.1)
        assert acceptor.waiting <= 20
        assert sum(queue_of_the_kernel(listener) for listener in listeners) >= 30
        nursery.cancel_scope.cancel(reason="end of the test")


def next_file() -> int:
    """The number that the next file gets."""
    with socket.socket() as sock:
        return sock.fileno()


async def test_waiting_clients_leave_the_reserved_files_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NATS must reconnect, and pages must be answered, while a crowd waits."""
    (listener,) = await open_listeners(Address("127.0.0.1", 0))
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        await stack.enter_async_context(listener)
        address = bound_address(listener)
        for _ in range(60):
            client = await trio.open_tcp_stream(address.host, address.port)
            await stack.enter_async_context(client)
        acceptor = Acceptor(Traffic(), per_second=1)
        kept_from = next_file() + 20
        monkeypatch.setattr(acceptor, "_kept_from", kept_from)
        nursery.start_soon(acceptor.run, listener, nursery, greet)
        with trio.fail_after(10):
            while not acceptor.waiting:
                await trio.sleep(0.01)
        await trio.sleep(0.1)
        assert next_file() <= kept_from + 2
        assert queue_of_the_kernel(listener) > 30, "the others are still there"
        nursery.cancel_scope.cancel(reason="end of the test")


async def test_a_port_can_be_taken_over_while_files_have_run_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traffic = Traffic()
    dup = os.dup

    def no_file(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", no_file)
    async with accepting(traffic) as address:
        with trio.fail_after(5):
            while not traffic.accept_errors:
                await trio.sleep(0.01)
        monkeypatch.setattr(os, "dup", dup)
        assert await ask(address) == b"hello"


async def test_after_many_closed_sockets_the_next_client_is_not_delayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traffic = Traffic()
    gone = 2000
    accept = socket.socket.accept

    def accept_if_still_there(sock: socket.socket) -> tuple[socket.socket, object]:
        if traffic.accept_errors < gone:
            raise OSError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
        return accept(sock)

    monkeypatch.setattr(socket.socket, "accept", accept_if_still_there)
    async with accepting(traffic) as address:
        assert await ask(address) == b"hello"  # a pause for each would be 20 s
    assert traffic.accept_errors == gone


class MadeUpLoop(LoopMeter):
    """A loop that reports a given idle share, whatever the real one does.

    A client takes a millisecond of it.
    """

    def __init__(self, idle_share: float, traffic: Traffic) -> None:
        super().__init__(TURNOVER)
        self._idle_share = idle_share
        self._traffic = traffic
        self._began = trio.current_time()

    @property
    def idle_seconds(self) -> float:
        return (trio.current_time() - self._began) * self._idle_share

    @idle_seconds.setter
    def idle_seconds(self, _: float) -> None:
        pass

    def seconds_in(self, names: Iterable[str]) -> float:
        return self._traffic.messages_received * 0.001


async def test_a_busy_loop_accepts_few() -> None:
    traffic = Traffic()
    answered = 0

    async def come() -> None:
        nonlocal answered
        while True:
            await ask(address)
            answered += 1
            traffic.messages_received += 1

    async with accepting(traffic, loop=MadeUpLoop(0.0, traffic)) as address:
        await ask(address)
        await trio.sleep(1)  # until the pace has adapted
        await ask(address)
        with trio.move_on_after(2):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(come)
        # Each costs the loop a millisecond, and it was for 2 s.
        assert answered <= 2 * AcceptPace.FLOOR / 0.001 + 80, "and what may come at once"
    assert traffic.accepts_paced


async def test_an_idle_loop_delays_nobody() -> None:
    traffic = Traffic()
    async with accepting(traffic, loop=MadeUpLoop(1.0, traffic)) as address:
        for _ in range(2):
            assert [await ask(address) for _ in range(10)] == [b"hello"] * 10
            await trio.sleep(0.2)
    assert not traffic.accepts_paced


class NoFiles:
    """While `are_out`, accepting fails unless the spare file has been given up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
        self.are_out = False
        self.error = error
        accept, close, open_ = socket.socket.accept, os.close, os.open
        self._spare: set[int] = set()

        def counting_open(path: str, flags: int, *more: int) -> int:
            file = open_(path, flags, *more)
            if path == os.devnull:
                self._spare.add(file)
            return file

        def counting_close(file: int) -> None:
            self._spare.discard(file)
            close(file)

        def accept_if_possible(sock: socket.socket) -> tuple[socket.socket, object]:
            if self.are_out and self._spare:
                raise OSError(self.error, os.strerror(self.error))
            return accept(sock)

        monkeypatch.setattr(os, "open", counting_open)
        monkeypatch.setattr(os, "close", counting_close)
        monkeypatch.setattr(socket.socket, "accept", accept_if_possible)


async def test_a_client_that_comes_without_free_files_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_files = NoFiles(monkeypatch, errno.EMFILE)
    traffic = Traffic()
    with structlog.testing.capture_logs() as logged:
        async with accepting(traffic) as address:
            no_files.are_out = True
            for _ in range(3):
                answer = await ask(address, b"GET /ws HTTP/1.1\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b"\r\nRetry-After: 5\r\n" in answer
                assert answer.endswith(b"Server at capacity\n")
            no_files.are_out = False
            assert await ask(address) == b"hello"
    assert traffic.rejected == {"files": 3}
    assert traffic.accept_errors == 3
    assert [line["event"] for line in logged] == ["accept.failed"], "not once for each"


async def test_other_errors_are_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    no_memory = NoFiles(monkeypatch, errno.ENOMEM)
    traffic = Traffic()
    async with accepting(traffic) as address, trio.open_nursery() as nursery:
        no_memory.are_out = True
        answers: list[bytes] = []

        async def come() -> None:
            answers.append(await ask(address))

        nursery.start_soon(come)
        with trio.fail_after(5):
            while not traffic.accept_errors:
                await trio.sleep(0.01)
        no_memory.are_out = False
    assert answers == [b"hello"]
    assert traffic.rejected == {}


async def test_a_fault_in_an_admin_page_is_logged_and_the_next_is_served() -> None:
    async def fail(_: object) -> object:
        raise ZeroDivisionError

    (listener,) = await open_listeners(Address("127.0.0.1", 0))
    with structlog.testing.capture_logs() as logged:
        async with listener, trio.open_nursery() as nursery:
            admin = AdminPort(fail, Traffic())  # type: ignore[arg-type]
            nursery.start_soon(admin.run, listener, nursery)
            for _ in range(2):
                answer = await ask(bound_address(listener), b"GET / HTTP/1.0\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 500 ")
            with trio.fail_after(5):
                while len(logged) < 2:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel(reason="end of the test")
    assert [line["event"] for line in logged] == ["request.failed"] * 2
