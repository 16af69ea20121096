"""A tap on the writes of a connection: it passes them on, whatever befalls the trace."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import structlog.testing
import trio
import trio.testing

from trio_odin.admin.questions import StartTrace
from trio_odin.admin.tracing import Tap, Trace

TEXT, BINARY = 0x81, 0x82


@attrs.define
class Stream:
    """A stream that takes everything."""

    written: bytes = b""
    is_torn: bool = False

    def write(self, file: int, data: bytes | memoryview) -> int:
        self.written += bytes(data)
        return len(data)


def frame_of(payload: bytes, first: int = TEXT) -> bytes:
    length = len(payload)
    head = bytes([length]) if length < 126 else b"\x7e" + length.to_bytes(2, "big")
    return bytes([first]) + head + payload


def trace_of(channel: str, inflated: Callable[[bytes], bytes] = bytes) -> Trace:
    return Trace(
        StartTrace(connection=None if channel else 1, channel=channel),
        id_of=str,
        inflated=inflated,
    )


def tapped(*traces: Trace) -> tuple[Stream, Tap]:
    stream = Stream()
    tap = Tap(1, stream, stream.write, lambda: 0)
    tap.traces.extend(traces)
    return stream, tap


async def test_an_event_nested_too_deep_is_not_wanted_and_hurts_nobody() -> None:
    trace = trace_of("BTC.trade")
    stream, tap = tapped(trace)
    deep = frame_of(b'{"channel":"BTC.trade","data":' + b"[" * 30_000)
    event = frame_of(b'{"channel":"BTC.trade"}')
    assert tap.write(3, deep) == len(deep)
    assert tap.write(3, event) == len(event)
    assert stream.written == deep + event
    assert [frame.content for frame in (await trace.next()).frames] == ['{"channel":"BTC.trade"}']


async def test_a_fault_ends_the_traces_and_not_the_writes() -> None:
    def fails(_: bytes) -> bytes:
        raise ArithmeticError

    broken, other = trace_of("BTC.trade", fails), trace_of("")
    stream, tap = tapped(broken, other)
    frame = frame_of(b"\x01\x02", BINARY)
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            assert tap.write(3, frame) == len(frame)
    assert stream.written == frame * 3
    assert [line["event"] for line in lines] == ["admin.trace_failed"]
    for trace in (broken, other):
        answer = await trace.next()
        assert (answer.frames, answer.ended) == ([], "error")


async def test_a_trace_waits_longer_for_its_reader_than_a_write_may_take(
    autojump_clock: trio.testing.MockClock,
) -> None:
    trace = trace_of("BTC.trade")
    await trace.next()
    await trio.sleep(12)
    assert not trace.is_over(trio.current_time())
    await trio.sleep(4)
    assert trace.is_over(trio.current_time())
