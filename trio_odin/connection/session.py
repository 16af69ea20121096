"""One client's session: text in, frames out, no waiting."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from itertools import islice
from typing import Generic, TypeAlias, TypeVar

import attrs
import msgspec

from trio_odin.auth.grants import Grant
from trio_odin.fanout.answers import Answer, Resend, upstream_notice
from trio_odin.fanout.batch import Batch
from trio_odin.fanout.missed import Missed, Most, Wanted, missed
from trio_odin.fanout.newest import NewestEvent, NewestEvents
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.registry import Registry
from trio_odin.fanout.replay_buffer import ReplayBudget, ReplayBuffer
from trio_odin.fanout.resume_buffer import ResumeBuffer
from trio_odin.ledger.counters import Traffic
from trio_odin.net.token_bucket import TokenBucket
from trio_odin.upstream.status import NatsStatus
from trio_odin.wire.channels import CHANNEL_RULE, ChannelSet, is_name, is_pattern
from trio_odin.wire.commands import (
    Channels,
    Command,
    CommandId,
    ErrorCode,
    Heartbeat,
    Malformed,
    Replay,
    Subscribe,
    Token,
    Unknown,
    Unsubscribe,
    id_in,
    parse_command,
)
from trio_odin.wire.frames import text_frame
from trio_odin.wire.handshake import Rejected
from trio_odin.wire.messages import (
    ChannelEntry,
    ChannelList,
    ErrorReply,
    Pong,
    Refusal,
    ReplayDone,
    ReplayIncomplete,
    Reply,
    Resumed,
    ResumeIncomplete,
    SnapshotDone,
    SubscriptionAck,
    TokenAck,
    UnsubscriptionAck,
    nats_state,
)
from trio_odin.wire.rates import EVERY_EVENT, Rate, granted

_Refusal: TypeAlias = tuple[ErrorCode, list[str], str]
S = TypeVar("S", bound=Hashable)

# An error reply names at most this many channels.
_NAMED_CHANNELS_MAX = 8
# Of refused names as a program reads them: a message has room for thousands.
_REFUSED_MAX = 256
# Names in one answer.
_LISTED_MAX = 256
# Far more than a server is ever behind another one.
_AHEAD_MAX = 1 << 16
# To look at as many channels costs about as much as a command.
_CHANNELS_A_COMMAND = 250
# Why a resume, a replay or a snapshot is incomplete.
_FORGOTTEN = "There may have been more than is kept"
_MANY = "There are more channels than a snapshot may have"
_CUT_SHORT = "You read too slowly for all of them: read, and ask for the rest"


@attrs.frozen
class SessionLimits:
    """What one client may do. `commands_per_second` 0 is no limit.

    Attributes:
        least_every_ms: the fastest rate that is granted, besides every event.
        can_resume: False where a connection gets every event from its first moment on: resumed
            events would come twice, and there are no rates.
        replay_budget: shared by all clients.
        verify: what a token grants, or why not; None where no token is needed.
    """

    replay_capacity: int = 100
    resume_channel_events: int = 100
    resume_events: int = 500
    snapshot_events: int = 1000
    max_channels: int = 256
    max_patterns: int = 16
    command_burst: int = 100
    commands_per_second: float = 10.0
    least_every_ms: int = 100
    can_resume: bool = True
    replay_budget: ReplayBudget = attrs.field(factory=ReplayBudget)
    verify: Callable[[bytes], Grant | Rejected | None] = attrs.field(default=lambda _: None)


class Session(Generic[S]):
    """Executes the commands of `subscriber` on the registry and on its replay buffer.

    docs/protocol.md describes the protocol.

    Attributes:
        grant: what the client's token allows; None where no token is needed.
        replay_buffer: the last messages to the client, which can be replayed.
        last_command: what its last message was; None if it was over the rate limit and not read.
    """

    __slots__ = (
        "_bucket",
        "_limits",
        "_nats_status",
        "_newest_events",
        "_registry",
        "_resume_buffer",
        "_subscriber",
        "_traffic",
        "grant",
        "last_command",
        "replay_buffer",
    )

    def __init__(
        self,
        subscriber: S,
        registry: Registry[S],
        *,
        replay_buffer: ReplayBuffer,
        resume_buffer: ResumeBuffer,
        limits: SessionLimits,
        traffic: Traffic,
        nats_status: NatsStatus,
        now: float,
        grant: Grant | None = None,
        newest_events: NewestEvents | None = None,
    ) -> None:
        if newest_events is None:
            newest_events = NewestEvents(channels_max=0, max_bytes=0)
        self._newest_events = newest_events
        self._subscriber = subscriber
        self._registry = registry
        self._resume_buffer = resume_buffer
        self._limits = limits
        self._traffic = traffic
        self._nats_status = nats_status
        self._bucket = TokenBucket(
            burst=limits.command_burst, per_second=limits.commands_per_second, now=now
        )
        self.replay_buffer = replay_buffer
        self.grant = grant
        self.last_command: type[Command] | None = None

    def receive(self, text: str, *, now: float, unix_ms: int) -> list[Answer]:
        """Execute one text message; returns the answers to it, in order.

        Args:
            text: the message; any text is allowed.
            now: monotonic seconds, for the rate limit and the age of data from NATS.
            unix_ms: the time of day, for the answer to a heartbeat.
        """
        if not self._bucket.take(now):
            self._traffic.rate_limited += 1
            self.last_command = None
            too_many = "Too many messages, slow down"
            return [self._error(ErrorCode.RATE_LIMIT_EXCEEDED, too_many, id_in(text))]
        command = parse_command(text)
        self.last_command = type(command)
        self._traffic.commands[self.last_command.__name__.lower()] += 1
        looked_at = self._registry.rates.looked_at
        answers = self._execute(command, now, unix_ms)
        self._charge_for(self._registry.rates.looked_at - looked_at)
        return answers

    def _execute(self, command: Command, now: float, unix_ms: int) -> list[Answer]:
        match command:
            case Subscribe():
                return self._subscribe(command)
            case Unsubscribe(channels, command_id):
                count = self._registry.unsubscribe(self._subscriber, channels)
                return [_reply(UnsubscriptionAck(channels, count), command_id)]
            case Replay(first, last, command_id):
                last = self.replay_buffer.seq if last is None else last
                return [self._replay(first, last, command_id)]
            case Heartbeat(command_id, about_nats):
                pong = self._freshness(now, unix_ms) if about_nats else Pong(unix_ms)
                return [_reply(pong, command_id)]
            case Channels():
                return [self._list(command)]
            case Token(token, command_id):
                return [self._renew(token, command_id)]
            case Malformed(code, message, command_id):
                return [self._error(code, message, command_id)]
            case Unknown():
                return []

    def allows_ping(self, now: float) -> bool:
        """Whether a WebSocket ping at `now` may be answered; it counts against the rate limit."""
        is_allowed = self._bucket.take(now)
        self._traffic.rate_limited += not is_allowed
        return is_allowed

    def _subscribe(self, command: Subscribe) -> list[Answer]:
        channels, command_id = command.channels, command.id
        is_resume = command.after is not None
        if is_resume or command.notices is not None:  # a resume needs gap notices
            self._registry.tell_of_gaps(self._subscriber, command.notices is not False)
        is_told = self._subscriber in self._registry.audience
        allowed, refusals = self._judge(channels)
        needs_wanted = is_resume or command.snapshot
        held = self._registry.channels(self._subscriber) if needs_wanted else ()
        rate = self._granted(command)
        due, count = self._subscribe_at(rate, allowed)
        replies: list[Answer] = [*due]
        if allowed or not channels or command_id is not None:
            ack = SubscriptionAck(allowed, count)
            if is_told or is_resume:
                ack.epoch = self._resume_buffer.epoch
                if not is_resume:  # a resume states its position at its end
                    ack.offset = self._stated_position()
            if command.states_rate and allowed:
                ack.every_ms = rate
            if command_id is not None:
                self._name_refused(ack, refusals)
            replies.append(_reply(ack, command_id))
        if command_id is None:
            replies += self._errors(refusals)
        if is_told and not self._nats_status.is_connected and self._learns_it_is_gone():
            replies.append(upstream_notice(is_connected=False))
        if needs_wanted:
            before = ChannelSet(held)
            added = ChannelSet(name for name in allowed if name not in before.names)
            wanted = Wanted(added, before)
            replies.append(
                self._resume(command, wanted, len(due))
                if is_resume
                else self._snapshot(command, wanted, len(due))
            )
        return replies

    def _granted(self, command: Subscribe) -> Rate:
        if not self._limits.can_resume:
            return EVERY_EVENT
        return granted(command.every_ms, least_ms=self._limits.least_every_ms)

    def _subscribe_at(self, rate: Rate, names: list[str]) -> tuple[list[Batch], int]:
        """Have the client get `names` at `rate`; returns what is due before, and its channels."""
        registry, subscriber = self._registry, self._subscriber
        due = registry.set_rate(subscriber, names, rate)
        if rate == EVERY_EVENT:
            return due, registry.subscribe(subscriber, names)
        return due, registry.count(subscriber)

    def _learns_it_is_gone(self) -> bool:
        """Whether this client does not know yet that NATS is gone; it does from now on."""
        is_news = self._subscriber not in self._registry.told_gone
        self._registry.tell_gone(self._subscriber, is_gone=True)
        return is_news

    def _judge(self, names: list[str]) -> tuple[list[str], list[_Refusal]]:
        """The names to subscribe to, in order; and the others by the reason to refuse them."""
        good, bad = _split(names, is_name)
        granted, forbidden = (good, []) if self.grant is None else _split(good, self.grant.allows)
        allowed, excess, patterns = self._within_limits(granted)
        limits = self._limits
        refusals = [
            (ErrorCode.INVALID_CHANNEL, bad, CHANNEL_RULE),
            (ErrorCode.FORBIDDEN_CHANNEL, forbidden, "the token does not allow it"),
            (
                ErrorCode.TOO_MANY_CHANNELS,
                excess,
                f"at most {limits.max_channels} channels a connection",
            ),
            (
                ErrorCode.TOO_MANY_PATTERNS,
                patterns,
                f"at most {limits.max_patterns} patterns a connection"
                if limits.max_patterns
                else "this server takes no patterns",
            ),
        ]
        return allowed, [one for one in refusals if one[1]]

    def _errors(self, refusals: list[_Refusal]) -> list[bytes]:
        """What a person reads of the refused names."""
        return [
            self._error(code, f"Not subscribed to {_named(refused)}: {reason}")
            for code, refused, reason in refusals
        ]

    def _name_refused(self, ack: SubscriptionAck, refusals: list[_Refusal]) -> None:
        """Put what a program reads of the refused names into the acknowledgement."""
        refused = [Refusal(name, code) for code, names, _ in refusals for name in names]
        for code, _, _ in refusals:
            self._traffic.errors[code.value] += 1
        if refused:
            ack.refused = refused[:_REFUSED_MAX]
        if len(refused) > _REFUSED_MAX:
            ack.refused_total = len(refused)

    def _snapshot(self, command: Subscribe, wanted: Wanted, due: int) -> Resend:
        """The newest event of each channel that the command adds, and the end of these.

        `due`: how many messages are numbered before.
        """
        found, chosen = self._newest_of(wanted)
        publications = [event.snapshot() for event in chosen]

        def finish(sent: int) -> list[bytes]:
            self._note_sent(publications[:sent])
            self._traffic.snapshots += sent
            done = SnapshotDone(sent, len(found))
            if sent < len(found):
                done.message = _CUT_SHORT if sent < len(chosen) else _MANY
            return [_reply(done, command.id)]

        return Resend(list(enumerate(publications, self.replay_buffer.seq + due + 1)), finish)

    def _newest_of(self, wanted: Wanted) -> tuple[list[NewestEvent], list[NewestEvent]]:
        """The newest event of each channel that is wanted, and as many of them as are sent."""
        found = self._newest_events.in_order(wanted.known(self._newest_events))
        self._charge_for(len(found))
        # The last ones: what a channel has had lately is more likely of use.
        return found, found[-self._limits.snapshot_events :]

    def _charge_for(self, channels: int) -> None:
        """Have a client that asks for very many channels at once wait for its next command."""
        self._bucket.charge(channels / _CHANNELS_A_COMMAND)

    def _note_sent(self, publications: Iterable[Publication]) -> None:
        """Give new numbers to what was sent beside the feed; what did not fit gets none."""
        for publication in publications:
            self._limits.replay_budget.add(publication.kept)
            self.replay_buffer.append(publication)

    def _resume(self, command: Subscribe, wanted: Wanted, due: int) -> Resend:
        """The events in `wanted` after `after`, as further messages of this connection.

        `due`: how many messages are numbered before.
        """
        publications, incomplete = self._missed(command, wanted)

        def finish(sent: int) -> list[bytes]:
            self._note_sent(publications[:sent])
            self._traffic.resumed += sent
            frames, position = [], self._position()
            cut = dict.fromkeys(one.channel for one in publications[sent:])
            if not cut and not incomplete and position is not None:
                if self._is_ahead(command):
                    position = command.after
            else:
                self._traffic.resumed_incompletely += 1
                report = ResumeIncomplete(
                    after=command.after or 0,
                    sent=sent,
                    message=_CUT_SHORT if cut else _FORGOTTEN,
                    channels=list(dict.fromkeys([*incomplete, *cut])),
                )
                frames.append(_reply(report, command.id))
            return [*frames, _reply(Resumed(sent, position), command.id)]

        return Resend(list(enumerate(publications, self.replay_buffer.seq + due + 1)), finish)

    def _missed(self, command: Subscribe, wanted: Wanted) -> Missed:
        after, epoch, resume_buffer = command.after, command.epoch, self._resume_buffer
        position = resume_buffer.position
        if after is None or not self._limits.can_resume or position is None:
            return self._nothing_known(command, wanted)
        if self._is_ahead(command):
            self._registry.hold_back(self._subscriber, wanted.added.names, after)
            return Missed([], [])
        # An offset of an unknown epoch may be of a stream that was made anew.
        if after > position or epoch not in {None, resume_buffer.epoch}:
            return self._nothing_known(command, wanted)
        limits = self._limits
        if wanted.added.patterns:
            self._charge_for(len(self._newest_events))
        most = Most(limits.resume_channel_events, limits.resume_events, limits.snapshot_events)
        return missed(
            after,
            wanted,
            resume_buffer,
            self._newest_events,
            most,
            with_snapshot=command.snapshot,
            newest_only=command.every_ms != EVERY_EVENT,
        )

    def _position(self) -> int | None:
        """Up to this offset the client was sent everything; None: that is not known."""
        position = self._resume_buffer.position
        if position is None:
            return None
        return self._registry.rates.reached(self._subscriber, position)

    def _stated_position(self) -> int | None:
        """As `_position`, but None while the client cannot know that its newest event was dropped.

        It would take the position for its own, and miss that event after a reconnect.
        """
        is_hidden_loss = 0 < self.replay_buffer.dropped == self.replay_buffer.seq
        return None if is_hidden_loss else self._position()

    def _nothing_known(self, command: Subscribe, wanted: Wanted) -> Missed:
        """Nothing is known of what was missed: what there is in this case is the newest events."""
        is_perhaps_older = command.epoch is None and command.after is not None
        has_snapshot = command.snapshot and not is_perhaps_older
        _, chosen = self._newest_of(wanted) if has_snapshot else ([], [])
        return Missed([event.snapshot() for event in chosen], list(wanted.added.names))

    def _is_ahead(self, command: Subscribe) -> bool:
        """Whether the client was on a server that had more of this epoch than this one."""
        position, epoch = self._resume_buffer.position, command.epoch
        is_known = epoch is not None and epoch == self._resume_buffer.epoch
        if not is_known or position is None:
            return False
        # Nothing is held back without end, whatever position a client states.
        return position < (command.after or 0) <= position + _AHEAD_MAX

    def _list(self, command: Channels) -> bytes:
        """A page of the channels that have had an event, with the offset of the newest."""
        newest_events, prefix = self._newest_events, command.prefix
        if self.grant is None or self.grant.patterns is None:
            names = newest_events.names(prefix, after=command.after)
        else:  # of the others not even the names are told
            allowed = {one for name in self.grant.patterns for one in newest_events.matching(name)}
            self._charge_for(len(allowed))
            later = (one for one in allowed if one.startswith(prefix) and one > command.after)
            names = iter(sorted(later))
        listed = list(islice(names, _LISTED_MAX))
        page = ChannelList(
            [
                ChannelEntry(name, event.offset)
                for name in listed
                if (event := newest_events.get(name)) is not None
            ]
        )
        if next(names, None) is not None:
            page.next = listed[-1]
        return _reply(page, command.id)

    def _renew(self, token: str, command_id: CommandId) -> bytes:
        """Use another token, and end the subscriptions that it does not allow."""
        grant = self._limits.verify(token.encode(errors="replace"))
        if isinstance(grant, Rejected):
            return self._error(ErrorCode.INVALID_TOKEN, grant.text, command_id)
        if grant is not None and self.grant is not None and grant.owner != self.grant.owner:
            text = "The token is of another user: connect again to become that one"
            return self._error(ErrorCode.INVALID_TOKEN, text, command_id)
        if grant is not None:  # else no token is needed now, but it may be again
            self.grant = grant
        held = self._registry.channels(self._subscriber)
        ended = [] if grant is None else [name for name in held if not grant.allows(name)]
        count = self._registry.unsubscribe(self._subscriber, ended)
        expires_at = None if grant is None else int(grant.expires_at)
        return _reply(TokenAck(expires_at, ended, count), command_id)

    def _freshness(self, now: float, unix_ms: int) -> Pong:
        nats_status = self._nats_status
        return Pong(
            unix_ms,
            nats_state(is_connected=nats_status.is_connected),
            _milliseconds(nats_status.age_seconds(now)),
            _milliseconds(nats_status.event_age_seconds(now)),
            self._stated_position(),
        )

    def _within_limits(self, names: list[str]) -> tuple[list[str], list[str], list[str]]:
        """Split `names` into those within the limits, too many channels, and too many patterns."""
        limits = self._limits
        have = dict.fromkeys(self._registry.channels(self._subscriber))
        patterns = sum(map(is_pattern, have))
        if len(have) + len(names) <= limits.max_channels and not any(map(is_pattern, names)):
            return names, [], []
        allowed: list[str] = []
        excess: list[str] = []
        excess_patterns: list[str] = []
        for name in names:
            if name in have:
                allowed.append(name)
            elif is_pattern(name) and patterns >= limits.max_patterns:
                excess_patterns.append(name)
            elif len(have) >= limits.max_channels:
                excess.append(name)
            else:
                have[name] = None
                patterns += is_pattern(name)
                allowed.append(name)
        return allowed, excess, excess_patterns

    def _replay(self, first: int, last: int, command_id: CommandId) -> Resend:
        replay = self.replay_buffer.between(first, last)

        def finish(sent: int) -> list[bytes]:
            self._traffic.replayed += sent
            frames = []
            if sent < replay.asked:
                is_cut = sent < len(replay.kept)
                capacity = self._limits.replay_capacity
                has_rate = self._subscriber in self._registry.rates
                no_batches = ", and no batches of a rate" if has_rate else ""
                kept = f"Only the last {capacity} messages are kept{no_batches}"
                message = _CUT_SHORT if is_cut else kept
                frames.append(_reply(ReplayIncomplete(sent, replay.asked, message), command_id))
            if command_id is not None:  # who gave an id waits for an answer
                frames.append(_reply(ReplayDone(sent, replay.asked), command_id))
            return frames

        return Resend(replay.kept, finish)

    def _error(self, code: ErrorCode, message: str, command_id: CommandId = None) -> bytes:
        self._traffic.errors[code.value] += 1
        return _reply(ErrorReply(code, message), command_id)


def _split(channels: list[str], is_good: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """The good channels and the others, each in order. The second list is mostly empty."""
    good = [channel for channel in channels if is_good(channel)]
    if len(good) == len(channels):
        return good, []
    return good, [channel for channel in channels if not is_good(channel)]


def _reply(reply: Reply, command_id: CommandId) -> bytes:
    if command_id is not None:
        reply.id = command_id
    return text_frame(msgspec.json.encode(reply))


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _named(channels: list[str]) -> str:
    """The channels as an error reply names them: only a few, and long names cut."""
    shown = ", ".join(repr(channel[:80]) for channel in channels[:_NAMED_CHANNELS_MAX])
    more = len(channels) - _NAMED_CHANNELS_MAX
    return f"{shown} and {more} more" if more > 0 else shown
