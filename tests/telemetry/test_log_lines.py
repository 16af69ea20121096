"""The way of a log line out of the process, into pipes without a reader."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trio_odin.telemetry.log_lines import LineHandler, lines_dropped


@pytest.fixture
def pipe() -> Iterator[tuple[int, io.TextIOWrapper]]:
    """The number to read from, and a file to log to."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(write_end, "w") as file:
        yield read_end, file
    os.close(read_end)


def log(handler: logging.Handler, *messages: str) -> None:
    for message in messages:
        handler.handle(logging.makeLogRecord({"msg": message, "levelno": 20}))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def read_lines(read_end: int, number: int) -> list[str]:
    """Read `number` lines; bytes after them may be lost."""
    data = b""
    while data.count(b"\n") < number:
        data += os.read(read_end, 1000)
    return data.decode().splitlines()


def test_lines_are_written_in_order() -> None:
    file = io.StringIO()
    handler = LineHandler(file)
    log(handler, *(f"line {number}" for number in range(100)))
    handler.close()
    assert file.getvalue().splitlines() == [f"line {number}" for number in range(100)]
    assert handler.dropped == 0


def test_a_pipe_that_is_not_read_blocks_nobody_and_drops_lines(
    pipe: tuple[int, io.TextIOWrapper],
) -> None:
    read_end, file = pipe
    handler = LineHandler(file, capacity=10)
    messages = [f"{number:0>1000}" for number in range(100)]
    log(handler, *messages[:5])
    wait_until(lambda: len(handler._lines._waiting) == 1)  # the pipe is full
    log(handler, *messages[5:])
    assert 80 <= handler.dropped <= 90  # the pipe has room for four
    kept = 100 - handler.dropped
    lines = read_lines(read_end, kept + 1)
    assert "log.dropped" in lines[kept // 2 :]
    lines.remove("log.dropped")
    assert [int(line) for line in lines] == list(range(kept))
    log(handler, "and on")
    assert read_lines(read_end, 1) == ["and on"]


def test_drops_of_a_full_queue_are_counted_and_reported_once(
    pipe: tuple[int, io.TextIOWrapper],
) -> None:
    read_end, file = pipe
    handler = LineHandler(file, capacity=8)
    log(handler, *["x" * 3999] * 20)
    told: list[str] = []
    for _ in range(4):
        told += read_lines(read_end, 1)
        log(handler, "x" * 3999, "x" * 3999)
    told += read_lines(read_end, 28 - handler.dropped - 4 + 1)
    assert told.count("log.dropped") == 1
    assert told.index("log.dropped") > 6


def test_a_pipe_without_a_reader_drops_and_raises_nothing(
    pipe: tuple[int, io.TextIOWrapper],
) -> None:
    read_end, file = pipe
    spare = os.dup(read_end)
    os.close(read_end)
    os.dup2(os.open(os.devnull, os.O_RDONLY), read_end)  # for the fixture to close
    os.close(spare)
    handler = LineHandler(file)
    log(handler, "one", "two")
    handler.close()
    assert handler.dropped == 2


def test_after_a_full_disk_the_next_line_begins_on_its_own() -> None:
    written = bytearray()
    room = 15

    def write(data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(28, "No space left on device")
        part = data[:room]
        room -= len(part)
        written.extend(part)
        return len(part)

    handler = LineHandler(io.StringIO())
    handler._write = write
    handler._lines = handler._begin()
    log(handler, "the first", "the second", "the third")
    handler.flush()
    assert (bytes(written), handler.dropped) == (b"the first\nthe s", 2)
    room = 1000
    log(handler, "again")
    handler.close()
    assert written.decode().splitlines()[1:] == ["the s", "again", "log.dropped"]
    assert handler.dropped == 2


def test_a_closed_or_missing_file_drops_lines() -> None:
    file = io.StringIO()
    handlers = [LineHandler(file), LineHandler(None)]
    file.close()
    for handler in handlers:
        log(handler, "x")
        handler.close()
        log(handler, "too late")
        assert handler.dropped == 2


def test_a_line_that_cannot_be_formatted_is_dropped() -> None:
    handler = LineHandler(io.StringIO())
    handler.handle(logging.makeLogRecord({"msg": "%d", "args": ("x",)}))
    assert handler.dropped == 1


def test_a_non_blocking_pipe_is_waited_for(
    pipe: tuple[int, io.TextIOWrapper],
) -> None:
    read_end, file = pipe
    os.set_blocking(file.fileno(), False)
    handler = LineHandler(file)
    log(handler, *["x" * 999] * 20)
    data = b""
    while data.count(b"\n") < 20:
        data += os.read(read_end, 1000)
    handler.close()
    assert (len(data), handler.dropped) == (20_000, 0)


def test_closing_does_not_wait_long_for_a_pipe_that_is_not_read(
    pipe: tuple[int, io.TextIOWrapper],
) -> None:
    _, file = pipe
    handler = LineHandler(file)
    log(handler, *["x" * 4096] * 3)
    started = time.monotonic()
    handler.flush()
    handler.close()
    assert 1.5 < time.monotonic() - started < 10


def test_many_threads_may_log() -> None:
    file = io.StringIO()
    handler = LineHandler(file)
    threads = [threading.Thread(target=log, args=(handler, *["x"] * 200)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handler.close()
    assert (file.getvalue(), handler.dropped) == ("x\n" * 1000, 0)


FORKING = """
import logging, os, sys
from trio_odin.telemetry.logs import configure_logs
configure_logs("info", "text")
logging.getLogger("x").info("before")
child = os.fork()
logging.getLogger("x").info("in the child" if child == 0 else "in the parent")
if child == 0:
    logging.shutdown()
    os._exit(0)
os.waitpid(child, 0)
"""


def test_a_forked_child_logs_and_a_normal_end_loses_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=20, check=True
    )
    events = sorted(
        line.split("event=")[1].split(" logger")[0] for line in done.stderr.splitlines()
    )
    assert events == ['"in the child"', '"in the parent"', "before"]


def test_drops_are_counted_over_all_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = [LineHandler(None), LineHandler(None), logging.NullHandler()]
    monkeypatch.setattr(logging.getLogger(), "handlers", handlers)
    for handler in handlers:
        log(handler, "x")
        handler.flush()
    assert lines_dropped() == 2


def test_the_line_about_lost_lines_has_their_count(tmp_path: Path) -> None:
    script = (
        "import logging, os; from trio_odin.telemetry.logs import configure_logs\n"
        "read_end, write_end = os.pipe()\n"
        "configure_logs('error', 'json', file=os.fdopen(write_end, 'w'))\n"
        "handler = logging.getLogger().handlers[0]\n"
        "handler._lines._capacity = 4\n"
        "for _ in range(9): logging.error('x' * 70_000)\n"
        "got = b''\n"
        "while b'log.dropped' not in got: got += os.read(read_end, 1_000_000)\n"
        "print(next(line for line in got.decode().splitlines() if 'dropped' in line))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True
    )
    line = json.loads(done.stdout)
    assert (line["event"], line["level"], line["count"]) == ("log.dropped", "error", 5)
