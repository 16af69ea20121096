"""The messages of docs/protocol.md, as they are after `json.loads`.

Do not edit it: it was made by `trio-odin asyncapi --types python`.
"""

from __future__ import annotations

from typing import Any, Literal, Never, NotRequired, TypeAlias, TypedDict

# The `code` of an error reply.
ErrorCode: TypeAlias = Literal[
    "FORBIDDEN_CHANNEL",
    "INVALID_CHANNEL",
    "INVALID_COMMAND",
    "INVALID_JSON",
    "INVALID_TOKEN",
    "RATE_LIMIT_EXCEEDED",
    "TOO_MANY_CHANNELS",
    "TOO_MANY_PATTERNS",
]

# Why events were lost before the fan-out.
GapReason: TypeAlias = Literal[
    "core",
    "shed",
    "start",
    "stream",
    "unreadable",
    "window",
]


class SubscribeCommand(TypedDict):
    """Subscribe to channels and patterns, or change their rate.

    Attributes:
        channels: Channels such as `BTC.trade`, and patterns such as `*.trade`, `BTC.*` and `>`.
        snapshot: Whether to send the newest event of each channel that the command adds first.
        every_ms: At most one message in so many milliseconds, with the newest event of each
            channel; 0, or absent: every event; null: a pause.
        after: Your position: send what you missed since this offset first.
        epoch: The epoch that `after` counts in, if you know it.
        notices: Whether to send gaps and the state of NATS; absent: as before.
        everyMs: Refused: it is `every_ms`.
        data: The same keys, as an alternative to the top level.
        id: It comes back in each answer to the command.
    """

    type: Literal["subscribe"]
    channels: NotRequired[list[str]]
    snapshot: NotRequired[bool]
    every_ms: NotRequired[int | None]
    after: NotRequired[int]
    epoch: NotRequired[str]
    notices: NotRequired[bool]
    everyMs: NotRequired[Never]
    data: NotRequired[SubscribeKeys]
    id: NotRequired[str | int]


class SubscribeKeys(TypedDict):
    """The keys of `subscribe`, in `data` or at the top level; `data` wins.

    Attributes:
        channels: Channels such as `BTC.trade`, and patterns such as `*.trade`, `BTC.*` and `>`.
        snapshot: Whether to send the newest event of each channel that the command adds first.
        every_ms: At most one message in so many milliseconds, with the newest event of each
            channel; 0, or absent: every event; null: a pause.
        after: Your position: send what you missed since this offset first.
        epoch: The epoch that `after` counts in, if you know it.
        notices: Whether to send gaps and the state of NATS; absent: as before.
        everyMs: Refused: it is `every_ms`.
    """

    channels: NotRequired[list[str]]
    snapshot: NotRequired[bool]
    every_ms: NotRequired[int | None]
    after: NotRequired[int]
    epoch: NotRequired[str]
    notices: NotRequired[bool]
    everyMs: NotRequired[Never]


class UnsubscribeCommand(TypedDict):
    """Unsubscribe from channels and patterns.

    Attributes:
        channels: Channels and patterns, by the names that you subscribed to.
        data: The same keys, as an alternative to the top level.
        id: It comes back in each answer to the command.
    """

    type: Literal["unsubscribe"]
    channels: NotRequired[list[str]]
    data: NotRequired[UnsubscribeKeys]
    id: NotRequired[str | int]


class UnsubscribeKeys(TypedDict):
    """The keys of `unsubscribe`, in `data` or at the top level; `data` wins.

    Attributes:
        channels: Channels and patterns, by the names that you subscribed to.
    """

    channels: NotRequired[list[str]]


class HeartbeatCommand(TypedDict):
    """Ask whether the server is there; the answer is `pong`.

    Attributes:
        nats: Whether to report on NATS, and your position.
        data: The same keys, as an alternative to the top level.
        id: It comes back in each answer to the command.
    """

    type: Literal["heartbeat"]
    nats: NotRequired[bool]
    data: NotRequired[HeartbeatKeys]
    id: NotRequired[str | int]


class HeartbeatKeys(TypedDict):
    """The keys of `heartbeat`, in `data` or at the top level; `data` wins.

    Attributes:
        nats: Whether to report on NATS, and your position.
    """

    nats: NotRequired[bool]


class ReplayCommand(TypedDict):
    """Send some of the last messages of this connection again.

    Attributes:
        data: Which messages.
        id: It comes back in each answer to the command.
    """

    type: Literal["replay"]
    data: ReplayKeys
    id: NotRequired[str | int]


# Which messages to send again, by `seq`: `from` and `to`, or `since`.
ReplayKeys = TypedDict(
    "ReplayKeys",
    {
        "from": NotRequired[int],
        "to": NotRequired[int],
        "since": NotRequired[int],
    },
)


class ChannelsCommand(TypedDict):
    """Ask which channels there are.

    Attributes:
        prefix: The channels whose names begin with it.
        after: The channels after this name, which is `next` of the answer before.
        data: The same keys, as an alternative to the top level.
        id: It comes back in each answer to the command.
    """

    type: Literal["channels"]
    prefix: NotRequired[str]
    after: NotRequired[str]
    data: NotRequired[ChannelsKeys]
    id: NotRequired[str | int]


class ChannelsKeys(TypedDict):
    """The keys of `channels`, in `data` or at the top level; `data` wins.

    Attributes:
        prefix: The channels whose names begin with it.
        after: The channels after this name, which is `next` of the answer before.
    """

    prefix: NotRequired[str]
    after: NotRequired[str]


class TokenCommand(TypedDict):
    """Use a new token, before the old one expires.

    Attributes:
        token: A JSON Web Token of the same user.
        data: The same key, as an alternative to the top level.
        id: It comes back in each answer to the command.
    """

    type: Literal["token"]
    token: NotRequired[str]
    data: NotRequired[TokenKeys]
    id: NotRequired[str | int]


class TokenKeys(TypedDict):
    """The key of `token`, in `data` or at the top level; `data` wins.

    Attributes:
        token: A JSON Web Token of the same user.
    """

    token: NotRequired[str]


class PriceUpdate(TypedDict):
    """An event of one channel.

    Attributes:
        seq: Number on this connection: it starts at 1 and grows by 1 with each message addressed to
            it. A gap means that events were lost or, with the policy `conflate`, skipped.
        ts: When NATS stored the event, in Unix milliseconds.
        data: What was published, byte for byte: any JSON, null too.
        channel: The channel, one of yours, that the event belongs to.
        offset: The number of the event in the NATS stream, the same on every server; absent without
            JetStream.
        prev: The offset of the event before it in its channel; absent if it is not known.
        trace: The span of its fan-out, as a W3C `traceparent`; absent unless it is traced.
        snapshot: True if it is the newest event from before you subscribed.
        skipped: How many older events of the channel gave way to this one; absent if none.
        skipped_total: Running total, on this connection, of the events that gave way because you
            read too slowly; sent only if it has changed.
    """

    seq: int
    ts: int
    type: Literal["price:update"]
    priority: Literal[1]
    data: Any
    channel: str
    offset: NotRequired[int]
    prev: NotRequired[int]
    trace: NotRequired[str]
    snapshot: NotRequired[Literal[True]]
    skipped: NotRequired[int]
    skipped_total: NotRequired[int]


class PriceBatch(TypedDict):
    """The message of a tick: the newest event of each channel that had any since the last one.

    Attributes:
        seq: Number on this connection; a batch has one.
        ts: That of its newest event, in Unix milliseconds.
        events: The events, the oldest first.
    """

    seq: int
    ts: int
    type: Literal["price:batch"]
    events: list[BatchEvent]


class BatchEvent(TypedDict):
    """An event in a batch, the newest of its channel.

    Attributes:
        channel: The channel, one of yours, that the event belongs to.
        offset: The number of the event in the NATS stream; absent without JetStream, or if that
            stream has gone.
        prev: The offset of the event before it in its channel; absent if it is not known.
        skipped: How many older events of the channel gave way to this one since you were last sent
            one; absent if none, null if they were too many to be counted.
        trace: The span of its fan-out, as a W3C `traceparent`; absent unless it is traced.
        ts: When NATS stored the event, in Unix milliseconds.
        data: What was published, byte for byte: any JSON, null too.
    """

    channel: str
    offset: NotRequired[int]
    prev: NotRequired[int]
    skipped: NotRequired[int | None]
    trace: NotRequired[str]
    ts: int
    data: Any


class SubscriptionAck(TypedDict):
    """The acknowledgement of `subscribe`.

    Attributes:
        subscribed: The channels and patterns of the command, without those that were refused.
        count: How many channels and patterns you are subscribed to now.
        epoch: The stream that offsets count in; null without JetStream. It is sent once you have
            asked for notices, and in answer to `after`.
        offset: Your position; null if it is not known. It is sent once you have asked for notices,
            but not in answer to `after`.
        every_ms: The rate that was granted, in milliseconds: 0 for every event, null for a pause.
            Absent if you named none.
        refused: At most 256 of the names that were refused, if the command had an `id`.
        refused_total: How many were refused, if they were more than `refused` has.
        id: The `id` of the command, if it had one.
    """

    type: Literal["subscription_ack"]
    subscribed: list[str]
    count: int
    epoch: NotRequired[str | None]
    offset: NotRequired[int | None]
    every_ms: NotRequired[int | None]
    refused: NotRequired[list[Refusal]]
    refused_total: NotRequired[int]
    id: NotRequired[str | int]


class Refusal(TypedDict):
    """A channel or pattern to which you were not subscribed.

    Attributes:
        channel: Its name, as you wrote it.
        code: Why.
    """

    channel: str
    code: ErrorCode


class UnsubscriptionAck(TypedDict):
    """The acknowledgement of `unsubscribe`.

    Attributes:
        unsubscribed: The channels and patterns of the command.
        count: How many channels and patterns you are subscribed to now.
        id: The `id` of the command, if it had one.
    """

    type: Literal["unsubscription_ack"]
    unsubscribed: list[str]
    count: int
    id: NotRequired[str | int]


class SnapshotDone(TypedDict):
    """The end of the first values.

    Attributes:
        sent: How many were sent.
        total: How many there were.
        message: Why they were not all sent, for a person.
        id: The `id` of the command, if it had one.
    """

    type: Literal["snapshot_done"]
    sent: int
    total: int
    message: NotRequired[str]
    id: NotRequired[str | int]


class ResumeIncomplete(TypedDict):
    """Some channels of a resume may lack events. `resumed` follows.

    Attributes:
        after: The offset that you named.
        sent: How many events were sent.
        message: Why, for a person.
        channels: The channels and patterns that may lack events. The others are complete.
        id: The `id` of the command, if it had one.
    """

    type: Literal["resume_incomplete"]
    after: int
    sent: int
    message: str
    channels: list[str]
    id: NotRequired[str | int]


class Resumed(TypedDict):
    """The end of a resume.

    Attributes:
        sent: How many events were sent.
        offset: Your new position; null if it is not known.
        id: The `id` of the command, if it had one.
    """

    type: Literal["resumed"]
    sent: int
    offset: int | None
    id: NotRequired[str | int]


class ReplayIncomplete(TypedDict):
    """Some events of a replay were not sent.

    Attributes:
        sent: How many were sent.
        total: How many you asked for.
        message: Why, for a person.
        id: The `id` of the command, if it had one.
    """

    type: Literal["replay_incomplete"]
    sent: int
    total: int
    message: str
    id: NotRequired[str | int]


class ReplayDone(TypedDict):
    """The end of a replay whose command had an `id`.

    Attributes:
        sent: How many events were sent.
        total: How many you asked for.
        id: The `id` of the command, if it had one.
    """

    type: Literal["replay_done"]
    sent: int
    total: int
    id: NotRequired[str | int]


class ChannelList(TypedDict):
    """The channels that had an event and that your token allows.

    Attributes:
        channels: At most 256, sorted by name.
        next: There may be more: ask again with this name as `after`. Absent at the end.
        id: The `id` of the command, if it had one.
    """

    type: Literal["channels"]
    channels: list[ChannelEntry]
    next: NotRequired[str]
    id: NotRequired[str | int]


class ChannelEntry(TypedDict):
    """A channel that had an event.

    Attributes:
        channel: Its name.
        offset: The number of its newest event; null without JetStream.
    """

    channel: str
    offset: int | None


class Pong(TypedDict):
    """The answer to `heartbeat`. All but `ts` is there only if you asked for `nats`.

    Attributes:
        ts: The time of the server, in Unix milliseconds.
        nats: Whether the server has a connection to NATS.
        age_ms: Milliseconds since anything came from NATS, which is pinged every second; null if
            nothing has come.
        event_age_ms: Milliseconds since an event of any channel came; null if none has come.
        offset: A position: every event of your channels up to it was sent before this, except for
            channels that are paused; null if it is not known, or if your newest event was dropped.
        id: The `id` of the command, if it had one.
    """

    type: Literal["pong"]
    ts: int
    nats: NotRequired[Literal["connected", "disconnected"]]
    age_ms: NotRequired[int | None]
    event_age_ms: NotRequired[int | None]
    offset: NotRequired[int | None]
    id: NotRequired[str | int]


class TokenAck(TypedDict):
    """The new token is in force.

    Attributes:
        expires_at: When it expires, in Unix seconds; null on a server without tokens.
        unsubscribed: Your channels and patterns that it does not allow; they have ended.
        count: How many channels and patterns you are subscribed to now.
        id: The `id` of the command, if it had one.
    """

    type: Literal["token_ack"]
    expires_at: int | None
    unsubscribed: list[str]
    count: int
    id: NotRequired[str | int]


class ErrorReply(TypedDict):
    """A command was refused, or a part of it. The connection stays open.

    Attributes:
        code: Why, for a program.
        message: Why, for a person.
        id: The `id` of the command, if it had one.
    """

    type: Literal["error"]
    code: ErrorCode
    message: str
    id: NotRequired[str | int]


# Events were lost before they reached the server, perhaps none of yours.  It is sent if you have
# asked for notices, before the first event after the loss.
GapNotice = TypedDict(
    "GapNotice",
    {
        "type": Literal["gap"],
        "reason": GapReason,
        "missed": int | None,
        "from": int | None,
        "to": int | None,
        "epoch": str | None,
        "ts": int,
    },
)


class Upstream(TypedDict):
    """The server has lost NATS, or has it again. It is sent if you have asked for notices.

    Attributes:
        nats: Whether the server has a connection to NATS.
    """

    type: Literal["upstream"]
    nats: Literal["connected", "disconnected"]


class Draining(TypedDict):
    """The server shuts down. It closes this connection with 1001 up to 2 s after its time.

    Attributes:
        reconnect_in_ms: When to connect again, to this address or another: not earlier.
    """

    type: Literal["server:draining"]
    reconnect_in_ms: int


class DictionaryNotice(TypedDict):
    """The first message with the subprotocol `trio-odin.z1`: which dictionary is used.

    Attributes:
        id: The beginning of the SHA-256 of the dictionary.
        bytes: Its length.
        url: Its path on the same server.
    """

    type: Literal["dictionary"]
    id: str
    bytes: int
    url: str


class Trade(TypedDict):
    """A trade, and what is known of the token after it.

    Attributes:
        tokenId: The symbol.
        price: The price of the trade, with up to 6 decimals.
        volume24h: What was traded in the last 24 hours.
        marketCap: The price times the supply.
        priceChange24h: Percent, with 2 decimals; negative if the price fell.
        timestamp: When it was made, in Unix milliseconds.
        source: `simulator`, if the market is simulated.
        nonce: 16 hexadecimal digits.
    """

    type: Literal["price:update"]
    tokenId: str
    price: float
    volume24h: int
    marketCap: int
    priceChange24h: float
    timestamp: int
    source: str
    nonce: str


class Liquidity(TypedDict):
    """Liquidity was added to the pool of a token, or removed.

    Attributes:
        tokenId: The symbol.
        action: Which of the two.
        amount: How much.
        totalLiquidity: What is in the pool after it.
        timestamp: When it was made, in Unix milliseconds.
        source: `simulator`, if the market is simulated.
        nonce: 16 hexadecimal digits.
    """

    type: Literal["liquidity:update"]
    tokenId: str
    action: Literal["add", "remove"]
    amount: int
    totalLiquidity: int
    timestamp: int
    source: str
    nonce: str


class Metadata(TypedDict):
    """The description of a token has changed.

    Attributes:
        tokenId: The symbol.
        name: Its name for people.
        description: A sentence.
        website: The address of its page.
        timestamp: When it was made, in Unix milliseconds.
        source: `simulator`, if the market is simulated.
        nonce: 16 hexadecimal digits.
    """

    type: Literal["metadata:update"]
    tokenId: str
    name: str
    description: str
    website: str
    timestamp: int
    source: str
    nonce: str


class Social(TypedDict):
    """What people say about a token.

    Attributes:
        tokenId: The symbol.
        followers: How many follow it.
        comments: How many comments there are.
        sentiment: From -1, bad, to 1, good, with 2 decimals.
        timestamp: When it was made, in Unix milliseconds.
        source: `simulator`, if the market is simulated.
        nonce: 16 hexadecimal digits.
    """

    type: Literal["social:update"]
    tokenId: str
    followers: int
    comments: int
    sentiment: float
    timestamp: int
    source: str
    nonce: str


class Favorites(TypedDict):
    """A user has added a token to the favorites, or removed it.

    Attributes:
        tokenId: The symbol.
        change: 1 or -1.
        favorites: How many have it among their favorites after that.
        timestamp: When it was made, in Unix milliseconds.
        source: `simulator`, if the market is simulated.
        nonce: 16 hexadecimal digits.
    """

    type: Literal["favorites:update"]
    tokenId: str
    change: Literal[-1, 1]
    favorites: int
    timestamp: int
    source: str
    nonce: str


class Creation(TypedDict):
    """Somebody has created a token, which is paid for with this one.

    Attributes:
        tokenId: The symbol.
        createdId: The symbol of the new one.
        creator: The account that created it.
        supply: How many of it there are.
        timestamp: When it was made, in Unix milliseconds.
        source: `simulator`, if the market is simulated.
        nonce: 16 hexadecimal digits.
    """

    type: Literal["creation:new"]
    tokenId: str
    createdId: str
    creator: str
    supply: int
    timestamp: int
    source: str
    nonce: str


class Candle(TypedDict):
    """The prices of a token in one minute: so far, or for good.

    Attributes:
        tokenId: The symbol.
        interval: How long it is: `1m`.
        openTime: When it began, in Unix milliseconds.
        closeTime: When it ends, in Unix milliseconds: the last one of it.
        open: The first price; without a trade, the last one before.
        high: The highest price.
        low: The lowest price.
        close: The last price.
        volume: What was traded.
        trades: How many trades there were.
        isFinal: Whether it has ended.
        timestamp: When it was made, in Unix milliseconds.
        source: `simulator`, if the market is simulated.
        nonce: 16 hexadecimal digits.
    """

    type: Literal["candle:update"]
    tokenId: str
    interval: Literal["1m"]
    openTime: int
    closeTime: int
    open: float
    high: float
    low: float
    close: float
    volume: int
    trades: int
    isFinal: bool
    timestamp: int
    source: str
    nonce: str


class Balance(TypedDict):
    """What an account has of a token has changed.

    Attributes:
        tokenId: The symbol.
        account: The account.
        change: By how much; negative if it has less.
        balance: What it has after that.
        timestamp: When it was made, in Unix milliseconds.
        source: `simulator`, if the market is simulated.
        nonce: 16 hexadecimal digits.
    """

    type: Literal["balances:update"]
    tokenId: str
    account: str
    change: float
    balance: float
    timestamp: int
    source: str
    nonce: str


class EventData(TypedDict):
    """What is in `data`, by the event type: the second part of the channel."""

    trade: NotRequired[Trade]
    liquidity: NotRequired[Liquidity]
    metadata: NotRequired[Metadata]
    social: NotRequired[Social]
    favorites: NotRequired[Favorites]
    creation: NotRequired[Creation]
    analytics: NotRequired[Candle]
    balances: NotRequired[Balance]


# Any command.
Command: TypeAlias = (
    SubscribeCommand
    | UnsubscribeCommand
    | HeartbeatCommand
    | ReplayCommand
    | ChannelsCommand
    | TokenCommand
)


# Any message of the server: `type` says which.
ServerMessage: TypeAlias = (
    PriceUpdate
    | PriceBatch
    | SubscriptionAck
    | UnsubscriptionAck
    | SnapshotDone
    | ResumeIncomplete
    | Resumed
    | ReplayIncomplete
    | ReplayDone
    | ChannelList
    | Pong
    | TokenAck
    | ErrorReply
    | GapNotice
    | Upstream
    | Draining
    | DictionaryNotice
)
