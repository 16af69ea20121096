from __future__ import annotations

import attrs
import pytest

from tests.fanout.test_hub import FakeMember
from trio_odin.fanout.hub import Hub
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.traces import LAST_WRITE_MAX_SECONDS, Traces
from trio_odin.ledger.counters import Ledger, TraceCounters
from trio_odin.settings.reading import read_settings
from trio_odin.telemetry.spans import Span
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.wire.trace_context import TraceContext

PARENT = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
SECOND = 1_000_000_000


@attrs.define
class Rig:
    """Traces with a clock of Unix nanoseconds that is moved by hand."""

    per_second: str = "20"
    now_ns: int = 1_700_000_000 * SECOND
    spans: list[Span] = attrs.Factory(list)
    counters: TraceCounters = attrs.Factory(TraceCounters)
    traces: Traces = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        settings = read_settings({"WS_TRACES_PER_SECOND": self.per_second})
        self.traces = Traces(
            self.spans.append, self.counters, settings, now=0.0, clock=lambda: self.now_ns
        )

    def by_name(self) -> dict[str, Span]:
        self.traces.collect()
        return {span.name: span for span in self.spans}


def message(arrived_at: float = 0.0, trace: TraceContext | None = PARENT) -> NatsMessage:
    return NatsMessage("odin.token.BTC.trade", b"1", 7, arrived_at, trace=trace)


def publication() -> Publication:
    return Publication("BTC.trade", b"1", offset=7, unix_ms=1)


def test_the_last_write_ends_when_nothing_refers_to_the_publication() -> None:
    rig = Rig()
    event = rig.traces.begin(message(arrived_at=1.5), now=2.0)
    assert event is not None
    begun = rig.now_ns
    original = publication()
    waiting = [event.watch(original, 3)]
    assert waiting[0].frame(1) == original.frame(1)
    rig.now_ns += SECOND
    event.fanned_out("fanned_out")
    rig.now_ns += SECOND
    assert not rig.by_name(), "it waits for a socket"
    waiting.clear()
    rig.now_ns += SECOND
    spans = rig.by_name()
    assert list(spans) == ["received", "fan-out", "last write"]
    times = {name: (span.begin_ns - begun, span.end_ns - begun) for name, span in spans.items()}
    assert times == {
        "received": (-SECOND // 2, 0),
        "fan-out": (0, SECOND),
        "last write": (0, 2 * SECOND),
    }
    assert spans["last write"].attributes["trio_odin.is_unfinished"] is False
    assert event.message.trace == spans["fan-out"].context
    assert spans["fan-out"].parent_id == spans["received"].context.span_id
    assert spans["received"].parent_id == PARENT.span_id
    assert len({span.context.span_id for span in spans.values()}) == 3


def test_a_last_write_is_given_up_after_a_while() -> None:
    rig = Rig()
    event = rig.traces.begin(message(), now=0.0)
    assert event is not None
    waiting = [event.watch(publication(), 1)]
    event.fanned_out("fanned_out")
    rig.now_ns += round(LAST_WRITE_MAX_SECONDS * SECOND)
    assert not rig.by_name()
    rig.now_ns += 1
    spans = rig.by_name()
    assert spans["last write"].attributes["trio_odin.is_unfinished"] is True
    waiting.clear()
    rig.traces.collect()
    assert len(rig.spans) == 3, "none of them comes twice"


def test_at_the_end_all_spans_are_given() -> None:
    rig = Rig()
    event = rig.traces.begin(message(), now=0.0)
    assert event is not None
    waiting = event.watch(publication(), 1)
    event.fanned_out("fanned_out")
    rig.traces.collect(is_last=True)
    assert [span.name for span in rig.spans] == ["received", "fan-out", "last write"]
    assert waiting.channel == "BTC.trade"


@pytest.mark.parametrize("outcome", ["unmatched", "invalid", "shed"])
def test_what_nobody_gets_has_the_first_span_only(outcome: str) -> None:
    rig = Rig()
    event = rig.traces.begin(message(), now=0.0)
    assert event is not None
    event.fanned_out(outcome)
    assert list(rig.by_name()) == ["received"]
    assert rig.spans[0].attributes["trio_odin.outcome"] == outcome


def test_a_clock_that_is_set_back_makes_no_span_end_before_its_begin() -> None:
    rig = Rig()
    event = rig.traces.begin(message(arrived_at=9.0), now=2.0)
    assert event is not None
    waiting = [event.watch(publication(), 1)]
    rig.now_ns -= SECOND
    event.fanned_out("fanned_out")
    waiting.clear()
    for span in rig.by_name().values():
        assert span.begin_ns <= span.end_ns


def test_more_events_than_allowed_are_counted_and_not_traced() -> None:
    rig = Rig(per_second="3")
    begun = [rig.traces.begin(message(), now=10.0) for _ in range(10)]
    assert sum(event is not None for event in begun) == 3
    assert (rig.counters.events, rig.counters.over_limit) == (3, 7)
    assert rig.traces.begin(message(), now=10.5) is not None
    rig.traces.reload(read_settings({"WS_TRACES_PER_SECOND": "1000"}), now=10.5)
    assert all(rig.traces.begin(message(), now=10.5) for _ in range(1000))
    assert rig.traces.begin(message(trace=None), now=20.0) is None


async def frames_of(traced: NatsMessage, traces_of: Rig | None = None) -> list[bytes]:
    """What a subscriber gets of an event from a hub, with or without a collector."""
    hub = Hub[FakeMember](
        read_settings({}), Ledger(), give_span=None if traces_of is None else traces_of.spans.append
    )
    member = FakeMember()
    hub.join(member)
    hub.registry.subscribe(member.outbound, ["BTC.trade"])
    hub.publish(traced)
    frames: list[bytes] = member.outbound.frames
    return frames


async def test_without_a_collector_a_traced_event_is_byte_for_byte_like_any_other() -> None:
    assert await frames_of(message()) == await frames_of(message(trace=None))


async def test_with_a_collector_an_event_that_is_not_traced_is_as_before() -> None:
    assert await frames_of(message(trace=None), Rig()) == await frames_of(message(trace=None))


async def test_an_event_that_is_traced_names_its_fan_out_at_its_end() -> None:
    (plain,), (traced,) = await frames_of(message(trace=None)), await frames_of(message(), Rig())
    # The head of a longer frame is longer.
    before, after = plain[plain.index(b"{") : -1], traced[traced.index(b"{") :]
    key, parent, flags = after.removeprefix(before).rsplit(b"-", 2)
    assert key == b',"trace":"00-' + PARENT.trace_id.encode()
    assert (len(parent), flags) == (16, b'01"}')
