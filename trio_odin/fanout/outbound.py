"""The sending side of one connection: all bytes to a client go through its `Outbound`, in order.

Three kinds of bytes share a socket: messages from the fan-out, replies, and the control frames and
closing handshake of trio-websocket. `Outbound` is the stream that trio-websocket is given, and
nothing else writes to the socket, so no frame can land in the middle of another.

    fan_out, flush ► nothing waits? ──yes──► one non-blocking write ──► all of it went out: done
    answer, send_all       │ no                     │ the socket is full, or took a part
                           ▼                        ▼
                        outbox (memory channel) ──► writer task: joins what waits, writes, sleeps

A task switch per delivery would cost 4 to 15 times as much as the write; the writer task is there
for the moments in which the socket takes nothing.

Under load the hub does not `fan_out` each message but `defer`s several, and `flush`es them in one
write. They come before anything that is sent in the meantime.

Every delivery is counted in this module and in the two that serve it: `fanout/outbox.py` keeps what
waits, `fanout/slow_consumers.py` decides whether something may wait, and for how long.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

import trio

from trio_odin.fanout.answers import Answer, Resend
from trio_odin.fanout.flight import FlightEvent
from trio_odin.fanout.ordered_stream import IDLE, OrderedStream, Owner
from trio_odin.fanout.outbox import JOINED_MAX_BYTES, QueuedBytes
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.replay_buffer import ReplayBuffer
from trio_odin.fanout.slow_consumers import OutboxRules, QueuedMessage
from trio_odin.ledger.counters import Ledger
from trio_odin.ledger.reasons import CloseReason, Dropped
from trio_odin.overload.turns import Turns
from trio_odin.wire.frames import PING

# More deferred messages than this are not worth waiting for: the write is cheap by then.
_DEFERRED_MAX = 64
# A larger frame costs more to keep for every seq until the fan-out ends than to make again.
_SHARED_FRAME_MAX_BYTES = 4096
_FULL = frozenset({Dropped.OUTBOX_FULL, Dropped.OUTBOX_BYTES})


class Outbound(OrderedStream):
    """Numbers and sends what one client gets; see the module's drawing.

    Messages are `deliver`ed without waiting. `answer` sends the replies to a command, `send_all`
    the frames of trio-websocket; both wait until the bytes are written.
    """

    __slots__ = ("_deferred", "_replay_buffer")

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        replay_buffer: ReplayBuffer,
        rules: OutboxRules,
        ledger: Ledger,
        owner: Owner,
        turns: Turns | None = None,
    ) -> None:
        """Wrap `stream`."""
        super().__init__(stream, rules=rules, ledger=ledger, owner=owner, turns=turns)
        self._replay_buffer = replay_buffer
        self._deferred: list[Publication] | None = None

    def deliver(self, publication: Publication, frames: dict[int, bytes]) -> int:
        """Number one message, keep it for replay, and hand it over without waiting.

        Args:
            publication: the event to deliver.
            frames: frames of this publication by `seq`, shared by all its subscribers; added to.

        Returns:
            The bytes written, if the whole frame was written at once: `fan_out` counts these. 0 if
            it was queued or dropped, which is counted here.
        """
        replay_buffer = self._replay_buffer
        replay_buffer.seq = seq = replay_buffer.seq + 1
        replay_buffer.kept.append(publication.kept)
        frame = frames.get(seq)
        if frame is None:
            frame = publication.frame(seq)
            if len(frame) <= _SHARED_FRAME_MAX_BYTES:
                frames[seq] = frame
        sent = 0
        if self._state is IDLE:
            socket = self.socket
            try:
                sent = socket.write_now(socket.file, frame)
            except BlockingIOError:
                pass
            except OSError:
                self._ledger.deliveries.dropped[Dropped.CLOSING] += 1
                self._owner.evict(CloseReason.PEER_GONE)
                return 0
            if sent == len(frame):
                return sent
        self._judge(self._queue(QueuedMessage(publication, seq, sent)))
        return 0

    def defer(self, publication: Publication) -> bool:
        """Like `deliver`, but leave the write to the next `flush`; `defer_all` counts it as queued.

        Returns:
            True if it is the first one: the caller must see to the `flush`.
        """
        self._replay_buffer.append(publication)
        deferred = self._deferred
        if deferred is None:
            self._deferred = [publication]
            return True
        deferred.append(publication)
        if len(deferred) >= _DEFERRED_MAX:
            self.flush()
        return False

    def flush(self) -> None:
        """Hand over the deferred messages, in one write if the socket takes it. Does not wait."""
        deferred = self._deferred
        if deferred is None:
            return
        self._deferred = None
        self._ledger.deliveries.queued -= len(deferred)
        numbered = list(enumerate(deferred, self._replay_buffer.seq - len(deferred) + 1))
        written = self._write_what_fits(numbered)
        # All are tried before one judgement: the writer had no turn between them.
        self._judge(*(self._queue(QueuedMessage(one, seq)) for seq, one in numbered[written:]))

    def _write_what_fits(
        self, numbered: Sequence[tuple[int, Publication]], *, is_resent: bool = False
    ) -> int:
        """Write, joined, what the socket takes now. Returns how many; one half written counts."""
        written = 0
        while self._state is IDLE and written < len(numbered):
            more = self._write_joined(numbered[written:], is_resent=is_resent)
            if not more:
                break
            written += more
        return written

    def _write_joined(self, numbered: Sequence[tuple[int, Publication]], *, is_resent: bool) -> int:
        """The same with one write, of as many as one write should take."""
        frames: list[bytes] = []
        size = 0
        for seq, publication in numbered:
            frames.append(publication.frame(seq))
            size += len(frames[-1])
            if size >= JOINED_MAX_BYTES:
                break
        try:
            sent = self.socket.write_now(self.socket.file, b"".join(frames))
        except BlockingIOError:
            return 0
        except OSError:
            self._owner.evict(CloseReason.PEER_GONE)
            return 0
        whole = len(frames)
        if sent < size:
            ends = list(itertools.accumulate(map(len, frames)))
            whole = bisect_right(ends, sent)
            size = ends[whole - 1] if whole else 0
        self._ledger.deliveries.written += whole
        self._ledger.traffic.bytes_sent += size
        if sent == size:
            return whole
        seq, publication = numbered[whole]
        message = self._resent(publication, seq) if is_resent else QueuedMessage(publication, seq)
        message.sent = sent - size
        self._queue(message)  # there is room: nothing waited
        return whole + 1

    def _resent(self, publication: Publication, seq: int) -> QueuedMessage:
        return QueuedMessage(
            publication, seq, is_resent=True, is_replayed=seq <= self._replay_buffer.seq
        )

    def _judge(self, *refusals: Dropped | None) -> None:
        # The limit for all outboxes together is not the fault of this one client.
        if self._outbox.is_too_slow(had_room=not _FULL.intersection(refusals)):
            self._owner.evict(CloseReason.OUTBOX_FULL)

    async def answer(self, answers: Iterable[Answer]) -> None:
        """Send the answers to one command, in order, and wait until they are written.

        Everything is written or queued before the first checkpoint, so later publications come
        after it. Resent events wait within the limits for all events; from the first one without
        room on, they are left out. So no client can ask for more than may wait.

        Raises:
            trio.BrokenResourceError: the connection was stopped first.

        Cancellation: what is queued may still be sent.
        """
        if self.is_ending:
            raise trio.BrokenResourceError
        ready = b""
        for answer in answers:
            if isinstance(answer, Resend):
                self._send_or_queue(ready)
                ready = b"".join(answer.finish(self._resend(answer.messages)))
            else:
                ready += answer
        last = self._send_or_queue(ready)
        if last is not None:
            await self._wait_written(last)

    def _send_or_queue(self, ready: bytes) -> QueuedBytes | None:
        """Send ready bytes, maybe none. If anything waits after that, returns the last of it."""
        rest = self._send_what_fits(ready) if ready else b""
        if self._state is IDLE and not rest:
            return None
        return self._queue_bytes(rest)

    def _resend(self, messages: Sequence[tuple[int, Publication]]) -> int:
        """Write or queue as many as there is room for, and count them. Returns how many."""
        sent = self._write_what_fits(messages, is_resent=True)
        for seq, publication in messages[sent:]:
            if self._queue(self._resent(publication, seq)) is not None:
                break
            sent += 1
        self._ledger.deliveries.matched += sent
        return sent

    def ping(self) -> None:
        """Send a WebSocket ping if the socket takes it now; otherwise skip it.

        If the socket takes nothing, the writer is at work, and its deadline is shorter.
        """
        try:
            is_sent = self.send_nowait(PING)
        except trio.BrokenResourceError:
            self._owner.evict(CloseReason.PEER_GONE)
        else:
            self.note(FlightEvent.PING if is_sent else FlightEvent.PING_SKIPPED)

    @property
    def dropped(self) -> int:
        """How many messages found no room."""
        return self._outbox.dropped

    def counts(self) -> dict[str, Any]:
        """The totals of the connection, for the log."""
        return {
            "seconds": round(trio.current_time() - self._flight.opened_at, 3),
            "seq": self._replay_buffer.seq,
            "dropped": self._outbox.dropped,
            "conflated": self._outbox.conflated,
        }

    def report(self) -> dict[str, Any]:
        """The totals, the present state and the last events, for the log."""
        return self.counts() | {
            "silent_seconds": round(trio.current_time() - self.heard_at, 3),
            "queued": self._outbox.waiting_messages + len(self._deferred or ()),
            "queued_bytes": self._outbox.waiting_bytes,
            "events": self._flight.lines(),
        }

    def stop(self, farewell: bytes = b"") -> None:
        """Take and write nothing more; see `OrderedStream.stop`. Deferred messages are dropped."""
        super().stop(farewell)
        if self._deferred is not None:
            self._ledger.deliveries.queued -= len(self._deferred)
            self._ledger.deliveries.dropped[Dropped.CLOSING] += len(self._deferred)
            self._deferred = None


def fan_out(publication: Publication, subscribers: Iterable[Outbound], ledger: Ledger) -> None:
    """Deliver `publication` to every one of `subscribers`, and count it.

    There is no checkpoint in here, so the registry cannot change during the loop. Connections that
    came together are at the same `seq`, so a frame is often shared by many.
    """
    frames: dict[int, bytes] = {}
    matched = written = sent_bytes = 0
    for subscriber in subscribers:
        matched += 1
        if sent := subscriber.deliver(publication, frames):
            written += 1
            sent_bytes += sent
    ledger.deliveries.matched += matched
    ledger.deliveries.written += written
    ledger.traffic.bytes_sent += sent_bytes


def defer_all(
    publication: Publication,
    subscribers: Iterable[Outbound],
    unflushed: list[Outbound],
    ledger: Ledger,
) -> None:
    """Like `fan_out`, but the writes come with the flush; those to be flushed join `unflushed`."""
    matched = 0
    for subscriber in subscribers:
        matched += 1
        if subscriber.defer(publication):
            unflushed.append(subscriber)
    # Where one of them has flushed, `queued` was too small until here; no other task ran meanwhile.
    ledger.deliveries.matched += matched
    ledger.deliveries.queued += matched
