"""Parses what a client sends into a command. Any text gives a value; nothing raises."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from enum import Enum
from itertools import islice
from typing import Annotated, Any, Final, TypeAlias

import attrs
import msgspec

CommandId: TypeAlias = str | int | None


class ErrorCode(Enum):
    """The `code` of an error reply."""

    INVALID_JSON = "INVALID_JSON"
    INVALID_COMMAND = "INVALID_COMMAND"
    INVALID_CHANNEL = "INVALID_CHANNEL"
    FORBIDDEN_CHANNEL = "FORBIDDEN_CHANNEL"
    TOO_MANY_CHANNELS = "TOO_MANY_CHANNELS"
    TOO_MANY_PATTERNS = "TOO_MANY_PATTERNS"
    INVALID_TOKEN = "INVALID_TOKEN"  # noqa: S105 - not a secret
    RATE_LIMIT_EXCEEDED = "RATE_LIMIT_EXCEEDED"


@attrs.frozen
class Subscribe:
    """Add `channels`, as the client wrote them.

    Attributes:
        notices: whether to send gap notices; None leaves that as it is.
        after: an offset, to have the events after it as well; None: new events only.
        epoch: the epoch of that offset, if the client knows it.
        snapshot: whether to send the newest event of each channel that is added.
        every_ms: how often to send the newest event of each channel at most; 0: every event; None:
            never.
        states_rate: whether the client named a rate.
    """

    channels: list[str]
    id: CommandId = None
    notices: bool | None = None
    after: int | None = None
    epoch: str | None = None
    snapshot: bool = False
    every_ms: int | None = 0
    states_rate: bool = False


@attrs.frozen
class Unsubscribe:
    """Remove `channels`, as the client wrote them."""

    channels: list[str]
    id: CommandId = None


@attrs.frozen
class Replay:
    """Send the kept messages `first` to `last` again, both inclusive; no `last`: to the newest."""

    first: int
    last: int | None = None
    id: CommandId = None


@attrs.frozen
class Heartbeat:
    """Answer with the time and, if it is `about_nats`, with the state of NATS."""

    id: CommandId = None
    about_nats: bool = False


@attrs.frozen
class Channels:
    """Name the channels that begin with `prefix` and come after the name `after`."""

    prefix: str = ""
    after: str = ""
    id: CommandId = None


@attrs.frozen
class Token:
    """Use `token` from now on."""

    token: str
    id: CommandId = None


@attrs.frozen
class Unknown:
    """A JSON object of an unknown `type` and without an `id`: counted, not answered."""


@attrs.frozen
class Malformed:
    """Text that is not a valid command; answered with an error."""

    code: ErrorCode
    message: str
    id: CommandId = None


Command: TypeAlias = (
    Subscribe | Unsubscribe | Replay | Heartbeat | Channels | Token | Unknown | Malformed
)


# The forms on the wire; `contract.py` makes the AsyncAPI document of those without an underscore.
# msgspec ignores unknown keys, as the existing clients expect. A key whose default is None may be
# null, which is the same as without it.
class _Typed(msgspec.Struct):
    type: str


class _Identified(msgspec.Struct):
    id: CommandId = None


_Id: TypeAlias = Annotated[
    CommandId, msgspec.Meta(description="It comes back in each answer to the command.")
]
_Rate: TypeAlias = Annotated[int, msgspec.Meta(ge=0)] | msgspec.UnsetType | None
_Misspelt: TypeAlias = Annotated[
    msgspec.Raw | msgspec.UnsetType, msgspec.Meta(extra_json_schema={"not": {}})
]


class SubscribeKeys(msgspec.Struct):
    """The keys of `subscribe`, in `data` or at the top level; `data` wins.

    Attributes:
        channels: channels such as `BTC.trade`, and patterns such as `*.trade`, `BTC.*` and `>`.
        snapshot: whether to send the newest event of each channel that the command adds first.
        every_ms: at most one message in so many milliseconds, with the newest event of each
            channel; 0, or absent: every event; null: a pause.
        after: your position: send what you missed since this offset first.
        epoch: the epoch that `after` counts in, if you know it.
        notices: whether to send gaps and the state of NATS; absent: as before.
        everyMs: refused: it is `every_ms`.
    """

    channels: list[str] | None = None
    snapshot: bool | None = None
    every_ms: _Rate = msgspec.UNSET
    after: int | None = None
    epoch: str | None = None
    notices: bool | None = None
    everyMs: _Misspelt = msgspec.UNSET  # noqa: N815 - see `_refuse_misspelt_rate`


class SubscribeCommand(SubscribeKeys):
    """Subscribe to channels and patterns, or change their rate.

    Attributes:
        data: the same keys, as an alternative to the top level.
    """

    data: SubscribeKeys | None = None
    id: _Id = None


class UnsubscribeKeys(msgspec.Struct):
    """The keys of `unsubscribe`, in `data` or at the top level; `data` wins.

    Attributes:
        channels: channels and patterns, by the names that you subscribed to.
    """

    channels: list[str] | None = None


class UnsubscribeCommand(UnsubscribeKeys):
    """Unsubscribe from channels and patterns.

    Attributes:
        data: the same keys, as an alternative to the top level.
    """

    data: UnsubscribeKeys | None = None
    id: _Id = None


class HeartbeatKeys(msgspec.Struct):
    """The keys of `heartbeat`, in `data` or at the top level; `data` wins.

    Attributes:
        nats: whether to report on NATS, and your position.
    """

    nats: bool = False


class HeartbeatCommand(HeartbeatKeys):
    """Ask whether the server is there; the answer is `pong`.

    Attributes:
        data: the same keys, as an alternative to the top level.
    """

    data: HeartbeatKeys | None = None
    id: _Id = None


class ReplayKeys(msgspec.Struct):
    """Which messages to send again, by `seq`: `from` and `to`, or `since`.

    Attributes:
        from_: the first one.
        to: the last one.
        since: the one before the first; up to the newest.
    """

    from_: int | None = msgspec.field(name="from", default=None)
    to: int | None = None
    since: int | None = None


class ReplayCommand(msgspec.Struct):
    """Send some of the last messages of this connection again.

    Attributes:
        data: which messages.
    """

    data: ReplayKeys = msgspec.field(default_factory=ReplayKeys)
    id: _Id = None


class ChannelsKeys(msgspec.Struct):
    """The keys of `channels`, in `data` or at the top level; `data` wins.

    Attributes:
        prefix: the channels whose names begin with it.
        after: the channels after this name, which is `next` of the answer before.
    """

    prefix: str = ""
    after: str = ""


class ChannelsCommand(ChannelsKeys):
    """Ask which channels there are.

    Attributes:
        data: the same keys, as an alternative to the top level.
    """

    data: ChannelsKeys | None = None
    id: _Id = None


class TokenKeys(msgspec.Struct):
    """The key of `token`, in `data` or at the top level; `data` wins.

    Attributes:
        token: a JSON Web Token of the same user.
    """

    token: str | None = None


class TokenCommand(TokenKeys):
    """Use a new token, before the old one expires.

    Attributes:
        data: the same key, as an alternative to the top level.
    """

    data: TokenKeys | None = None
    id: _Id = None


# By the `type` of the command, which is read first: of two in an object the last one counts.
COMMANDS: Final[Mapping[str, type[msgspec.Struct]]] = {
    "subscribe": SubscribeCommand,
    "unsubscribe": UnsubscribeCommand,
    "heartbeat": HeartbeatCommand,
    "replay": ReplayCommand,
    "channels": ChannelsCommand,
    "token": TokenCommand,
}


_typed = msgspec.json.Decoder(_Typed)
_identified = msgspec.json.Decoder(_Identified)
_subscribe = msgspec.json.Decoder(SubscribeCommand)
_unsubscribe = msgspec.json.Decoder(UnsubscribeCommand)
_heartbeat = msgspec.json.Decoder(HeartbeatCommand)
_replay = msgspec.json.Decoder(ReplayCommand)
_channels = msgspec.json.Decoder(ChannelsCommand)
_token = msgspec.json.Decoder(TokenCommand)


_RANGE_KEYS = frozenset({"from", "to", "since"})
_OTHER_KEYS = frozenset(
    {"type", "id", "data", "notices", "after", "epoch", "nats", "snapshot", "every_ms"}
)
_BAD_RATE = (
    "`every_ms` has to be a whole number of milliseconds, 0 for every event, or null to pause"
)
_NOT_AN_OBJECT = Malformed(ErrorCode.INVALID_JSON, "Not a JSON object")
_SEVERAL_OBJECTS = Malformed(
    ErrorCode.INVALID_JSON, "More than one JSON object: send each by itself"
)
_JSON_IS_MALFORMED = "JSON is malformed: "  # how an error of msgspec begins
# Over the rate limit only the id of a command is read, and of a longer text not even that: 5 us.
_QUICKLY_READ_CHARS = 4096
_NAMED_CHARS_MAX = 40
# A comparison takes 20 us, and a message has room for thousands of keys.
_COMPARED_KEYS_MAX = 8


def parse_command(text: str) -> Command:
    """Parse one text message from a client."""
    try:
        kind = _typed.decode(text).type
    except msgspec.ValidationError as error:
        if not text.lstrip().startswith("{"):
            return _NOT_AN_OBJECT
        return Malformed(ErrorCode.INVALID_COMMAND, str(error), _id_of(text))
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        return _no_json(text, str(error))
    parse = _PARSERS.get(kind)
    if parse is None:
        return _unknown(kind, _id_of(text))
    try:
        return parse(text)
    except (msgspec.DecodeError, RecursionError) as error:
        message = _mistake(kind, text) or str(error)
        return Malformed(ErrorCode.INVALID_COMMAND, message, _id_of(text))


def id_in(text: str) -> CommandId:
    """Read the id of a command and nothing else; None if the text is too long even for that."""
    return _id_of(text) if len(text) <= _QUICKLY_READ_CHARS else None


def _id_of(text: str) -> CommandId:
    """The id for an error reply; None if the id itself cannot be read."""
    try:
        return _identified.decode(text).id
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None


def _no_json(text: str, reason: str) -> Malformed:
    """Explain why a text is not JSON, in detail if it begins like an object."""
    if not text.lstrip().startswith("{") or not reason.startswith(_JSON_IS_MALFORMED):
        return _NOT_AN_OBJECT
    reason = reason.removeprefix(_JSON_IS_MALFORMED)
    if reason.startswith("trailing characters") and "}{" in "".join(text.split()):
        return _SEVERAL_OBJECTS
    return Malformed(ErrorCode.INVALID_JSON, f"{_NOT_AN_OBJECT.message}: {reason}")


def _unknown(kind: str, command_id: CommandId) -> Unknown | Malformed:
    """Ignore an unknown type without an id; with one the client waits for an answer."""
    if command_id is None:
        return Unknown()
    message = f"Unknown type {_shown(kind)}"
    if nearest := _nearest(kind, _KINDS):
        message += f": did you mean {nearest!r}?"
    else:
        message += f": expected {', '.join(_KINDS[:-1])} or {_KINDS[-1]}"
    return Malformed(ErrorCode.INVALID_COMMAND, message, command_id)


def _mistake(kind: str, text: str) -> str | None:
    """Explain a mistake in the form that the client wrote; None if msgspec's text has to do."""
    try:
        content = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    command_id = content.get("id")
    if isinstance(command_id, bool) or not isinstance(command_id, str | int | None):
        return "`id` has to be a string or a whole number"
    data = content.get("data")
    if not isinstance(data, dict | None):
        return None
    given, where = (content, "") if data is None else (data, "data.")
    if kind == "subscribe" and not _is_rate(given.get("every_ms")):
        return _BAD_RATE
    if kind in {"channels", "token"}:
        return None
    if kind != "replay":
        return _mistaken_channels(kind, given, where)
    if data is None and given.keys() & _RANGE_KEYS:
        return 'replay needs its numbers in `data`: {"from":N,"to":M} or {"since":N}'
    return _misspelt(given, where, _RANGE_KEYS)


def _is_rate(value: Any) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return value is None or (is_whole and value >= 0)


def _mistaken_channels(kind: str, given: dict[str, Any], where: str) -> str | None:
    if given.get("channels") is not None:
        return None
    if misspelt := _misspelt(given, where, {"channels"}):
        return f"{misspelt.removesuffix('?')}, a list of names?"
    return f"{kind} needs `{where}channels`, a list of names"


def _misspelt(given: dict[str, Any], where: str, keys: Collection[str]) -> str | None:
    """A sentence about an unknown key that is close to one of `keys`; None if there is none."""
    unknown = (key for key in given if key not in _OTHER_KEYS)
    for key in islice(unknown, _COMPARED_KEYS_MAX):
        nearest = _nearest(key, keys)
        if nearest is not None and nearest not in given:
            return f"Unknown key `{where}{key}`: did you mean `{where}{nearest}`?"
    return None


def _nearest(word: str, known: Collection[str]) -> str | None:
    """The one of `known` that is most like `word`; None if none is close."""
    if len(word) > _NAMED_CHARS_MAX:
        return None
    return next(iter(get_close_matches(word.lower(), known, n=1, cutoff=0.7)), None)


def _shown(word: str) -> str:
    """A word from a client, shortened and escaped, as an error reply may repeat it."""
    return ascii(word[:_NAMED_CHARS_MAX])


def _subscribe_of(text: str) -> Subscribe:
    command = _subscribe.decode(text)
    _refuse_misspelt_rate(command)
    every_ms = command.every_ms
    if command.data is not None and command.data.every_ms is not msgspec.UNSET:
        every_ms = command.data.every_ms
    states_rate = every_ms is not msgspec.UNSET
    return Subscribe(
        _channels_in(command),
        command.id,
        _wish(command, "notices"),
        _wish(command, "after"),
        _wish(command, "epoch"),
        bool(_wish(command, "snapshot")),
        0 if every_ms is msgspec.UNSET else every_ms,
        states_rate,
    )


def _refuse_misspelt_rate(command: SubscribeCommand) -> None:
    """Refuse what programs in JavaScript would write; ignored, it costs the traffic of all events.

    Raises:
        msgspec.ValidationError: the command has such a key.
    """
    given = [command.everyMs, msgspec.UNSET if command.data is None else command.data.everyMs]
    if given != [msgspec.UNSET, msgspec.UNSET]:
        raise msgspec.ValidationError("Unknown key `everyMs`: did you mean `every_ms`?")


def _unsubscribe_of(text: str) -> Unsubscribe:
    command = _unsubscribe.decode(text)
    return Unsubscribe(_channels_in(command), command.id)


def _channels_in(command: SubscribeCommand | UnsubscribeCommand) -> list[str]:
    channels: list[str] | None = _wish(command, "channels")
    if channels is None:
        raise msgspec.ValidationError("Object missing required field `channels` - at `$.data`")
    return channels


def _wish(command: SubscribeCommand | UnsubscribeCommand | TokenCommand, key: str) -> Any:
    """The value of `key`, in `data` or at the top level."""
    inner = None if command.data is None else getattr(command.data, key)
    return getattr(command, key) if inner is None else inner


def _list_of(text: str) -> Channels:
    command = _channels.decode(text)
    page = command.data or ChannelsKeys(command.prefix, command.after)
    return Channels(page.prefix, page.after, command.id)


def _token_of(text: str) -> Token:
    command = _token.decode(text)
    token = _wish(command, "token")
    if token is None:
        raise msgspec.ValidationError("token needs `token`, a text")
    return Token(token, command.id)


def _heartbeat_of(text: str) -> Heartbeat:
    """Read a heartbeat, whatever else is in it: clients send all sorts of data with theirs."""
    try:
        command = _heartbeat.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return Heartbeat(_id_of(text))
    asked = command.nats if command.data is None else command.data.nats
    return Heartbeat(command.id, asked)


def _replay_of(text: str) -> Replay:
    command = _replay.decode(text)
    match command.data:
        case ReplayKeys(from_=int(first), to=int(last), since=None):
            return Replay(first, last, command.id)
        case ReplayKeys(from_=None, to=None, since=int(since)):
            return Replay(since + 1, None, command.id)
        case _:
            raise msgspec.ValidationError('Expected {"from":N,"to":M} or {"since":N} - at `$.data`')


_PARSERS: Final[Mapping[str, Callable[[str], Command]]] = {
    "subscribe": _subscribe_of,
    "unsubscribe": _unsubscribe_of,
    "replay": _replay_of,
    "heartbeat": _heartbeat_of,
    "channels": _list_of,
    "token": _token_of,
}
_KINDS: Final = tuple(_PARSERS)
