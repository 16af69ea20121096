"""Traces: the frames to some connections, as they go out.

    Outbound ► ClientSocket.write_now = Tap.write ──► FrameReader ──► Trace ──► NextFrames
                                        │                             bounded; full: dropped
                                        └► untapped_write             and counted

While nobody traces a connection its `write_now` is that of its stream, `os.write` or TLS, so
nothing costs anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import msgspec
import structlog
import trio

from trio_odin.admin.frames import FrameReader, SentFrame, text_of
from trio_odin.admin.questions import Frame, Frames, StartTrace
from trio_odin.wire.channels import ChannelSet

CONNECTIONS_MAX: Final = 64
_WAITING_MAX: Final = 1000
_WAITING_BYTES_MAX: Final = 4 * 1024 * 1024
_FRAMES_OF_AN_ANSWER: Final = 256
_WAIT_SECONDS: Final = 0.5
# A trace that nobody asks for frames of ends. A reader may take 10 s for those that it has.
_FORGOTTEN_SECONDS: Final = 15.0


class _Part(msgspec.Struct):
    channel: str = ""


class _Event(msgspec.Struct):
    channel: str = ""
    events: list[_Part] = []


_log = structlog.get_logger("admin")
_events: Final = msgspec.json.Decoder(_Event)


class Traced(Protocol):
    """What is traced of a connection."""

    @property
    def is_torn(self) -> bool:
        """Whether the last byte written may not be the end of a frame."""
        ...


class Trace:
    """The frames of one question that wait to be asked for.

    Attributes:
        question: what is followed.
        followed: the numbers of the connections that are followed now.
        ended: why there will be no more frames; empty while there may be.
        refreshed_at: when those to follow were last looked for.
    """

    def __init__(
        self,
        question: StartTrace,
        *,
        id_of: Callable[[int], str],
        inflated: Callable[[bytes], bytes],
    ) -> None:
        self.question = question
        self.followed: set[int] = set()
        self.ended = ""
        self.refreshed_at = trio.current_time()
        self._id_of = id_of
        self._inflated = inflated
        self._channels = ChannelSet([question.channel] if question.channel else [])
        self._waiting: deque[tuple[int, int, SentFrame]] = deque()
        self._waiting_bytes = 0
        self._taken = self._dropped = 0
        self._ends_at = trio.current_time() + question.seconds
        self._asked_at = trio.current_time()
        self._came = trio.lowlevel.ParkingLot()

    def take(self, number: int, unix_ms: int, frame: SentFrame) -> None:
        """Take a frame to the connection of this number, if it is wanted. Does not wait."""
        if self.ended or not self._is_wanted(frame):
            return
        if len(self._waiting) >= _WAITING_MAX or self._waiting_bytes >= _WAITING_BYTES_MAX:
            self._dropped += 1
            return
        self._waiting.append((number, unix_ms, frame))
        self._waiting_bytes += frame.size
        self._taken += 1
        if self._taken >= self.question.frames:
            self.ended = "frames"
        self._came.unpark_all()

    def _is_wanted(self, frame: SentFrame) -> bool:
        if not self.question.channel:
            return True
        text, _ = text_of(frame, self._inflated, whole=True)
        try:
            event = _events.decode(text)
        except (msgspec.MsgspecError, RecursionError):
            return False
        names = [event.channel, *(part.channel for part in event.events)]
        return any(name and name in self._channels for name in names)

    def lost(self, number: int) -> None:
        """Note that a connection has ended."""
        self.followed.discard(number)
        if self.question.connection == number and not self.ended:
            self.ended = "gone"
            self._came.unpark_all()

    def fail(self) -> None:
        """End the trace, because of a fault of the server."""
        if not self.ended:
            self.ended = "error"
            self._came.unpark_all()

    def is_over(self, now: float) -> bool:
        """End the trace if its time is up. Returns whether it can be forgotten."""
        if now >= self._ends_at and not self.ended:
            self.ended = "time"
            self._came.unpark_all()
        return now - self._asked_at >= _FORGOTTEN_SECONDS

    async def next(self) -> Frames:
        """Wait a moment for frames; return some of those that wait, maybe none."""
        self._asked_at = now = trio.current_time()
        self.is_over(now)
        if not self._waiting and not self.ended:
            with trio.move_on_after(_WAIT_SECONDS):
                await self._came.park()
        frames: list[Frame] = []
        while self._waiting and len(frames) < _FRAMES_OF_AN_ANSWER:
            number, unix_ms, frame = self._waiting.popleft()
            self._waiting_bytes -= frame.size
            content, is_cut = text_of(frame, self._inflated)
            frames.append(
                Frame(
                    connection=self._id_of(number),
                    unix_ms=unix_ms,
                    opcode=frame.name,
                    bytes=frame.size,
                    content=content,
                    is_cut=is_cut,
                )
            )
        dropped, self._dropped = self._dropped, 0
        return Frames(frames=frames, dropped=dropped, ended="" if self._waiting else self.ended)


class Tap:
    """Takes the place of `write_now` for one connection, and passes its frames to some traces.

    Args:
        number: the number of the connection.
        stream: whether its last frame was cut.
        write: the `untapped_write` of its socket.
        unix_ms: returns the time, in milliseconds of Unix time.

    Attributes:
        traces: those that follow the connection.
    """

    def __init__(
        self,
        number: int,
        stream: Traced,
        write: Callable[[int, bytes | memoryview], int],
        unix_ms: Callable[[], int],
    ) -> None:
        self.traces: list[Trace] = []
        self._number = number
        self._stream = stream
        self._write = write
        self._unix_ms = unix_ms
        self._reader = FrameReader()
        self._has_failed = False
        self._is_between_frames = not stream.is_torn

    def write(self, file: int, data: bytes | memoryview) -> int:
        """Write as without the tap, and take note of what was written.

        Raises:
            OSError: the write failed. Nothing else: the caller is in the midst of a fan-out.
        """
        is_between_frames = self._is_between_frames or not self._stream.is_torn
        sent = self._write(file, data)
        if is_between_frames and not self._has_failed:
            self._is_between_frames = True
            try:
                self._take(memoryview(data)[:sent])
            except Exception:  # noqa: BLE001 - a fault in a trace must not end the fan-out
                _log.exception("admin.trace_failed", connection=self._number)
                self._has_failed = True
                for trace in self.traces:
                    trace.fail()
        return sent

    def _take(self, data: memoryview) -> None:
        now = self._unix_ms()
        for frame in self._reader.feed(data):
            for trace in self.traces:
                trace.take(self._number, now, frame)

    def frames_are_whole(self) -> None:
        """Note that the last byte written ends a frame."""
        self._is_between_frames = True

    def ended(self) -> None:
        """Note that nothing more will be written."""
        for trace in self.traces:
            trace.lost(self._number)
        self.traces.clear()
