from __future__ import annotations

from trio_odin.admin.channel_watch import ChannelWatch
from trio_odin.upstream.nats_message import NatsMessage


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def event(channel: str, offset: int, payload: bytes = b"12") -> NatsMessage:
    return NatsMessage(f"odin.token.{channel}", payload, offset, 0.0, 1000 + offset)


def counted(watch: ChannelWatch, channel: str) -> tuple[int, int]:
    some = list(watch.of(channel))
    return sum(one.events for one in some), sum(one.bytes for one in some)


def test_events_are_counted_by_channel() -> None:
    clock = Clock()
    watch = ChannelWatch(clock.now, clock)
    for offset in range(3):
        watch.see(event("BTC.trade", offset))
    watch.see(event("ETH.trade", 3))
    clock.now += 2
    assert watch.channels() == {"BTC.trade", "ETH.trade"}
    assert counted(watch, "BTC.trade") == (3, 6)
    assert watch.seconds() == 2
    newest = next(watch.of("BTC.trade"))
    assert (newest.offset, newest.unix_ms) == (2, 1002)


def test_what_is_no_event_or_no_news_is_not_counted() -> None:
    clock = Clock()
    watch = ChannelWatch(clock.now, clock)
    watch.see(event("BTC.trade", 1)._replace(is_backfill=True))
    watch.see(NatsMessage("odin.token.BTC", b"1", 1, 0.0))
    assert not watch.channels()


def test_only_the_last_ten_seconds_count() -> None:
    clock = Clock()
    watch = ChannelWatch(clock.now, clock)
    for second in range(20):
        watch.see(event("BTC.trade", second))
        clock.now += 1
    events, _ = counted(watch, "BTC.trade")
    assert 5 <= watch.seconds() <= 10
    assert events / watch.seconds() == 1
