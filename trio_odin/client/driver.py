"""Carries out what the core decides: connections, commands, tokens and time.

    Feed ──▷ Driver ──▷ Core         the core is pure: what to ask for, what to believe
               △
     on_trio, aio                    sockets, tasks and signals of one library

The coroutines of this module wait for signals, sockets and functions of the shell only, so they
work with both libraries.

The clock of the core stands still while a full queue keeps the driver from reading: what the server
sends meanwhile is read later, so that silence means nothing.
"""

from __future__ import annotations

import inspect
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

import attrs
import msgspec

from trio_odin.client.connection import Position
from trio_odin.client.core import Core
from trio_odin.client.errors import ClientError, Ended, for_core
from trio_odin.client.items import (
    AskToken,
    Deliver,
    Dial,
    Drop,
    Options,
    Output,
    Send,
    State,
)
from trio_odin.client.queues import Mark
from trio_odin.client.tokens import TokenSource, TokenUnusable, usable, valid_ms
from trio_odin.client.urls import Address
from trio_odin.client.z1 import Message, Reader, Unreadable, offers

_T = TypeVar("_T")

# What a server sends is smaller, unless an operator allows larger events than NATS does by default.
MESSAGE_MAX_BYTES: Final = 16 * 1024 * 1024
# The other end of a connection that we leave in order answers at once, or it has gone.
CLOSE_SECONDS: Final = 1.0
_TOKEN_SECONDS: Final = 30.0
_LOST: Final = 1006
# What the core does not expect of a message: a key that is missing, a value of another type.
_MALFORMED: Final = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
_KIND_CHARS: Final = 40
_FOREVER: Final = float("inf")
# It goes on while the machine sleeps, so that the core notices that.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock_ms() -> float:
    """Milliseconds of a clock that does not go back."""
    return time.clock_gettime(_CLOCK) * 1000


class Signal(Protocol):
    """`trio.Event` or `asyncio.Event`."""

    def set(self) -> object:
        """Wake whoever waits, now and later."""

    async def wait(self) -> object:
        """Wait until it is set."""


class Socket(Protocol):
    """An open WebSocket. `protocol` is the subprotocol that was selected."""

    protocol: str | None

    async def receive(self) -> str | bytes:
        """Return the next message; raises Ended."""
        ...

    async def send(self, text: str) -> None:
        """Send a message; raises Ended."""


@attrs.define(eq=False)
class Conn:
    """A connection that the core has asked for.

    Attributes:
        number: by which the core knows it.
        address: where it leads to.
        token: for its `Authorization`, if there is one.
        offers: the subprotocols for its handshake.
        socket: once it is open.
        waiting: commands to send: one at a time, and a heartbeat now and then.
        close_code: what to close it with, once the core has dropped it.
        handle: by which the shell ends it.
    """

    number: int
    address: Address
    token: str | None
    offers: list[str]
    socket: Socket | None = None
    waiting: deque[str] = attrs.field(factory=deque)
    is_sending: bool = False
    close_code: int | None = None
    handle: Any = None


@attrs.frozen(kw_only=True)
class Target:
    """Where to connect to, and how; see `connect`."""

    addresses: Sequence[Address]
    token: TokenSource | None
    options: Options | None
    is_compressed: bool

    @classmethod
    def of(
        cls,
        url: str | Sequence[str],
        *,
        token: TokenSource | None,
        options: Options | None,
        is_compressed: bool,
    ) -> Target:
        """Read the URLs.

        Raises:
            ClientError: one is malformed, or there is none; or the token cannot be sent.
        """
        urls = [url] if isinstance(url, str) else url
        addresses = [Address.of(one) for one in urls]
        if not addresses:
            raise ClientError("no URL: at least one is needed, like ws://127.0.0.1:3002/ws")
        if token is not None and not callable(token):
            usable(token)
        return cls(addresses=addresses, token=token, options=options, is_compressed=is_compressed)

    @property
    def shown(self) -> str:
        """The URLs, for people."""
        return " or ".join(address.shown for address in self.addresses)


class Driver(ABC):
    """The tasks of a feed, but for what depends on the library.

    Attributes:
        target: where it connects to.
        core: what it carries out.
        deliver: takes what is for the user.
        mark: how many inputs there were, and the last known position before the newest of them.
        bytes_received: the size of all messages, as they came.
    """

    def __init__(self, target: Target, clock: Callable[[], float] = clock_ms) -> None:
        self.target = target
        # A token that stays the same is not asked for again: a server that refuses it says no.
        self._fixed_token = target.token if isinstance(target.token, str) else None
        self._addresses = dict(enumerate(target.addresses))
        self.core = Core(
            [str(number) for number in self._addresses],
            needs_token=callable(target.token),
            options=target.options,
        )
        self.deliver: Callable[[Deliver | State], None] = _ignore
        self.mark: Mark = (0, None)
        self.bytes_received = 0
        self._clock = clock
        self._conns: dict[int, Conn] = {}
        self._serving = 0
        self._was_open = False
        self._plain: set[Address] = set()  # where no dictionary could be loaded
        self._held_at: float | None = None
        self._held_ms = 0.0
        self._alarm_at = _FOREVER
        self._alarm, self._room, self._idle = (self.new_signal() for _ in range(3))

    # ---- what depends on the library

    @abstractmethod
    def new_signal(self) -> Signal:
        """Make a signal that tasks can wait for."""

    @abstractmethod
    def start(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start a task that ends with the feed."""

    @abstractmethod
    async def within(self, seconds: float, function: Callable[[], Awaitable[_T]]) -> _T | None:
        """Call `function`; after so many seconds cancel it, and return None."""

    @abstractmethod
    async def serve(self, conn: Conn) -> Ended:
        """Open a socket, `follow` it to its end, and close it. Returns also once it is `cut`."""

    @abstractmethod
    def cut(self, conn: Conn) -> None:
        """Make `serve` end, and close the socket with `close_code`."""

    @abstractmethod
    async def fetch(self, address: Address, path: str) -> bytes:
        """GET `path` from a server, with limits for time and size; raises Ended or Unreadable."""

    # ---- for the feed

    def now_ms(self) -> float:
        """The time on the clock of the core."""
        return (self._clock() if self._held_at is None else self._held_at) - self._held_ms

    def position(self) -> Position | None:
        """The last known position of what has come; see `Feed.position`."""
        return self.core.position() or self.mark[1]

    def act(self, report: Callable[..., None], *args: Any, **options: Any) -> None:
        """Report something to the core, and carry out what it wants done."""
        self.mark = self.mark[0] + 1, self.position()
        report(self.now_ms(), *args, **options)
        for output in self.core.take():
            if isinstance(output, Deliver | State):
                self.deliver(output)
            else:
                self._carry_out(output)
        at = self.core.deadline()
        if at is not None and at < self._alarm_at:
            self._alarm_at = at
            self._alarm.set()

    async def run(self) -> None:
        """Connect, and keep the time of the core until it is closed."""
        self.act(self.core.start)
        while self.core.state.name != "closed":
            at = None if self._held_at is not None else self.core.deadline()
            self._alarm_at = _FOREVER if at is None else at
            self._alarm = self.new_signal()
            await self.within((self._alarm_at - self.now_ms()) / 1000, self._alarm.wait)
            at = self.core.deadline()
            if at is not None and at <= self.now_ms():
                self.act(self.core.tick)

    def hold(self) -> None:
        """Stop reading, and the clock."""
        if self._held_at is None:
            self._held_at = self._clock()

    def release(self) -> None:
        """Read on."""
        if self._held_at is not None:
            self._held_ms += self._clock() - self._held_at
            self._held_at = None
            self._alarm.set()
            self._room.set()
            self._room = self.new_signal()

    def abandon(self) -> None:
        """Close the feed of a block that was cut off: loops elsewhere end, sockets are cut."""
        conns = list(self._conns.values())
        self.act(self.core.close)
        for conn in conns:
            conn.close_code = _LOST  # not in order, which takes time

    async def wait_idle(self) -> None:
        """Wait until every socket is closed."""
        while self._serving:
            await self._idle.wait()

    # ---- for the shell

    async def follow(self, conn: Conn, socket: Socket) -> None:
        """Hand everything that comes from a socket to the core.

        Raises:
            Ended: it has come to its end, or sent what cannot be read.
        """
        conn.socket = socket
        try:
            reader = Reader(socket.protocol)
            if not reader.is_ready:
                await self._prepare(conn, socket, reader)
            self._was_open = True
            self.act(self.core.opened, conn.number)
            while True:
                data = await socket.receive()
                self.bytes_received += len(data)
                self._receive(conn, reader.read(data))
                while self._held_at is not None:
                    await self._room.wait()
        except Unreadable as error:
            raise Ended(_LOST, str(error)) from error

    # ---- inside

    async def _prepare(self, conn: Conn, socket: Socket, reader: Reader) -> None:
        try:
            reader.prepare(await socket.receive())
            if reader.wanted is not None:
                path = conn.address.beside(reader.wanted)
                reader.take_dictionary(await self.fetch(conn.address, path))
        finally:
            # Servers may be on their way to another dictionary, or a proxy does not give it.
            if not reader.is_ready:
                self._plain.add(conn.address)

    def _receive(self, conn: Conn, message: Message) -> None:
        if not message:
            return  # not for us
        try:
            self.act(self.core.received, conn.number, message)
        except _MALFORMED as error:
            kind = str(message.get("type"))[:_KIND_CHARS]
            raise Unreadable(f"an unreadable message, {kind!r}: {error!r}") from error

    def _carry_out(self, output: Output) -> None:
        if isinstance(output, Send):
            self._send(output)
        elif isinstance(output, Dial):
            self._dial(output)
        elif isinstance(output, Drop):
            if (conn := self._conns.pop(output.conn, None)) is not None:
                conn.close_code = output.code
                self.cut(conn)
        elif isinstance(output, AskToken):
            self.start(self._ask_token)

    def _dial(self, dial: Dial) -> None:
        address = self._addresses[int(dial.url)]
        is_compressed = self.target.is_compressed and address not in self._plain
        conn = Conn(
            dial.conn,
            address,
            dial.token or self._fixed_token,
            offers(is_compressed=is_compressed),
        )
        self._conns[dial.conn] = conn
        self._serving += 1
        self.start(self._serve, conn)

    async def _serve(self, conn: Conn) -> None:
        try:
            ended = await self.serve(conn)
        finally:
            self._serving -= 1
            if not self._serving:
                self._idle.set()
                self._idle = self.new_signal()
        if self._conns.pop(conn.number, None) is not None:
            # With several servers, another one may be better.
            is_first = not self._was_open and len(self._addresses) == 1
            code = for_core(ended, is_first=is_first)
            self.act(self.core.lost, conn.number, code, ended.cause)

    def _send(self, send: Send) -> None:
        conn = self._conns.get(send.conn)
        if conn is not None:
            conn.waiting.append(msgspec.json.encode(send.message).decode())
            if not conn.is_sending:
                conn.is_sending = True
                self.start(self._send_waiting, conn)

    async def _send_waiting(self, conn: Conn) -> None:
        try:
            while conn.waiting and conn.socket is not None:
                await conn.socket.send(conn.waiting.popleft())
        except Ended:
            pass  # whoever receives gets to know that, too
        finally:
            conn.is_sending = False

    async def _ask_token(self) -> None:
        try:
            token = await self.within(_TOKEN_SECONDS, self._token)
        except TokenUnusable as error:
            # A fault of the program, which does not go away by itself.
            self.act(self.core.close, str(error))
            return
        except Exception as error:  # noqa: BLE001 - the user's function: it may go better next time
            self.act(self.core.token_failed, f"no token: {error!r}")
            return
        if token is None:
            self.act(self.core.token_failed, f"no token within {_TOKEN_SECONDS:g} s")
        else:
            self.act(self.core.take_token, token, valid_ms(token))

    async def _token(self) -> str:
        source = self.target.token
        token: Any = source() if callable(source) else source
        return usable(await token if inspect.isawaitable(token) else token)


def _ignore(_: object) -> None:
    """Before there is a feed."""
