"""The sending side of one connection: all bytes to a client go through its `Outbound`, in order.

Three kinds of bytes share a socket: messages from the fan-out, replies, and the control frames and
closing handshake of trio-websocket. `Outbound` is the stream that trio-websocket is given, and
nothing else writes to the socket, so no frame can land in the middle of another.

    fan_out, flush ► nothing waits? ──yes──► one non-blocking write ──► all of it went out: done
    answer, send_all       │ no                     │ the socket is full, or took a part
                           ▼                        ▼
                        outbox (memory channel) ──► writer task: joins what waits, writes, ends

A task switch per delivery would cost 4 to 15 times as much as the write; the writer task is there
for the moments in which the socket takes nothing.

Where others have to be written to first, messages are `defer`red and the connection waits for its
turn in the flush queue (`fanout/flush_queue.py`). They come before anything that is sent meanwhile.

Every delivery is counted in this module and in the two that serve it: `fanout/outbox.py` keeps what
waits, `fanout/slow_consumers.py` decides whether something may wait, and for how long.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import trio

from trio_odin.fanout.answers import Answer, Resend
from trio_odin.fanout.batch import Batch
from trio_odin.fanout.flight import FlightEvent
from trio_odin.fanout.ordered_stream import IDLE, STOPPED, OrderedStream, Owner
from trio_odin.fanout.outbox import JOINED_MAX_BYTES, QueuedBytes
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.replay_buffer import ReplayBuffer
from trio_odin.fanout.slow_consumers import OutboxRules, QueuedMessage
from trio_odin.ledger.counters import Ledger
from trio_odin.ledger.reasons import CloseReason, Dropped
from trio_odin.overload.turns import Turns
from trio_odin.wire.compression import PLAIN, Encoding
from trio_odin.wire.frames import PING

# A larger frame costs more to keep for every seq until the fan-out ends than to make again.
_SHARED_FRAME_MAX_BYTES = 4096
_FULL = frozenset({Dropped.OUTBOX_FULL, Dropped.OUTBOX_BYTES})


class Outbound(OrderedStream):
    """Numbers and sends what one client gets; see the module's drawing.

    Messages are `deliver`ed without waiting. `answer` sends the replies to a command, `send_all`
    the frames of trio-websocket; both wait until the bytes are written.

    Attributes:
        deferred: messages for the next turn or `flush`, which do not have a number yet; None if it
            has no place in the flush queue. Only `defer` below adds to it.
        encoding: how the client gets events and ready text.
    """

    __slots__ = ("_replay_buffer", "deferred", "encoding")

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        replay_buffer: ReplayBuffer,
        rules: OutboxRules,
        ledger: Ledger,
        owner: Owner,
        turns: Turns | None = None,
        encoding: Encoding = PLAIN,
    ) -> None:
        """Wrap `stream`."""
        super().__init__(stream, rules=rules, ledger=ledger, owner=owner, turns=turns)
        self.encoding = encoding
        self._replay_buffer = replay_buffer
        self.deferred: list[Publication] | None = None

    def deliver(self, publication: Publication, frames: dict[Hashable, bytes]) -> int:
        """Number one message, keep it for replay, and hand it over without waiting.

        Args:
            publication: the event to deliver.
            frames: frames of this publication, shared by all its subscribers; added to. The key is
                `seq`, or for encodings that are not plain a pair of both.

        Returns:
            The bytes written, if the whole frame was written at once: `fan_out` counts these. 0 if
            it was queued or dropped, which is counted here.
        """
        seq = self._replay_buffer.append(publication)
        encoding = self.encoding
        key = seq if encoding is PLAIN else (encoding, seq)
        frame = frames.get(key)
        if frame is None:
            frame = publication.frame(seq, encoding)
            if len(frame) <= _SHARED_FRAME_MAX_BYTES:
                frames[key] = frame
        sent = 0
        if self._state is IDLE:
            socket = self.socket
            try:
                sent = socket.write_now(socket.file, frame)
            except BlockingIOError:
                pass
            except OSError:
                self._ledger.deliveries.dropped[Dropped.CLOSING] += publication.events
                self._owner.evict(CloseReason.PEER_GONE)
                return 0
            if sent == len(frame):
                return sent
        self._judge(self._queue(QueuedMessage(publication, seq, sent, encoding=encoding)))
        return 0

    def take_batch(self, batch: Batch, frames: dict[Hashable, bytes]) -> bool:
        """Send the batch of a tick, if the socket takes it now; `frames` as in `deliver`.

        Returns:
            False if it does not: nothing has happened then, and the next tick may try again.
        """
        self.flush()
        if self._state is not IDLE:
            return False
        seq = self._replay_buffer.seq + 1
        key = self.encoding, seq
        frame = frames.get(key)
        if frame is None:
            frame = batch.frame(seq, self.encoding)
            if len(frame) <= _SHARED_FRAME_MAX_BYTES:
                frames[key] = frame
        try:
            sent = self.socket.write_now(self.socket.file, frame)
        except BlockingIOError:
            if self.socket.is_file:
                self.socket.note_full()
                return False
            sent = 0
        except OSError:
            self._owner.evict(CloseReason.PEER_GONE)
            return False
        self._replay_buffer.append(batch)
        self._count_batch(batch)
        if sent == len(frame):
            self._ledger.deliveries.written += batch.events
            self._ledger.traffic.bytes_sent += sent
        else:
            # There is room: nothing waited.
            self._queue(QueuedMessage(batch, seq, sent, encoding=self.encoding))
        return True

    def may_take(self) -> bool:
        """Whether `take_batch` might succeed. A socket that took nothing is asked again."""
        return self._state is IDLE and self.socket.may_take()

    def send_batch(self, batch: Batch) -> None:
        """Send a batch after all that waits, like an event, without waiting.

        For what is due before something else follows: a command's answer, or the end.
        """
        self.flush()
        if self.is_ending:
            return
        dropped = self._ledger.deliveries.dropped.total()
        if sent := self.deliver(batch, {}):
            self._ledger.deliveries.written += batch.events
            self._ledger.traffic.bytes_sent += sent
        if self._ledger.deliveries.dropped.total() == dropped:
            self._count_batch(batch)
        else:
            self._ledger.deliveries.matched += batch.events

    def _count_batch(self, batch: Batch) -> None:
        """Count a batch that was written or waits; of one that was dropped none is skipped."""
        deliveries = self._ledger.deliveries
        deliveries.matched += batch.events + batch.skipped
        deliveries.skipped += batch.skipped
        deliveries.batches += 1

    def take_turn(self) -> int:
        """Hand over the deferred messages, and give up the place in the flush queue. How many."""
        deferred, self.deferred = self.deferred, None
        if not deferred:
            return 0
        self._hand_over(deferred)
        return len(deferred)

    def flush(self) -> None:
        """Hand over the deferred messages, in one write if the socket takes it. Does not wait."""
        if self.deferred:
            deferred, self.deferred = self.deferred, []
            self._hand_over(deferred)

    def _hand_over(self, deferred: Sequence[Publication]) -> None:
        """Number `deferred`, which count as queued no longer, and write or queue them."""
        self._ledger.deliveries.queued -= len(deferred)
        if self._state is STOPPED:  # the client has gone
            dropped = sum(publication.events for publication in deferred)
            self._ledger.deliveries.dropped[Dropped.CLOSING] += dropped
            return
        first = self._replay_buffer.extend(deferred)
        written = self._write_what_fits(deferred, range(first, first + len(deferred)))
        if written < len(deferred):
            # All are tried before one judgement: the writer had no turn between them.
            rest = enumerate(deferred[written:], first + written)
            encoding = self.encoding
            self._judge(
                *[self._queue(QueuedMessage(one, seq, encoding=encoding)) for seq, one in rest]
            )

    def _write_what_fits(
        self,
        publications: Sequence[Publication],
        numbers: Sequence[int],
        *,
        is_resent: bool = False,
    ) -> int:
        """Write, joined, what the socket takes now. Returns how many; one half written counts."""
        written, whole, encoding = 0, len(publications), self.encoding
        while self._state is IDLE and written < whole:
            frames: list[bytes] = []
            size, at = 0, written
            while at < whole and size < JOINED_MAX_BYTES:
                frame = publications[at].frame(numbers[at], encoding)
                frames.append(frame)
                size += len(frame)
                at += 1
            try:
                sent = self.socket.write_now(self.socket.file, b"".join(frames))
            except BlockingIOError:
                break
            except OSError:
                self._owner.evict(CloseReason.PEER_GONE)
                break
            part = 0
            if sent < size:
                del frames[bisect_right(list(accumulate(map(len, frames))), sent) :]
                part = sent - sum(map(len, frames))
            self._ledger.deliveries.written += len(frames)
            self._ledger.traffic.bytes_sent += sent - part
            written += len(frames)
            if part:
                message = self._queueable(publications[written], numbers[written], is_resent)
                message.sent = part
                self._queue(message)  # there is room: nothing waited
                written += 1
        return written

    def _queueable(self, publication: Publication, seq: int, is_resent: bool) -> QueuedMessage:
        is_replayed = is_resent and seq <= self._replay_buffer.seq
        return QueuedMessage(
            publication,
            seq,
            is_resent=is_resent,
            is_replayed=is_replayed,
            encoding=self.encoding,
        )

    def _judge(self, *refusals: Dropped | None) -> None:
        """Take what became of the newest numbers, of which the last one counts for `dropped`."""
        if refusals[-1] is not None:
            self._replay_buffer.dropped = self._replay_buffer.seq
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
            elif isinstance(answer, Batch):
                self._send_or_queue(ready)
                ready = b""
                self.send_batch(answer)
            else:
                ready += answer
        last = self._send_or_queue(ready)
        if last is not None:
            await self._wait_written(last)

    def _send_or_queue(self, ready: bytes) -> QueuedBytes | None:
        """Send ready frames, maybe none. If anything waits after that, returns the last of it."""
        rest = self._send_what_fits(self.encoding.ready(ready)) if ready else b""
        if self._state is IDLE and not rest:
            return None
        return self._queue_bytes(rest)

    def _resend(self, messages: Sequence[tuple[int, Publication]]) -> int:
        """Write or queue as many as there is room for, and count them. Returns how many."""
        numbers = [seq for seq, _ in messages]
        publications = [publication for _, publication in messages]
        sent = self._write_what_fits(publications, numbers, is_resent=True)
        for seq, publication in messages[sent:]:
            if self._queue(self._queueable(publication, seq, is_resent=True)) is not None:
                break
            sent += 1
        self._ledger.deliveries.matched += sent
        return sent

    def send_soon(self, data: bytes) -> bool:
        """Send ready text frames after all that waits; see `OrderedStream.send_soon`."""
        return super().send_soon(self.encoding.ready(data))

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

    @property
    def conflated(self) -> int:
        """How many messages gave way to newer ones of their channel."""
        return self._outbox.conflated

    @property
    def seq(self) -> int:
        """The number of its last message, with those that are deferred."""
        return self._replay_buffer.seq + len(self.deferred or ())

    @property
    def queued(self) -> int:
        """How many messages wait, with those that are deferred."""
        return self._outbox.waiting_messages + len(self.deferred or ())

    @property
    def queued_bytes(self) -> int:
        """The bytes that wait in the outbox."""
        return self._outbox.waiting_bytes

    @property
    def opened_at(self) -> float:
        """When the connection began, in monotonic seconds."""
        return self._flight.opened_at

    def last_events(self) -> list[str]:
        """The last notable events of the connection, as text for a person."""
        return self._flight.lines()

    def counts(self) -> dict[str, Any]:
        """The totals of the connection, for the log."""
        return {
            "seconds": round(trio.current_time() - self._flight.opened_at, 3),
            "seq": self.seq,
            "dropped": self._outbox.dropped,
            "conflated": self._outbox.conflated,
        }

    def report(self) -> dict[str, Any]:
        """The totals, the present state and the last events, for the log."""
        return self.counts() | {
            "silent_seconds": round(trio.current_time() - self.heard_at, 3),
            "queued": self.queued,
            "queued_bytes": self.queued_bytes,
            "events": self.last_events(),
        }

    def stop(self, farewell: bytes = b"") -> None:
        """Take and write nothing more; see `OrderedStream.stop`. Deferred messages are dropped."""
        super().stop(farewell)
        self.flush()


def fan_out(publication: Publication, subscribers: Iterable[Outbound], ledger: Ledger) -> None:
    """Deliver `publication` to every one of `subscribers`, and count it.

    There is no checkpoint in here, so the registry cannot change during the loop. Connections that
    came together are at the same `seq`, so a frame is often shared by many.
    """
    frames: dict[Hashable, bytes] = {}
    matched = written = sent_bytes = 0
    for subscriber in subscribers:
        matched += 1
        if sent := subscriber.deliver(publication, frames):
            written += 1
            sent_bytes += sent
    ledger.deliveries.matched += matched
    ledger.deliveries.written += written
    ledger.traffic.bytes_sent += sent_bytes


def defer(
    publication: Publication,
    subscribers: Iterable[Outbound],
    ledger: Ledger,
    wait_for_turn: Callable[[Outbound], object],
) -> None:
    """The same, but leave all, the number too, to each one's next `flush` or turn.

    Args:
        publication: the event to deliver.
        subscribers: who is to get it.
        ledger: counts it as matched and queued.
        wait_for_turn: called with each that has no place in the flush queue yet.
    """
    matched = 0
    for subscriber in subscribers:
        matched += 1
        if (deferred := subscriber.deferred) is None:
            subscriber.deferred = [publication]
            wait_for_turn(subscriber)
        else:
            deferred.append(publication)
    ledger.deliveries.matched += matched
    ledger.deliveries.queued += matched
