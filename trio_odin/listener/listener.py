"""The listener: reads the head of a request, and leads to a WebSocket connection or to a page."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from typing import NamedTuple, TypeAlias

import attrs
import structlog
import trio

from trio_odin.auth.authorize import Authorizer
from trio_odin.auth.grants import Grant
from trio_odin.auth.identity import Identity, user_agent
from trio_odin.connection.connection import Connection
from trio_odin.connection.connection_log import ConnectionLog
from trio_odin.connection.keepalive import PingWheel
from trio_odin.connection.session import SessionLimits
from trio_odin.fanout.hub import Hub
from trio_odin.ledger.reasons import Rejection
from trio_odin.ledger.snapshot import ListenerStats
from trio_odin.listener.acceptor import Acceptor, files_for_clients, response_of
from trio_odin.listener.pending_handshakes import PendingHandshakes
from trio_odin.listener.refusal_log import RefusalLog
from trio_odin.net.client_address import IpAddress, client_address, counted_as
from trio_odin.net.http import (
    END_OF_HEAD,
    HeadLimits,
    Request,
    Respond,
    Response,
    receive_head,
    send_last,
    send_last_bytes,
    serve_request,
)
from trio_odin.net.tls_stream import (
    TLS_REFUSAL,
    HandshakeFailed,
    TlsIdentity,
    TlsStream,
    accept_tls,
    socket_of,
    speaks_tls,
)
from trio_odin.overload.admission import Admission
from trio_odin.overload.meters import LoopMeter
from trio_odin.settings.settings import Settings
from trio_odin.wire import handshake
from trio_odin.wire.dictionary import Dictionary
from trio_odin.wire.frames import close_frame
from trio_odin.wire.handshake import Rejected, Upgrade, reject
from trio_odin.wire.negotiation import NO_COMPRESSION, Agreed, Encodings

_log = structlog.get_logger("listener")

_SPEAKS_TLS = Response.text(400, "This port speaks TLS: use wss:// or https://")
_NOT_PARSED = Upgrade({}, b"")
_READING = {"GET", "HEAD"}
_EXPOSED = ("Access-Control-Expose-Headers", "Retry-After, WWW-Authenticate")
# How a client that is refused after the upgrade is closed, by the status it would have got.
_CLOSE_CODES = {401: 4401, 403: 4403, 429: 4429, 503: 4503}
_REASON_MAX_BYTES = 123  # RFC 6455, 5.5

# Half of the files that are kept from WebSockets: sockets that send nothing may not have them all.
_PENDING_IN_KEPT_FILES = 8

# The size of the first read. Most requests are complete with it.
_FIRST_READ_BYTES = 16 * 1024

# Of a page: what was sent is not HTTP, or not fit for the page or /ws.
_BAD_REQUESTS = {400, 405, 413, 426, 431, 501, 505}


@attrs.define
class _Candidate:
    """A request for a WebSocket, and what the checks have found out about it.

    Attributes:
        stream: accepted socket.
        head: request, up to and including the empty line.
        address: the client's; None if it is unknown.
        owner: what its connections are counted by, if they are.
        grant: what its token allows; None if no token is needed.
    """

    stream: trio.abc.HalfCloseableStream
    head: bytes = b""
    upgrade: Upgrade = _NOT_PARSED
    address: IpAddress | None = None
    owner: str | None = None
    grant: Grant | None = None


_Check: TypeAlias = Callable[[_Candidate], Rejected | None]


class _Admitted(NamedTuple):
    """A client that is admitted: the response that completes the handshake, and what goes with it.

    `owner` is what its connections are counted by, if they are; `grant` is what its token allows;
    `identity` is for the log; `agreed` is what was chosen from its offers.
    """

    response: bytes
    owner: str | None
    grant: Grant | None
    identity: Identity
    agreed: Agreed = NO_COMPRESSION


class Listener:
    """Turns accepted sockets into connections. Their tasks live in `nursery`.

    Attributes:
        admitted: number of admitted connections. Sockets that still send their head do not count.
        session_limits: limits of the connections that join from now on.
        connection_log: log of clients that connect and disconnect.
    """

    def __init__(
        self,
        *,
        hub: Hub[Connection],
        wheel: PingWheel,
        admission: Admission,
        authorizer: Authorizer,
        respond: Respond,
        settings: Settings,
        loop: LoopMeter | None = None,
        dictionary: Dictionary | None = None,
        tls: TlsIdentity | None = None,
    ) -> None:
        self._hub = hub
        self._tls = tls
        self._encodings = Encodings(dictionary, has_deflate=settings.compression == "deflate")
        self._wheel = wheel
        self._admission = admission
        self._authorizer = authorizer
        self._respond = respond
        self._settings = settings
        self._limits = HeadLimits(settings.max_head_bytes, settings.max_headers)
        self._traffic = hub.ledger.traffic
        self._acceptor = Acceptor(
            self._traffic,
            per_second=settings.accepts_per_second,
            loop=loop,
            refusal=None if tls is None else TLS_REFUSAL,
        )
        self._pending_handshakes = PendingHandshakes(settings.max_pending_handshakes, self._traffic)
        self._pending_in_kept_files = PendingHandshakes(_PENDING_IN_KEPT_FILES, self._traffic)
        self._from_address: Counter[str] = Counter()
        self._files_for_clients = files_for_clients()
        self._departed = trio.lowlevel.ParkingLot()
        self.session_limits = self._session_limits()
        self.connection_log = ConnectionLog()
        self._refusal_log = RefusalLog()
        self.admitted = 0
        self._heads_done = 0
        # In this order: the cheap ones first, and a request is parsed before it is looked at.
        self._checks = (
            self._check_bounds,
            self._check_admission,
            self._check_request,
            self._check_address,
            self._check_credentials,
        )
        self._door = (self._check_admission, self._check_address, self._check_credentials)

    def reload(self, settings: Settings) -> None:
        """Use `settings` for clients that connect from now on."""
        self._settings = settings
        self._limits = HeadLimits(settings.max_head_bytes, settings.max_headers)
        self._acceptor.set_rate(settings.accepts_per_second)
        self._pending_handshakes.most = settings.max_pending_handshakes
        self._encodings.has_deflate = settings.compression == "deflate"
        self.session_limits = self._session_limits()

    def _session_limits(self) -> SessionLimits:
        settings = self._settings
        return SessionLimits(
            replay_capacity=settings.replay_capacity,
            resume_channel_events=settings.resume_channel_events,
            resume_events=settings.resume_events,
            snapshot_events=settings.snapshot_events,
            max_channels=settings.max_channels,
            max_patterns=settings.max_patterns,
            least_every_ms=settings.least_every_ms,
            command_burst=settings.command_burst,
            commands_per_second=settings.commands_per_second,
            can_resume=self._hub.is_filtering,
            replay_budget=self._hub.replay_budget,
            verify=self._authorizer.verify,
        )

    def renew(self, tls: TlsIdentity | None) -> None:
        """Use another certificate for clients that connect from now on."""
        self._tls = tls

    async def run(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Accept on `listener` until cancelled."""
        serve = self.serve if self._tls is None else self._serve_encrypted
        await self._acceptor.run(listener, nursery, serve)

    async def _serve_encrypted(self, plain: trio.SocketStream) -> None:
        """Agree on keys first; all that in the time that a handshake may take."""
        began_at = trio.current_time()
        try:
            encrypted = await self._encrypt(plain)
        except Exception:  # noqa: BLE001 - an error in one handshake must not end the others
            _log.exception("request.failed")
            return
        finally:
            self._heads_done += 1  # `serve` takes its own into account
        if encrypted is not None:
            self._heads_done -= 1
            taken = trio.current_time() - began_at
            await self.serve(encrypted, self._settings.handshake_seconds - taken)

    async def _encrypt(self, plain: trio.SocketStream) -> TlsStream | None:
        """Return the encrypted stream; None if the peer did not come to that. Then it is closed."""
        rejected = self._traffic.rejected
        tls = self._tls
        async with _closed_on_error(plain):
            with self._pending_like(plain).one(self._settings.handshake_seconds) as scope:
                try:
                    if tls is not None and await speaks_tls(plain):
                        return await accept_tls(plain, tls.context)
                except HandshakeFailed:
                    rejected[Rejection.TLS.label] += 1
                    return None
            if scope.cancelled_caught:
                if trio.current_time() >= scope.deadline:  # else newer sockets have ended it
                    rejected[Rejection.TIMEOUT.label] += 1
                await trio.aclose_forcefully(plain)
            else:
                rejected[Rejection.BAD_REQUEST.label] += 1
                await send_last(plain, _SPEAKS_TLS, self._settings.write_deadline_seconds)
        return None

    async def serve(
        self, stream: trio.abc.HalfCloseableStream, seconds: float | None = None
    ) -> None:
        """Serve one accepted socket to its end. Nothing that the peer does raises out of here.

        Args:
            stream: the socket, after the handshake of TLS if there is one.
            seconds: what is left of the time for the handshake; None: all of it.
        """
        try:
            try:
                if seconds is None:
                    seconds = self._settings.handshake_seconds
                head = await self._receive_head(stream, seconds)
            finally:
                self._heads_done += 1
            if head is None:
                await trio.aclose_forcefully(stream)
            elif not handshake.is_websocket_request(head):
                status = None  # it stays None if newer sockets end the page
                with self._pending_like(stream).one(math.inf):  # a page has its own deadlines
                    respond = partial(self._respond_to, stream)
                    status = await serve_request(
                        stream, respond, received=head, limits=self._limits
                    )
                self._count_page(status)
            else:
                candidate = _Candidate(stream, head)
                answer = self._judge(candidate)
                if isinstance(answer, _Admitted):
                    connected = self._connect(stream, answer)
                    del head, candidate, answer  # this frame lives as long as the connection
                    await connected
                else:
                    await self._refuse(candidate, answer)
        except Exception:  # noqa: BLE001 - an error in one request must not end the others
            _log.exception("request.failed")
            await trio.aclose_forcefully(stream)

    async def _respond_to(self, stream: trio.abc.HalfCloseableStream, request: Request) -> Response:
        """Answer a page. At /ws a plain request is told what a WebSocket would be refused for.

        A browser keeps that from the page, so this is how the page can know.
        """
        if request.path == "/ws" and request.method in _READING:
            upgrade = Upgrade(handshake.joined_headers(request.headers), request.query)
            rejected = self._rejected(_Candidate(stream, upgrade=upgrade), self._door)
            if rejected is not None:
                response = response_of(rejected)
                return attrs.evolve(response, headers=(*response.headers, _EXPOSED))
        return await self._respond(request)

    async def _refuse(self, candidate: _Candidate, rejected: Rejected) -> None:
        """Refuse a WebSocket: before the upgrade, or after it if that was asked for."""
        if self._settings.closes_refused and rejected.status in _CLOSE_CODES:
            upgrade: Upgrade | Rejected = candidate.upgrade
            if upgrade is _NOT_PARSED:  # some checks come first
                upgrade = handshake.parse(candidate.head)
            if isinstance(upgrade, Upgrade):
                agreed = self._encodings.agree(upgrade.subprotocols, b"")
                if agreed.subprotocol:
                    frame = close_frame(_CLOSE_CODES[rejected.status], _reason_of(rejected))
                    await send_last_bytes(
                        candidate.stream,
                        upgrade.response(agreed._replace(greeting=frame)),
                        self._settings.write_deadline_seconds,
                    )
                    return
        await self._send_last(candidate.stream, rejected)

    async def _receive_head(
        self, stream: trio.abc.HalfCloseableStream, seconds: float
    ) -> bytes | None:
        """Return the head; None if the peer sent nothing in time or has gone."""
        received = _already_there(stream)
        if received.endswith(END_OF_HEAD):
            return received
        with self._pending_like(stream).one(seconds) as scope:
            try:
                return (
                    await receive_head(stream, received, max_bytes=self._limits.max_bytes) or None
                )
            except trio.BrokenResourceError:
                return None
        if trio.current_time() < scope.deadline:  # newer sockets have ended it
            return None
        self._traffic.rejected[Rejection.TIMEOUT.label] += 1
        await self._send_last(stream, reject(Rejection.TIMEOUT))
        return None

    def _judge(self, candidate: _Candidate) -> _Admitted | Rejected:
        """Have the request pass all checks. A rejection is counted."""
        rejected = self._rejected(candidate, self._checks)
        if rejected is not None:
            self._traffic.rejected[rejected.reason.label] += 1
            self._refusal_log.write(rejected, candidate.upgrade, candidate.address)
            return rejected
        upgrade, address = candidate.upgrade, candidate.address
        agent = user_agent(upgrade.headers.get(b"user-agent", b""))
        identity = Identity(None if address is None else str(address), agent)
        agreed = upgrade.agree(self._encodings)
        response = upgrade.response(agreed)
        return _Admitted(response, candidate.owner, candidate.grant, identity, agreed)

    @staticmethod
    def _rejected(candidate: _Candidate, checks: Iterable[_Check]) -> Rejected | None:
        return next(filter(None, (check(candidate) for check in checks)), None)

    def _check_bounds(self, candidate: _Candidate) -> Rejected | None:
        """The size of the head, and that it ends where the request does."""
        head = candidate.head
        if (text := self._limits.excess(head)) is not None:
            return reject(
                Rejection.BAD_REQUEST, text, status=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            )
        if not head.endswith(END_OF_HEAD) or head.count(END_OF_HEAD) > 1:
            text = "Bytes behind the request: wait for the upgrade first"
            return reject(Rejection.BAD_REQUEST, text)
        return None

    def _check_admission(self, candidate: _Candidate) -> Rejected | None:
        """Whether any client is admitted now, and on this socket."""
        rejection = self._admission.rejection(self.admitted)
        if rejection is None and self._has_kept_file(candidate.stream):
            rejection = Rejection.FILES
        return None if rejection is None else reject(rejection)

    def _check_request(self, candidate: _Candidate) -> Rejected | None:
        """That it is well-formed, which is what parsing it finds out."""
        parsed = handshake.parse(candidate.head)
        if isinstance(parsed, Rejected):
            return parsed
        candidate.upgrade = parsed
        return None

    def _check_address(self, candidate: _Candidate) -> Rejected | None:
        """How many connections the address of the client has."""
        candidate.address = address = self._address(candidate.upgrade, candidate.stream)
        if address is None or not self._admission.max_per_address:
            return None
        candidate.owner = owner = counted_as(address)
        rejection = self._admission.address_rejection(self._from_address[owner])
        return None if rejection is None else reject(rejection)

    def _check_credentials(self, candidate: _Candidate) -> Rejected | None:
        """Its origin, and its token, whose signature is the most costly check."""
        grant = self._authorizer.authorize(candidate.upgrade, self._encodings)
        if isinstance(grant, Rejected):
            return grant
        candidate.grant = grant
        return None

    def _has_kept_file(self, stream: trio.abc.Stream) -> bool:
        socket = socket_of(stream)
        file = 0 if socket is None else socket.fileno()
        return file >= self._files_for_clients  # the kernel gives the lowest number that is free

    def _pending_like(self, stream: trio.abc.Stream) -> PendingHandshakes:
        return (
            self._pending_in_kept_files if self._has_kept_file(stream) else self._pending_handshakes
        )

    def _address(self, upgrade: Upgrade, stream: trio.abc.Stream) -> IpAddress | None:
        """Return the address of the client, as trusted proxies report it; None if it is unknown."""
        peer = _peer_of(stream)
        if peer is None:
            return None
        forwarded_for = upgrade.headers.get(b"x-forwarded-for", b"")
        return client_address(peer, forwarded_for, self._settings.trusted_proxies)

    async def _send_last(self, stream: trio.abc.HalfCloseableStream, rejected: Rejected) -> None:
        await send_last(stream, response_of(rejected), self._settings.write_deadline_seconds)

    def _count_page(self, status: int | None) -> None:
        """Count a failed request for a page: not HTTP, not fit for the page or /ws, or too late."""
        if status == HTTPStatus.REQUEST_TIMEOUT:
            self._traffic.rejected[Rejection.TIMEOUT.label] += 1
        elif status in _BAD_REQUESTS:
            self._traffic.rejected[Rejection.BAD_REQUEST.label] += 1

    async def _connect(self, stream: trio.abc.Stream, admitted: _Admitted) -> None:
        self.admitted += 1
        upgrade, owner, grant, identity, agreed = admitted
        if owner is not None:
            self._from_address[owner] += 1
        try:
            connection = Connection(
                stream,
                hub=self._hub,
                settings=self._settings,
                limits=self.session_limits,
                log=self.connection_log,
                grant=grant,
                identity=identity,
                agreed=agreed,
            )
            running = connection.run(upgrade, self._wheel)
            del admitted, upgrade, agreed
            await running
        finally:
            self.admitted -= 1
            if owner is not None:
                self._forget(owner)
            if not self.admitted:
                self._departed.unpark_all()

    def _forget(self, owner: str) -> None:
        self._from_address[owner] -= 1
        if not self._from_address[owner]:
            del self._from_address[owner]

    @property
    def unanswered(self) -> int:
        """Number of accepted sockets without an answer: their head has not been read yet."""
        return self._acceptor.waiting + self._acceptor.let_in - self._heads_done

    def stats(self) -> ListenerStats:
        """Return how many sockets are pending or get a page, and whether files have run out."""
        pending_handshakes = len(self._pending_handshakes) + len(self._pending_in_kept_files)
        return ListenerStats(
            pending_handshakes=pending_handshakes,
            is_out_of_files=self.is_out_of_files,
            certificate_seconds_left=(
                None if self._tls is None else self._tls.expires_at - time.time()
            ),
        )

    @property
    def is_out_of_files(self) -> bool:
        """Whether the next connection would be rejected because open files are used up."""
        try:
            file = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return True
        os.close(file)
        return file >= self._files_for_clients

    async def wait_empty(self) -> None:
        """Wait until no connection is left."""
        while self.admitted:
            await self._departed.park()


@asynccontextmanager
async def _closed_on_error(stream: trio.SocketStream) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


def _reason_of(rejected: Rejected) -> str:
    """What a close frame has room for: the text, and when to come again."""
    wait = dict(rejected.headers).get("Retry-After")
    again = "" if wait is None else f"; try again in {wait} s"
    text = rejected.text.encode()[: _REASON_MAX_BYTES - len(again)].decode(errors="ignore")
    return text + again


def _already_there(stream: trio.abc.Stream) -> bytes:
    """Read what can be read without waiting: mostly the whole head."""
    with suppress(OSError):  # nothing is there, or the peer has gone: `receive_head` will see
        if isinstance(stream, TlsStream):
            return stream.read_now(_FIRST_READ_BYTES)
        if isinstance(stream, trio.SocketStream):
            return os.read(stream.socket.fileno(), _FIRST_READ_BYTES)
    return b""


def _peer_of(stream: trio.abc.Stream) -> str | None:
    if (socket := socket_of(stream)) is not None:
        with suppress(OSError):  # the peer has gone
            name = socket.getpeername()
            return str(name[0]) if isinstance(name, tuple) else None  # not a TCP socket
    return None
