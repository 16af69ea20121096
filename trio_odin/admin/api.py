"""The admin API over HTTP: asks all processes, and merges their answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol

import msgspec
import trio

from trio_odin.admin import requests
from trio_odin.admin.access import Access
from trio_odin.admin.overview import overview
from trio_odin.admin.paging import merged, text_of_cursor
from trio_odin.admin.questions import (
    ChannelList,
    ChannelRow,
    Channels,
    Close,
    ConnectionDetail,
    ConnectionPage,
    Connections,
    Frames,
    NextFrames,
    Question,
    Refused,
    Reply,
    ShowConnection,
    StartTrace,
    StopTrace,
    TraceStarted,
)
from trio_odin.admin.requests import BadQuery, ConnectionId
from trio_odin.ledger.snapshot import Snapshot
from trio_odin.net.http import Request, Response

_READING: Final = {"GET", "HEAD"}
_WRITE_SECONDS: Final = 10.0
_FAREWELL_SECONDS: Final = 1.0
# The processes end a trace in time; this is for those that do not answer.
_OVERTIME_SECONDS: Final = 5.0
# Nothing of this is for pages, caches, or to be taken for something else than it is.
_HEADERS: Final = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))
_PATHS: Final = ("/overview", "/connections", "/channels", "/trace")
_NONE_SERVES: Final = Refused(status=503, reason="No worker serves yet")


class Process(Protocol):
    """A process that holds connections. Hashable by identity."""

    @property
    def worker(self) -> int:
        """Its number; 0 without workers."""
        ...

    async def ask(self, question: Question) -> Reply:
        """Return its answer; `Refused` with 503 if it does not answer in time."""
        ...


class Api:
    """Answers the paths of the API.

    Args:
        gather: returns the state of the whole server; None while no worker serves.
        processes: returns those that hold connections now.
        access: decides who may ask.
    """

    def __init__(
        self,
        gather: Callable[[], Awaitable[Snapshot | None]],
        processes: Callable[[], Sequence[Process]],
        access: Access,
    ) -> None:
        self._gather = gather
        self._processes = processes
        self.access = access

    async def respond(self, request: Request) -> Response | None:
        """Answer a request; None if its path is not of the API."""
        first, _, rest = request.path.removeprefix("/").partition("/")
        if f"/{first}" not in _PATHS:
            return None
        refusal = self.access.refusal(request)
        if refusal is not None:
            return _refused(refusal)
        try:
            return await self._respond(request, first, rest)
        except BadQuery as error:
            return _refused(Refused(status=400, reason=str(error)))

    async def _respond(self, request: Request, first: str, rest: str) -> Response:
        match first, rest.split("/"):
            case "connections", [number, "close"]:
                if request.method != "POST":
                    return _not_allowed("POST")
                requests.none_in(request.query)
                return await self._close(requests.connection_id(number))
            case "trace", [""] if request.method != "GET":  # a HEAD would start one for nobody
                return _not_allowed("GET")
            case _ if request.method not in _READING:
                return _not_allowed("GET, HEAD")
            case "overview", [""]:
                requests.none_in(request.query)
                return await self._overview()
            case "connections", [""]:
                return await self._connections(requests.connections(request.query))
            case "connections", [number]:
                requests.none_in(request.query)
                return await self._show(requests.connection_id(number))
            case "channels", [""]:
                return await self._channels(requests.channels(request.query))
            case "trace", [""]:
                return await self._trace(requests.trace(request.query))
            case _:
                return _refused(Refused(status=404, reason="There is no such path"))

    async def _overview(self) -> Response:
        snapshot = await self._gather()
        if snapshot is None:
            return _refused(_NONE_SERVES)
        return _json(200, overview(snapshot))

    async def _connections(self, question: Connections) -> Response:
        replies = await self._ask_all(question)
        pages = [reply for reply in replies.values() if isinstance(reply, ConnectionPage)]
        rows, cursor = merged(pages, question.limit, is_descending=question.is_descending)
        return _answers(
            replies,
            {
                "total": sum(page.total for page in pages),
                "matching": sum(page.matching for page in pages),
                "next": None if cursor is None else text_of_cursor(cursor),
                "connections": rows,
            },
        )

    async def _show(self, wanted: ConnectionId) -> Response:
        found = await self._find(wanted)
        if isinstance(found, Refused):
            return _refused(found)
        _, detail = found
        content = msgspec.to_builtins(detail)
        del content["type"]
        return _json(200, content.pop("row") | content)

    async def _close(self, wanted: ConnectionId) -> Response:
        found = await self._find(wanted)
        if isinstance(found, Refused):
            return _refused(found)
        process, _ = found
        reply = await process.ask(Close(number=wanted.number))
        if isinstance(reply, Refused):
            return _refused(reply)
        return _json(200, {"id": str(wanted), "closed": True})

    async def _find(self, wanted: ConnectionId) -> tuple[Process, ConnectionDetail] | Refused:
        """Find the one process that has a connection of this id."""
        replies = await self._ask_all(ShowConnection(number=wanted.number), wanted.worker)
        found = [
            (process, reply)
            for process, reply in replies.items()
            if isinstance(reply, ConnectionDetail)
        ]
        if not found:
            refused = [reply for reply in replies.values() if isinstance(reply, Refused)]
            worst = max(refused, key=lambda one: one.status, default=None)
            return worst or self._unknown(wanted.worker)
        return found[0] if len(found) == 1 else _ambiguous(wanted.worker)

    async def _channels(self, question: Channels) -> Response:
        """Ask for the busiest channels of each process, then for those of the others in each.

        A channel that is busy in one process may be missing in the answer of another one, which has
        some of its subscribers. All rows of all processes would be megabytes.
        """
        replies = await self._ask_all(question)
        lists = [reply for reply in replies.values() if isinstance(reply, ChannelList)]
        total = max((one.total for one in lists), default=0)
        rows = _merged_channels(lists)
        if len(lists) > 1 and any(len(one.rows) < one.total for one in lists):
            # More than the limit, as what is missing may change the order.
            names = [row.name for row in rows[: 2 * question.limit]]
            replies = await self._ask_all(Channels(seconds=question.seconds, names=names))
            lists = [reply for reply in replies.values() if isinstance(reply, ChannelList)]
            rows = _merged_channels(lists)
        return _answers(
            replies,
            {
                "total": max(total, len(rows)),
                "seconds": max((one.seconds for one in lists), default=0.0),
                "channels": rows[: question.limit],
            },
        )

    async def _ask_all(self, question: Question, worker: int | None = None) -> dict[Process, Reply]:
        """The answers of all processes, or of those of one worker, all asked at once."""
        replies: dict[Process, Reply] = {}

        async def ask(process: Process) -> None:
            replies[process] = await process.ask(question)

        async with trio.open_nursery() as nursery:
            for process in self._processes():
                if worker is None or process.worker == worker:
                    nursery.start_soon(ask, process)
        return replies

    def _unknown(self, worker: int | None) -> Refused:
        """Why no process was asked for a connection."""
        if not self._processes():
            return _NONE_SERVES
        reason = (
            f"There is no worker {worker}"
            if worker
            else "This server has workers: name the connection as WORKER-NUMBER, such as 2-1207"
        )
        return Refused(status=404, reason=reason)

    async def _trace(self, wanted: requests.Trace) -> Response:
        replies = await self._ask_all(wanted.question, wanted.worker)
        started = {
            process: reply.trace
            for process, reply in replies.items()
            if isinstance(reply, TraceStarted)
        }
        if not started:
            refused = [reply for reply in replies.values() if isinstance(reply, Refused)]
            return _refused(refused[0] if refused else self._unknown(wanted.worker))
        followed = sum(
            reply.connections for reply in replies.values() if isinstance(reply, TraceStarted)
        )
        following = _Following(wanted.question, started, followed)
        if wanted.question.connection is not None and len(started) > 1:
            await following.end()
            return _refused(_ambiguous(wanted.worker))
        return Response(
            200,
            content_type="application/x-ndjson",
            headers=_HEADERS,
            is_public=False,
            stream=following.send,
            on_end=following.end,
        )


class _Following:
    """Sends the frames of one trace of some processes, as lines of JSON. `end` has to be called."""

    def __init__(
        self, question: StartTrace, traces: Mapping[Process, int], connections: int
    ) -> None:
        self._question = question
        self._traces = traces
        self._connections = connections
        self._frames = self._dropped = 0
        self._reason = "time"

    async def send(self, stream: trio.abc.SendStream) -> None:
        """Send until the trace ends."""
        await _send_lines(stream, [{"type": "started", "connections": self._connections}])
        one_at_a_time = trio.Lock()
        async with trio.open_nursery() as nursery:

            async def follow(process: Process, trace: int) -> None:
                ended = False
                while not ended:
                    reply = await process.ask(NextFrames(trace=trace))
                    async with one_at_a_time:
                        ended = await self._pass_on(reply, stream)
                        if self._frames >= self._question.frames:
                            nursery.cancel_scope.cancel(reason="enough frames")

            ends_at = trio.current_time() + self._question.seconds
            nursery.cancel_scope.deadline = ends_at + _OVERTIME_SECONDS
            for process, trace in self._traces.items():
                nursery.start_soon(follow, process, trace)
        end = {
            "type": "ended",
            "reason": self._reason,
            "frames": self._frames,
            "dropped": self._dropped,
        }
        await _send_lines(stream, [end])

    async def end(self) -> None:
        """End the trace in the processes. Takes a second at most, and cannot be cancelled."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _FAREWELL_SECONDS):
            async with trio.open_nursery() as nursery:
                for process, trace in self._traces.items():
                    nursery.start_soon(process.ask, StopTrace(trace=trace))

    async def _pass_on(self, reply: Reply, stream: trio.abc.SendStream) -> bool:
        """Send the frames of a reply. Returns whether it was the last one of its process."""
        if not isinstance(reply, Frames):
            self._reason = "worker"
            return True
        frames = reply.frames[: self._question.frames - self._frames]
        lines = [{"type": "frame"} | msgspec.to_builtins(frame) for frame in frames]
        if reply.dropped:
            lines.append({"type": "dropped", "frames": reply.dropped})
        self._frames += len(frames)
        self._dropped += reply.dropped
        if self._frames >= self._question.frames:
            self._reason = "frames"
        elif reply.ended:
            self._reason = reply.ended
        await _send_lines(stream, lines)
        return bool(reply.ended)


async def _send_lines(stream: trio.abc.SendStream, lines: Sequence[object]) -> None:
    """Send lines of JSON, all at once.

    Raises:
        trio.BrokenResourceError: the peer has gone, or takes nothing for long.
    """
    data = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    if not data:
        return
    with trio.move_on_after(_WRITE_SECONDS) as deadline:
        await stream.send_all(data)
    if deadline.cancelled_caught:
        raise trio.BrokenResourceError("the peer takes nothing")


def _merged_channels(lists: Sequence[ChannelList]) -> list[ChannelRow]:
    """The channels of all processes, most deliveries first.

    Each process gets all events, so the rates are those of the one that has counted most.
    """
    by_name: dict[str, list[ChannelRow]] = {}
    for one in lists:
        for row in one.rows:
            by_name.setdefault(row.name, []).append(row)
    rows = [_merged_channel(name, some) for name, some in by_name.items()]
    return sorted(
        rows,
        key=lambda row: (-row.deliveries_per_second, -row.events_per_second, row.name),
    )


def _merged_channel(name: str, rows: Sequence[ChannelRow]) -> ChannelRow:
    if len(rows) == 1:
        return rows[0]
    ages = [row.last_age_seconds for row in rows if row.last_age_seconds is not None]
    return ChannelRow(
        name=name,
        subscribers=sum(row.subscribers for row in rows),
        at_a_rate=sum(row.at_a_rate for row in rows),
        events_per_second=max(row.events_per_second for row in rows),
        bytes_per_second=max(row.bytes_per_second for row in rows),
        deliveries_per_second=round(sum(row.deliveries_per_second for row in rows), 1),
        last_offset=max((row.last_offset for row in rows if row.last_offset), default=None),
        last_age_seconds=min(ages, default=None),
    )


def _answers(replies: Mapping[Process, Reply], content: dict[str, Any]) -> Response:
    """The content, and which workers have not answered; 503 if none has."""
    silent = sorted({one.worker for one, reply in replies.items() if isinstance(reply, Refused)})
    if len(replies) == 0:
        return _refused(_NONE_SERVES)
    if all(isinstance(reply, Refused) for reply in replies.values()):
        return _refused(next(one for one in replies.values() if isinstance(one, Refused)))
    return _json(200, content | {"silent_workers": silent})


def _ambiguous(worker: int | None) -> Refused:
    reason = (
        f"Worker {worker} is being replaced, and both of its processes have a connection of this "
        "number: ask again when one has ended"
    )
    return Refused(status=409, reason=reason)


def _json(status: int, content: object, headers: Sequence[tuple[str, str]] = ()) -> Response:
    return Response(
        status,
        msgspec.json.encode(content),
        "application/json",
        headers=(*_HEADERS, *headers),
        is_public=False,
    )


def _refused(refused: Refused) -> Response:
    is_unauthorized = refused.status == HTTPStatus.UNAUTHORIZED
    headers = [("WWW-Authenticate", "Bearer")] if is_unauthorized else []
    return _json(refused.status, {"error": refused.reason}, headers)


def _not_allowed(allowed: str) -> Response:
    return _json(405, {"error": f"Use {allowed}"}, [("Allow", allowed)])
