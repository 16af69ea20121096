"""What is known of the stream: where the server is in it, and which events it still has.

Pure: all that changes it comes in order through the inbound queue.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from trio_odin.fanout.chains import Chains
from trio_odin.fanout.newest import NewestEvents
from trio_odin.fanout.resume_buffer import ResumableEvent, ResumeBuffer
from trio_odin.upstream.gaps import Mark
from trio_odin.upstream.nats_message import NatsMessage, Newest
from trio_odin.wire.channels import channel_of_subject
from trio_odin.wire.payload import why_invalid

_CHAINED_CHANNELS_MIN: Final = 10_000


class Taken(NamedTuple):
    """What a message turned out to be.

    Attributes:
        channel: its channel; None if its subject has none.
        why_invalid: why its payload cannot be sent; None if it can.
        prev: the offset of the event before it in the channel; None if that is not known.
        resumable: what the resume buffer keeps of it; None if it has no offset.
    """

    channel: str | None
    why_invalid: str | None
    prev: int | None
    resumable: ResumableEvent | None


class Feed:
    """The position, the last events, and the newest event of each channel.

    Args:
        max_age_seconds: how long events are kept for clients that resume.
        channels_max: of how many channels to know the newest event; 0: of none.
        max_bytes: of these events together.

    Attributes:
        resume_buffer: the position, and the last events.
        newest_events: the newest event of each channel.
    """

    def __init__(self, *, max_age_seconds: float, channels_max: int, max_bytes: int) -> None:
        self.resume_buffer = ResumeBuffer(max_age_seconds=max_age_seconds)
        self.newest_events = NewestEvents(channels_max=channels_max, max_bytes=max_bytes)
        self._chains = Chains(max(channels_max, _CHAINED_CHANNELS_MIN))
        self._is_newest_coming = False
        self._unknown_newest = -1

    @property
    def is_settled(self) -> bool:
        """Whether the position is known, and all from before the start that is to be known."""
        return self.resume_buffer.is_settled and not self._is_newest_coming

    def add(self, message: NatsMessage) -> Taken:
        """Take in the next message."""
        channel, offset = channel_of_subject(message.subject), message.offset
        why_not = None if channel is None else why_invalid(message.payload)
        # What no client can get is part of no chain: it would look like a loss.
        valid = None if why_not else channel
        prev = None
        if valid is not None:
            prev = None if offset is None else self._chains.link(valid, offset)
            self.newest_events.add(valid, message, prev)
        return Taken(channel, why_not, prev, self.resume_buffer.add(message, valid, prev))

    def note(self, mark: Mark) -> None:
        """Take in what happened to the stream between two messages."""
        is_new_epoch = mark.epoch != self.resume_buffer.epoch
        if is_new_epoch:
            self.newest_events.forget_all(mark.reached or 0)
        self._chains.note(mark, is_new_epoch=is_new_epoch)
        self.resume_buffer.note(mark)
        self.newest_events.note(mark)
        self._is_newest_coming = mark.is_newest_coming

    def add_newest(self, newest: Newest) -> None:
        """Take in what the stream itself has as the newest messages.

        Those that the feed has not brought yet are left to it: else they would come twice.
        """
        reached = self.resume_buffer.taken
        for message in newest.messages:
            channel, offset = channel_of_subject(message.subject), message.offset
            if channel is None or offset is None:
                continue
            if offset > reached or why_invalid(message.payload):
                # The one before it is not known, and may be what a client has missed.
                self._unknown_newest = max(self._unknown_newest, offset)
                self._chains.unlearn(channel)
                continue
            self.newest_events.add_older(channel, message)
            if newest.known_after is not None:
                self._chains.learn(channel, offset, position=newest.position)
        if newest.is_last:
            self.newest_events.sort()
            if newest.known_after is not None:
                known_after = max(newest.known_after, self._unknown_newest)
                self.newest_events.note_known(newest.position, known_after)
            self._unknown_newest = -1
            self._is_newest_coming = False
