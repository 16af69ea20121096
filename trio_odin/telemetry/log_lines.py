"""Log lines on their way out: a bounded queue and a thread, so that logs never stop the server.

    a task logs ► formatted there ► queue ► writer thread ► standard error
                                      │                        │
                               full: the new line       EPIPE, ENOSPC, closed:
                                 is dropped              the line is dropped

A pipe that nobody reads blocks its writer. Here that is a thread that does nothing else.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

_CAPACITY = 10_000
_FLUSH_SECONDS = 1.0

Write = Callable[[bytes], int]
"""Writes some of the bytes, waiting if it must, and returns how many; it raises on failure."""


class LineHandler(logging.Handler):
    """Formats records where they are logged, and has a thread write their lines.

    Error handling: nothing here raises. A line is dropped and counted if `capacity` others wait, or
    if the file does not take it. Once lines go out again, one reports how many were dropped.

    Resource handling: the thread starts with the first line, also in a forked child, and ends with
    `close`. `logging` flushes and closes its handlers when a process exits; each takes at most 1 s.
    """

    def __init__(self, file: TextIO | None, *, capacity: int = _CAPACITY) -> None:
        """Write to `file`. None, as in a process without standard error, drops everything."""
        super().__init__()
        self._write = _write_to(file)
        self._capacity = capacity
        self._earlier_dropped = 0
        self._lines = self._begin()

    def _begin(self) -> _Lines:
        self._process = os.getpid()
        return _Lines(self._write, self._capacity, self._report)

    @property
    def dropped(self) -> int:
        """Number of lines that this process has dropped."""
        return self._lines.dropped

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the line to the thread. Does not wait."""
        if self._process != os.getpid():  # a forked child has no thread, and perhaps a held lock
            self._lines = self._begin()
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - an error in a log line must not end the code that logs
            self._lines.drop()
        else:
            self._lines.put(_encoded(line))

    def _report(self, count: int) -> bytes:
        fields = {"name": __name__, "levelno": logging.ERROR, "levelname": "ERROR"}
        record = logging.makeLogRecord({**fields, "msg": "log.dropped", "count": count})
        return _encoded(self.format(record))

    def flush(self) -> None:
        """Wait until all lines are written, at most 1 s."""
        self._lines.flush(_FLUSH_SECONDS)

    def close(self) -> None:
        """Flush, end the thread, and drop later lines. Waits at most 1 s."""
        self._lines.close(_FLUSH_SECONDS)
        super().close()


class _Lines:
    """The queue and the thread. A line stays in the queue until it is written or has failed."""

    def __init__(self, write: Write, capacity: int, report: Callable[[int], bytes]) -> None:
        self.dropped = 0
        self._reported = 0
        self._write = write
        self._capacity = capacity
        self._report = report
        self._waiting: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._is_torn = False  # the file ends within a line

    def put(self, line: bytes) -> None:
        with self._changed:
            if self._is_closed or len(self._waiting) >= self._capacity or not self._has_thread():
                self.dropped += 1
            else:
                self._waiting.append(line)
                self._changed.notify_all()

    def drop(self) -> None:
        with self._changed:
            self.dropped += 1

    def _has_thread(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="log", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # out of threads, or the interpreter is ending
                return False
            self._thread = thread
        return True

    def flush(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, seconds)

    def close(self, seconds: float) -> None:
        due = time.monotonic() + seconds
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(max(0.0, due - time.monotonic()))

    def _run(self) -> None:
        while (line := self._next()) is not None:
            is_written = self._write_line(line)
            with self._changed:
                self.dropped += not is_written
                self._waiting.popleft()
                self._changed.notify_all()
            if is_written:
                self._tell_what_was_dropped()

    def _next(self) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            return self._waiting[0] if self._waiting else None

    def _write_line(self, line: bytes) -> bool:
        line = b"\n" + line if self._is_torn else line
        rest = line
        try:
            while rest:
                rest = rest[self._write(rest) :]
        except (OSError, ValueError):  # ValueError: closed
            self._is_torn = self._is_torn or len(rest) < len(line)
            return False
        self._is_torn = False
        return True

    def _tell_what_was_dropped(self) -> None:
        """Report dropped lines once there is room, so that a full queue gets no report per line."""
        with self._changed:
            count = self.dropped - self._reported
            has_room = len(self._waiting) <= self._capacity // 2
        if count and has_room and self._write_line(self._report(count)):
            self._reported += count


def lines_dropped() -> int:
    """Return the number of log lines that this process has dropped."""
    handlers = logging.getLogger().handlers
    return sum(handler.dropped for handler in handlers if isinstance(handler, LineHandler))


def _encoded(line: str) -> bytes:
    return line.encode(errors="backslashreplace") + b"\n"


def _write_to(file: TextIO | None) -> Write:
    """Bypass the buffer of the file: a blocked thread would hold its lock, even at the exit."""
    if file is None:
        return _nowhere
    try:
        file.fileno()
    except (OSError, ValueError):  # a file in memory
        return lambda data: file.write(data.decode()) and len(data)
    return lambda data: _write_some(file, data)


def _write_some(file: TextIO, data: bytes) -> int:
    number = file.fileno()  # asked each time: a client may have the number of a closed file
    try:
        return os.write(number, data)
    except BlockingIOError:  # another process may have made the pipe non-blocking
        poll = select.poll()
        poll.register(number, select.POLLOUT)
        poll.poll()
        return 0


def _nowhere(data: bytes) -> int:
    raise OSError("there is no file")
