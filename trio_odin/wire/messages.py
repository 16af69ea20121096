"""What the server sends, as types: the one place that names its messages and their keys.

Answers to commands and notices are made of these types. Events and batches are put together from
bytes (`fanout/publication.py`, `fanout/updates.py`, `fanout/batch.py`); a test compares those with
the types here. `contract.py` makes the AsyncAPI document of both.

The order of the fields is that of the keys on the wire; `type` comes first, unless it is a field.
A key with the default UNSET is absent if there is nothing to say. Clients have to ignore keys that
they do not know: later versions may add some.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from trio_odin.ledger.reasons import GapReason
from trio_odin.wire.commands import ErrorCode

NatsState: TypeAlias = Literal["connected", "disconnected"]


class PriceUpdate(msgspec.Struct):
    """An event of one channel.

    Attributes:
        seq: number on this connection: it starts at 1 and grows by 1 with each message addressed to
            it. A gap means that events were lost or, with the policy `conflate`, skipped.
        ts: when NATS stored the event, in Unix milliseconds.
        data: what was published, byte for byte: any JSON, null too.
        channel: the channel, one of yours, that the event belongs to.
        offset: the number of the event in the NATS stream, the same on every server; absent without
            JetStream.
        prev: the offset of the event before it in its channel; absent if it is not known.
        trace: the span of its fan-out, as a W3C `traceparent`; absent unless it is traced.
        snapshot: true if it is the newest event from before you subscribed.
        skipped: how many older events of the channel gave way to this one; absent if none.
        skipped_total: running total, on this connection, of the events that gave way because you
            read too slowly; sent only if it has changed.
    """

    seq: int
    ts: int
    type: Literal["price:update"]
    priority: Literal[1]
    data: Any
    channel: str
    offset: int | UnsetType = UNSET
    prev: int | UnsetType = UNSET
    trace: str | UnsetType = UNSET
    snapshot: Literal[True] | UnsetType = UNSET
    skipped: int | UnsetType = UNSET
    skipped_total: int | UnsetType = UNSET


class BatchEvent(msgspec.Struct, kw_only=True):
    """An event in a batch, the newest of its channel.

    Attributes:
        channel: the channel, one of yours, that the event belongs to.
        offset: the number of the event in the NATS stream; absent without JetStream, or if that
            stream has gone.
        prev: the offset of the event before it in its channel; absent if it is not known.
        skipped: how many older events of the channel gave way to this one since you were last sent
            one; absent if none, null if they were too many to be counted.
        trace: the span of its fan-out, as a W3C `traceparent`; absent unless it is traced.
        ts: when NATS stored the event, in Unix milliseconds.
        data: what was published, byte for byte: any JSON, null too.
    """

    channel: str
    offset: int | UnsetType = UNSET
    prev: int | UnsetType = UNSET
    skipped: int | UnsetType | None = UNSET
    trace: str | UnsetType = UNSET
    ts: int
    data: Any


class PriceBatch(msgspec.Struct):
    """The message of a tick: the newest event of each channel that had any since the last one.

    Attributes:
        seq: number on this connection; a batch has one.
        ts: that of its newest event, in Unix milliseconds.
        events: the events, the oldest first.
    """

    seq: int
    ts: int
    type: Literal["price:batch"]
    events: list[BatchEvent]


class Reply(msgspec.Struct, tag_field="type", kw_only=True):
    """The answer to a command.

    Attributes:
        id: the `id` of the command, if it had one.
    """

    id: str | int | UnsetType = UNSET


class Refusal(msgspec.Struct):
    """A channel or pattern to which you were not subscribed.

    Attributes:
        channel: its name, as you wrote it.
        code: why.
    """

    channel: str
    code: ErrorCode


class SubscriptionAck(Reply, tag="subscription_ack"):
    """The acknowledgement of `subscribe`.

    Attributes:
        subscribed: the channels and patterns of the command, without those that were refused.
        count: how many channels and patterns you are subscribed to now.
        epoch: the stream that offsets count in; null without JetStream. It is sent once you have
            asked for notices, and in answer to `after`.
        offset: your position; null if it is not known. It is sent once you have asked for notices,
            but not in answer to `after`.
        every_ms: the rate that was granted, in milliseconds: 0 for every event, null for a pause.
            Absent if you named none.
        refused: at most 256 of the names that were refused, if the command had an `id`.
        refused_total: how many were refused, if they were more than `refused` has.
    """

    subscribed: list[str]
    count: int
    epoch: str | UnsetType | None = UNSET
    offset: int | UnsetType | None = UNSET
    every_ms: int | UnsetType | None = UNSET
    refused: list[Refusal] | UnsetType = UNSET
    refused_total: int | UnsetType = UNSET


class UnsubscriptionAck(Reply, tag="unsubscription_ack"):
    """The acknowledgement of `unsubscribe`.

    Attributes:
        unsubscribed: the channels and patterns of the command.
        count: how many channels and patterns you are subscribed to now.
    """

    unsubscribed: list[str]
    count: int


class SnapshotDone(Reply, tag="snapshot_done"):
    """The end of the first values.

    Attributes:
        sent: how many were sent.
        total: how many there were.
        message: why they were not all sent, for a person.
    """

    sent: int
    total: int
    message: str | UnsetType = UNSET


class ResumeIncomplete(Reply, tag="resume_incomplete"):
    """Some channels of a resume may lack events. `resumed` follows.

    Attributes:
        after: the offset that you named.
        sent: how many events were sent.
        message: why, for a person.
        channels: the channels and patterns that may lack events. The others are complete.
    """

    after: int
    sent: int
    message: str
    channels: list[str]


class Resumed(Reply, tag="resumed"):
    """The end of a resume.

    Attributes:
        sent: how many events were sent.
        offset: your new position; null if it is not known.
    """

    sent: int
    offset: int | None


class ReplayIncomplete(Reply, tag="replay_incomplete"):
    """Some events of a replay were not sent.

    Attributes:
        sent: how many were sent.
        total: how many you asked for.
        message: why, for a person.
    """

    sent: int
    total: int
    message: str


class ReplayDone(Reply, tag="replay_done"):
    """The end of a replay whose command had an `id`.

    Attributes:
        sent: how many events were sent.
        total: how many you asked for.
    """

    sent: int
    total: int


class ChannelEntry(msgspec.Struct):
    """A channel that had an event.

    Attributes:
        channel: its name.
        offset: the number of its newest event; null without JetStream.
    """

    channel: str
    offset: int | None


class ChannelList(Reply, tag="channels"):
    """The channels that had an event and that your token allows.

    Attributes:
        channels: at most 256, sorted by name.
        next: there may be more: ask again with this name as `after`. Absent at the end.
    """

    channels: list[ChannelEntry]
    next: str | UnsetType = UNSET


class Pong(Reply, tag="pong"):
    """The answer to `heartbeat`. All but `ts` is there only if you asked for `nats`.

    Attributes:
        ts: the time of the server, in Unix milliseconds.
        nats: whether the server has a connection to NATS.
        age_ms: milliseconds since anything came from NATS, which is pinged every second; null if
            nothing has come.
        event_age_ms: milliseconds since an event of any channel came; null if none has come.
        offset: a position: every event of your channels up to it was sent before this, except for
            channels that are paused; null if it is not known, or if your newest event was dropped.
    """

    ts: int
    nats: NatsState | UnsetType = UNSET
    age_ms: int | UnsetType | None = UNSET
    event_age_ms: int | UnsetType | None = UNSET
    offset: int | UnsetType | None = UNSET


class TokenAck(Reply, tag="token_ack"):
    """The new token is in force.

    Attributes:
        expires_at: when it expires, in Unix seconds; null on a server without tokens.
        unsubscribed: your channels and patterns that it does not allow; they have ended.
        count: how many channels and patterns you are subscribed to now.
    """

    expires_at: int | None
    unsubscribed: list[str]
    count: int


class ErrorReply(Reply, tag="error"):
    """A command was refused, or a part of it. The connection stays open.

    Attributes:
        code: why, for a program.
        message: why, for a person.
    """

    code: ErrorCode
    message: str


class GapNotice(msgspec.Struct, tag_field="type", tag="gap"):
    """Events were lost before they reached the server, perhaps none of yours.

    It is sent if you have asked for notices, before the first event after the loss.

    Attributes:
        reason: why.
        missed: how many events of all channels; null if it is not known.
        from_: the offset of the first of them; null if it is not known.
        to: the offset of the last of them; null if it is not known.
        epoch: the stream that offsets count in now; null without JetStream.
        ts: when this was sent, in Unix milliseconds.
    """

    reason: GapReason
    missed: int | None
    from_: int | None = msgspec.field(name="from")
    to: int | None
    epoch: str | None
    ts: int


class Upstream(msgspec.Struct, tag_field="type", tag="upstream"):
    """The server has lost NATS, or has it again. It is sent if you have asked for notices.

    Attributes:
        nats: whether the server has a connection to NATS.
    """

    nats: NatsState


class Draining(msgspec.Struct, tag_field="type", tag="server:draining"):
    """The server shuts down. It closes this connection with 1001 up to 2 s after its time.

    Attributes:
        reconnect_in_ms: when to connect again, to this address or another: not earlier.
    """

    reconnect_in_ms: int


class DictionaryNotice(msgspec.Struct, tag_field="type", tag="dictionary"):
    """The first message with the subprotocol `trio-odin.z1`: which dictionary is used.

    Attributes:
        id: the beginning of the SHA-256 of the dictionary.
        bytes: its length.
        url: its path on the same server.
    """

    id: str
    bytes: int
    url: str


MESSAGES: Final[tuple[type[msgspec.Struct], ...]] = (
    PriceUpdate,
    PriceBatch,
    SubscriptionAck,
    UnsubscriptionAck,
    SnapshotDone,
    ResumeIncomplete,
    Resumed,
    ReplayIncomplete,
    ReplayDone,
    ChannelList,
    Pong,
    TokenAck,
    ErrorReply,
    GapNotice,
    Upstream,
    Draining,
    DictionaryNotice,
)


def nats_state(*, is_connected: bool) -> NatsState:
    """How messages say whether the server is connected to NATS."""
    return "connected" if is_connected else "disconnected"
