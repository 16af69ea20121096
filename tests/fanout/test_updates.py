from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.connection.client import objects_of
from trio_odin.fanout.batch import Batch
from trio_odin.fanout.updates import Update, Updates
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.wire.channels import patterns_for

CHANNELS = ["A.x", "A.y", "B.x", "B.y"]


def message(channel: str, offset: int | None = None, payload: bytes = b"1") -> NatsMessage:
    return NatsMessage(f"odin.token.{channel}", payload, offset, 0.0, 1_700_000_000_000)


def batch_of(*changed: tuple[Update, int]) -> tuple[Batch, dict[str, Any]]:
    batch = Batch.of(changed)
    (content,) = objects_of([batch.frame(7)])
    return batch, content


def the_update(updates: Updates, channel: str) -> Update:
    update = updates.get(channel)
    assert update is not None
    return update


@given(st.lists(st.sampled_from(CHANNELS), max_size=40), st.data())
def test_what_has_changed_is_found_by_a_number(published: list[str], data: st.DataObject) -> None:
    updates = Updates()
    for offset, channel in enumerate(published, start=1):
        updates.add(channel, message(channel, offset), None)
    since = data.draw(st.integers(0, len(published)))
    later = published[since:]
    changes = updates.after(since)
    assert list(changes.updates) == sorted(set(later), key=later[::-1].index)[::-1]
    for channel, update in changes.updates.items():
        assert update.skipped(since) == later.count(channel) - 1
        assert update.first_offset(since) == since + 1 + later.index(channel)
    exact = set(data.draw(st.lists(st.sampled_from(CHANNELS))))
    patterns = set(data.draw(st.lists(st.sampled_from(["A.*", "*.x", ">", "C.*"]))))
    assert changes.matching(exact, patterns) == {
        channel
        for channel in set(later)
        if channel in exact or patterns.intersection(patterns_for(channel))
    }


@given(st.lists(st.sampled_from(CHANNELS), max_size=60), st.integers(2, 8))
def test_a_count_is_exact_or_not_known(published: list[str], history: int) -> None:
    updates = Updates(history)
    for channel in published:
        updates.add(channel, message(channel), None)
    for since in range(len(published)):
        for channel, update in updates.after(since).updates.items():
            skipped = published[since:].count(channel) - 1
            assert update.skipped(since) in {skipped, None}
            assert update.counted(since) <= skipped
            if len(published) - since <= history // 2:
                assert update.skipped(since) == skipped, "the newest half is always known"
    if len(published) > 2 * (history + len(CHANNELS)):
        assert any(the_update(updates, one).skipped(0) is None for one in set(published))


def test_a_channel_that_is_not_kept_is_forgotten() -> None:
    updates = Updates()
    for channel in CHANNELS:
        updates.add(channel, message(channel), None)
    updates.forget_where(lambda update: update.channel.endswith(".y"))
    updates.forget("B.x")
    updates.forget("never seen")
    assert list(updates.after(0).updates) == ["A.x"]


def test_a_batch_has_the_keys_of_single_events() -> None:
    updates = Updates()
    updates.add("A.x", message("A.x", 5, b'{"price":1}'), None)
    updates.add("B.x", message("B.x", 6, b"null"), 2)
    updates.add("A.x", message("A.x", 8, b'{"price":2}'), 5)
    changed = [(the_update(updates, "B.x"), 1), (the_update(updates, "A.x"), 0)]
    batch, content = batch_of(*changed)
    ts = 1_700_000_000_000
    assert content == {
        "seq": 7,
        "ts": ts,
        "type": "price:batch",
        "events": [
            {"channel": "B.x", "offset": 6, "prev": 2, "ts": ts, "data": None},
            {
                "channel": "A.x",
                "offset": 8,
                "prev": 5,
                "skipped": 1,
                "ts": ts,
                "data": {"price": 2},
            },
        ],
    }
    assert (batch.events, batch.skipped) == (2, 1)


def test_a_batch_without_a_stream_has_no_offsets() -> None:
    updates = Updates()
    updates.add("A.x", message("A.x"), None)
    _, content = batch_of((the_update(updates, "A.x"), 0))
    assert content["events"] == [{"channel": "A.x", "ts": 1_700_000_000_000, "data": 1}]


def test_what_is_not_counted_any_more_is_null() -> None:
    updates = Updates(4)
    for number in range(20):
        updates.add("A.x", message("A.x", number, json.dumps(number).encode()), None)
    batch, content = batch_of((the_update(updates, "A.x"), 0))
    (event,) = content["events"]
    assert event["skipped"] is None
    assert event["data"] == 19
    assert 0 < batch.skipped < 19, "those that are known count"


def test_members_that_skipped_as_much_share_the_bytes_of_an_event() -> None:
    updates = Updates()
    updates.add("B.x", message("B.x"), None)
    updates.add("A.x", message("A.x"), None)
    updates.add("A.x", message("A.x"), None)
    update = the_update(updates, "A.x")
    assert update.part(0).fragment is update.part(1).fragment
    assert update.part(2).fragment != update.part(1).fragment


def test_a_batch_is_not_kept_for_replay() -> None:
    updates = Updates()
    updates.add("A.x", message("A.x"), None)
    batch, _ = batch_of((the_update(updates, "A.x"), 0))
    assert batch.kept.publication() is None
    assert batch.kept.size == 0
