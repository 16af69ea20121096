"""What a client says: text into a command. Any text gives a value, nothing raises."""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

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
    RATE_LIMIT_EXCEEDED = "RATE_LIMIT_EXCEEDED"


@attrs.frozen
class Subscribe:
    """Add `channels`, as the client wrote them.

    `notices`: to tell of gaps, or to stop it; None: as it is. `after`: with what came behind that
    offset, of that `epoch` if the client knows it.
    """

    channels: list[str]
    id: CommandId = None
    notices: bool | None = None
    after: int | None = None
    epoch: str | None = None

    @property
    def uses_offsets(self) -> bool:
        """Whether the client goes on from an offset: then it has to know of gaps."""
        return self.after is not None


@attrs.frozen
class Unsubscribe:
    """Remove `channels`, as the client wrote them."""

    channels: list[str]
    id: CommandId = None


@attrs.frozen
class Replay:
    """Send the kept envelopes `first` to `last` again, both inclusive; no `last`: to the end."""

    first: int
    last: int | None = None
    id: CommandId = None


@attrs.frozen
class Heartbeat:
    """Answer with the time, and with what is known of NATS if it is `about_nats`."""

    id: CommandId = None
    about_nats: bool = False


@attrs.frozen
class Unknown:
    """A JSON object with a `type` that means nothing here: counted, not answered."""


@attrs.frozen
class Malformed:
    """Not a JSON object of a known form; answered with an error."""

    code: ErrorCode
    message: str
    id: CommandId = None


Command: TypeAlias = Subscribe | Unsubscribe | Replay | Heartbeat | Unknown | Malformed


# The shapes on the wire. msgspec ignores keys it does not know, as the existing clients expect.
class _Typed(msgspec.Struct):
    type: str


class _Identified(msgspec.Struct):
    id: str | int | None = None


class _Channels(msgspec.Struct):
    channels: list[str]
    notices: bool | None = None
    after: int | None = None
    epoch: str | None = None


class _ChannelsCommand(_Identified):
    """Both forms: `{"data":{"channels":[…]}}` and the flat `{"channels":[…]}`."""

    data: _Channels | None = None
    channels: list[str] | None = None
    notices: bool | None = None
    after: int | None = None
    epoch: str | None = None


class _Questions(msgspec.Struct):
    nats: bool = False


class _HeartbeatCommand(_Identified):
    data: _Questions | None = None
    nats: bool = False


class _Range(msgspec.Struct):
    from_: int | None = msgspec.field(name="from", default=None)
    to: int | None = None
    since: int | None = None


class _ReplayCommand(_Identified):
    data: _Range = msgspec.field(default_factory=_Range)


_typed = msgspec.json.Decoder(_Typed)
_identified = msgspec.json.Decoder(_Identified)
_channels_command = msgspec.json.Decoder(_ChannelsCommand)
_heartbeat_command = msgspec.json.Decoder(_HeartbeatCommand)
_replay_command = msgspec.json.Decoder(_ReplayCommand)


_NOT_AN_OBJECT = Malformed(ErrorCode.INVALID_JSON, "Not a JSON object")


def parse_command(text: str) -> Command:
    """Read one text message from a client."""
    try:
        kind = _typed.decode(text).type
    except msgspec.ValidationError as error:
        if not text.lstrip().startswith("{"):
            return _NOT_AN_OBJECT
        return Malformed(ErrorCode.INVALID_COMMAND, str(error), _id_of(text))
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return _NOT_AN_OBJECT
    try:
        match kind:
            case "subscribe":
                wanted, command_id = _channels_of(text)
                return Subscribe(
                    wanted.channels, command_id, wanted.notices, wanted.after, wanted.epoch
                )
            case "unsubscribe":
                wanted, command_id = _channels_of(text)
                return Unsubscribe(wanted.channels, command_id)
            case "replay":
                return _replay_of(text)
            case "heartbeat":
                return _heartbeat_of(text)
            case _:
                return Unknown()
    except (msgspec.DecodeError, RecursionError) as error:
        return Malformed(ErrorCode.INVALID_COMMAND, str(error), _id_of(text))


def _id_of(text: str) -> CommandId:
    """The id for an answer where the rest is of no use; none if the id itself is malformed."""
    try:
        return _identified.decode(text).id
    except (msgspec.DecodeError, RecursionError):
        return None


def _channels_of(text: str) -> tuple[_Channels, CommandId]:
    command = _channels_command.decode(text)
    if command.data is not None:
        return command.data, command.id
    if command.channels is None:
        raise msgspec.ValidationError("Object missing required field `channels` - at `$.data`")
    flat = _Channels(command.channels, command.notices, command.after, command.epoch)
    return flat, command.id


def _heartbeat_of(text: str) -> Heartbeat:
    """Whatever else is in it, a heartbeat is one: clients send all sorts of data with theirs."""
    try:
        command = _heartbeat_command.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return Heartbeat(_id_of(text))
    asked = command.nats if command.data is None else command.data.nats
    return Heartbeat(command.id, asked)


def _replay_of(text: str) -> Replay:
    command = _replay_command.decode(text)
    match command.data:
        case _Range(from_=int(first), to=int(last), since=None):
            return Replay(first, last, command.id)
        case _Range(from_=None, to=None, since=int(since)):
            return Replay(since + 1, None, command.id)
        case _:
            raise msgspec.ValidationError('Expected {"from":N,"to":M} or {"since":N} - at `$.data`')
