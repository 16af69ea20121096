"""The questions about live connections, and their answers, as they go over a worker's link.

One process answers for its own connections. `admin/api.py` asks all processes and merges.

    Connections ──► ConnectionPage      ShowConnection ──► ConnectionDetail
    Channels ─────► ChannelList         Close ───────────► Closed
    StartTrace ───► TraceStarted        NextFrames ──────► Frames, again and again
                                        StopTrace ───────► Closed
    any of them ──► Refused
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import msgspec

ROWS_MAX: Final = 10_000
ROWS_WITH_BYTES: Final = 1000
TRACE_FRAMES_MAX: Final = 10_000
TRACE_SECONDS_MAX: Final = 600.0
# A cursor: the sort key of the last row of a page, and its number and worker.
Cursor: TypeAlias = tuple[Any, int, int]


class _Message(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """A question or an answer."""


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an answer, as a client of the API gets it."""


class Connections(_Message, frozen=True):
    """One page of the connections that pass the filters.

    Attributes:
        sort: a field of `ConnectionRow`; see `paging.SORTS`.
        is_descending: the greatest first.
        limit: the most rows of the page, up to `ROWS_MAX`.
        after: where the page before has ended.
        address: an address or a network; empty: any.
        subject: the subject of the token; None: any.
        channel: a name that is subscribed to, as the client gave it; empty: any.
        is_lagging: whether something waits in the outbox; None: either.
    """

    sort: str = "queued_bytes"
    is_descending: bool = True
    limit: int = 100
    after: Cursor | None = None
    address: str = ""
    subject: str | None = None
    channel: str = ""
    is_lagging: bool | None = None


class ShowConnection(_Message, frozen=True):
    """Everything about one connection, by its number in its process."""

    number: int


class Close(_Message, frozen=True):
    """Close one connection, by its number in its process."""

    number: int


class Channels(_Message, frozen=True):
    """The channels that are subscribed to or had events lately.

    Attributes:
        seconds: how long to count events before the answer, if nobody has asked lately.
        limit: the most rows of the answer, those with most deliveries, up to `ROWS_MAX`.
        names: only these, whatever `limit` is; None: any.
    """

    seconds: float = 1.0
    limit: int = 100
    names: list[str] | None = None


class StartTrace(_Message, frozen=True):
    """Follow the frames to some connections; exactly one of the three filters is given.

    Attributes:
        connection: the number of a connection.
        channel: a channel: only frames that have an event of it, or name it.
        user: the subject of a token.
        frames: how many frames at most.
        seconds: how long at most.
    """

    connection: int | None = None
    channel: str = ""
    user: str | None = None
    frames: int = 1000
    seconds: float = 60.0


class NextFrames(_Message, frozen=True):
    """Wait a moment for frames of a trace."""

    trace: int


class StopTrace(_Message, frozen=True):
    """End a trace."""

    trace: int


class ConnectionRow(_Part, frozen=True, gc=False):
    """A connection in a list.

    Attributes:
        id: what the other requests name it by: `WORKER-NUMBER`, or only the number without workers.
        worker: the worker that holds it; 0 without workers.
        connection: its number, as in the log.
        address: the client's address; None if it is unknown.
        subject: the subject of its token; None without a token.
        user_agent: as the client states it.
        age_seconds: how long it has been open.
        silent_seconds: how long nothing has come from the client, not even a pong.
        channels: how many names it is subscribed to.
        encoding: plain, z1 or deflate.
        state: idle, waiting, closing or stopped.
        seq: the number of its last message.
        queued: messages that wait.
        queued_bytes: bytes of those, and of replies that wait.
        skipped: messages that gave way to newer ones because the client reads too slowly.
        dropped: messages for which there was no room.
        bytes: bytes that the client's machine has acknowledged. None if the kernel does not know,
            and in a page of more than `ROWS_WITH_BYTES` rows that is not sorted by it: to ask the
            kernel takes as long as all the rest.
        is_lagging: whether anything waits.
    """

    id: str
    worker: int
    connection: int
    address: str | None
    subject: str | None
    user_agent: str
    age_seconds: float
    silent_seconds: float
    channels: int
    encoding: str
    state: str
    seq: int
    queued: int
    queued_bytes: int
    skipped: int
    dropped: int
    bytes: int | None
    is_lagging: bool


class Subscription(_Part, frozen=True):
    """A name of one connection; `every_ms` 0: every event; None: paused."""

    name: str
    every_ms: int | None
    events_per_second: float | None
    last_offset: int | None


class Transport(_Part, frozen=True):
    """What the kernel knows of a connection, see tcp(7)."""

    round_trip_ms: float
    unacknowledged_segments: int
    unsent_bytes: int
    retransmitted_segments: int
    bytes_acknowledged: int
    bytes_received: int


class Outbox(_Part, frozen=True):
    """What waits for one connection, and how much may."""

    messages: int
    bytes: int
    messages_limit: int
    bytes_limit: int
    policy: str


class ConnectionPage(_Message, frozen=True):
    """Some connections.

    Attributes:
        rows: the connections, in order: each a `ConnectionRow` as JSON. Ten thousand of them
            are encoded in slices, once, and neither decoded nor encoded on their way.
        places: the place of each row in the order.
        matching: how many connections pass the filters.
        total: how many there are.
        ends_at: the place after which the next page begins; None if this one is the last. Not
            always the last row's: what closed in the meantime has no row.
    """

    rows: list[msgspec.Raw]
    places: list[Cursor]
    matching: int
    total: int
    ends_at: Cursor | None


class ConnectionDetail(_Message, frozen=True):
    """One connection, and its last events."""

    row: ConnectionRow
    subscriptions: list[Subscription]
    outbox: Outbox
    transport: Transport | None
    token_expires_at: float | None
    has_notices: bool
    last_events: list[str]


class ChannelRow(_Part, frozen=True):
    """A channel, or a pattern as clients gave it.

    Attributes:
        name: the name.
        subscribers: connections that have this name, at every event or at a rate.
        at_a_rate: those of them at a rate.
        events_per_second: events of the channel; of a pattern, of all that it matches.
        bytes_per_second: their payloads.
        deliveries_per_second: events times the connections that get every event under this name.
        last_offset: the offset of the newest event; None if there was none, or without JetStream.
        last_age_seconds: how long ago NATS stored it.
    """

    name: str
    subscribers: int
    at_a_rate: int
    events_per_second: float
    bytes_per_second: float
    deliveries_per_second: float
    last_offset: int | None
    last_age_seconds: float | None


class ChannelList(_Message, frozen=True):
    """Some channels.

    Attributes:
        rows: the channels.
        seconds: over how many seconds their events were counted.
        total: how many channels there are in this process.
    """

    rows: list[ChannelRow]
    seconds: float
    total: int


class Closed(_Message, frozen=True):
    """It was done."""


class TraceStarted(_Message, frozen=True):
    """A trace has begun. `connections`: how many it follows now."""

    trace: int
    connections: int


class Frame(_Part, frozen=True):
    """A frame that went out.

    Attributes:
        connection: the id of the connection, as in `ConnectionRow`.
        unix_ms: when its last byte was given to the kernel.
        opcode: text, binary, ping, pong or close.
        bytes: its length on the wire.
        content: the text, inflated where it was compressed, and cut; of a close frame its code and
            reason.
        is_cut: whether `content` is not all of it.
    """

    connection: str
    unix_ms: int
    opcode: str
    bytes: int
    content: str
    is_cut: bool = False


class Frames(_Message, frozen=True):
    """The next frames of a trace, maybe none.

    Attributes:
        dropped: frames since the last answer for which there was no room.
        ended: why no more will come: `frames`, `time`, `gone` or, after a fault of the server that
            is in its log, `error`; empty while more may.
    """

    frames: list[Frame]
    dropped: int = 0
    ended: str = ""


class Refused(_Message, frozen=True):
    """It cannot be done, for a reason that is a sentence; `status` is that of HTTP."""

    status: int
    reason: str


Question: TypeAlias = (
    Connections | ShowConnection | Close | Channels | StartTrace | NextFrames | StopTrace
)
Reply: TypeAlias = (
    ConnectionPage | ConnectionDetail | ChannelList | Closed | TraceStarted | Frames | Refused
)
