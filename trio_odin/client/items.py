"""What the client gives to its user, and what it asks of its shell.

The decisions are made in `core`, which does not use sockets. It returns the values below; a shell
carries out those that are about sockets, and hands the others to the user.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import attrs

# Milliseconds between two events of a channel; 0 is every event, None a pause. Of several
# subscriptions to a channel the fastest rate counts: a slower one gets those events, too.
Rate: TypeAlias = int | None
StateName: TypeAlias = Literal["connecting", "live", "stale", "offline", "closed"]


@attrs.frozen(kw_only=True)
class Event:
    """An event of a channel.

    Attributes:
        channel: `BTC.trade`.
        data: what was published, as JSON; it may be None.
        unix_ms: when NATS stored it.
        offset: its number in the stream `epoch`; None without JetStream.
        prev: the offset of the event before it in its channel; None if unknown.
        skipped: how many older events of the channel gave way to this one; None if that is not
            known.
        is_snapshot: whether it is the newest event from before, and not a new one.
        epoch: the stream that `offset` and `prev` count in; None without JetStream.
        trace: the span of the server that sent it, as a W3C `traceparent`; None unless the event
            is traced.
    """

    channel: str
    data: Any
    unix_ms: int
    offset: int | None = None
    prev: int | None = None
    skipped: int | None = 0
    is_snapshot: bool = False
    epoch: str | None = None
    trace: str | None = None


@attrs.frozen(kw_only=True)
class Gap:
    """Events that were lost, or may have been.

    Attributes:
        channels: the channels and patterns that may lack events.
        missed: how many are missing in all of them; None if unknown.
        reason: `resume`, after a lost connection; `slow`, as this client reads too slowly; `hole`,
            found by the number of the event before; `snapshot`, as a server sends at most 1,000
            first values at once; or what the server says: `start`, `window`, `stream`, `core`,
            `unreadable` or `shed`, see docs/protocol.md.
    """

    channels: tuple[str, ...]
    missed: int | None
    reason: str


@attrs.frozen(kw_only=True)
class State:
    """The state of a feed.

    Attributes:
        name: `connecting`; `live`; `stale`, if it is connected but prices may be old; `offline`,
            while it waits to connect again; or `closed`, for good.
        cause: why, as a sentence or a word; empty if there is nothing to say.
        at: when that began, in milliseconds by the clock of the shell.
        retry_at: when it connects again; None unless `offline`.
    """

    name: StateName
    cause: str = ""
    at: float = 0
    retry_at: float | None = None


@attrs.frozen(kw_only=True)
class Refused:
    """A channel or pattern that the server does not give, and the code of its reason."""

    channel: str
    code: str


@attrs.frozen
class Dial:
    """Open a socket to `url`, which is known as `conn` from now on; with a token, if there is one.

    The answer is `Core.opened` or `Core.lost`.
    """

    conn: int
    url: str
    token: str | None


@attrs.frozen
class Send:
    """Send a command on an open socket."""

    conn: int
    message: dict[str, Any]


@attrs.frozen
class Drop:
    """Close a socket without waiting for it. Nothing that it still brings is of interest."""

    conn: int
    code: int


@attrs.frozen
class AskToken:
    """Ask the user for a token. The answer is `Core.take_token` or `Core.token_failed`."""


@attrs.frozen
class Deliver:
    """Hand `item` to these subscriptions."""

    subscriptions: tuple[int, ...]
    item: Event | Gap | Refused


Output: TypeAlias = Dial | Send | Drop | AskToken | Deliver | State


@attrs.frozen(kw_only=True)
class Options:
    """The numbers of a client, in milliseconds. The defaults suit the server's.

    Attributes:
        dial_ms: how long a socket may take to open.
        answer_ms: how long an answer to a command may take.
        heartbeat_ms: how often the client asks for the state of NATS and its position.
        pong_ms: how long the answer may take if nothing else arrives. Then the connection is lost.
        stale_ms: how old the server's last message from NATS may be.
        freeze_ms: a client that did nothing for so long was frozen. It drops what has piled up.
        hidden_freeze_ms: the same while it is hidden, where browsers let timers run once a minute.
        hidden_every_ms: the rate, while hidden, of what is faster and has a rate; 0 changes none.
        retry_min_ms: the first delay before it connects again is up to this, and doubles.
        retry_max_ms: the greatest delay.
        max_channels: channels and patterns on one connection. Further ones get another.
        max_patterns: patterns on one connection.
        max_newest: of how many channels the newest event is kept: of those that had one last, and
            of all that are subscribed to by name. Of another one an event that comes twice is
            handed out twice.
    """

    dial_ms: float = 10_000
    answer_ms: float = 10_000
    heartbeat_ms: float = 10_000
    pong_ms: float = 4_000
    stale_ms: float = 3_000
    freeze_ms: float = 5_000
    hidden_freeze_ms: float = 75_000
    hidden_every_ms: int = 5_000
    retry_min_ms: float = 500
    retry_max_ms: float = 20_000
    max_channels: int = 256
    max_patterns: int = 16
    max_newest: int = 65_536
