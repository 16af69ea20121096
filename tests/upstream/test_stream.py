"""What NATS says of a stream is not always so."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any, cast

import pytest
from nats.aio.client import Client
from nats.js.api import StreamInfo

from trio_odin.upstream import stream as stream_module
from trio_odin.upstream.position import StreamState
from trio_odin.upstream.stream import EPOCH, info_after_doubt, state_of

_OFFSET = 542


def info(last: int, *, replicas: int = 2) -> StreamInfo:
    """The answer of a leader that has events up to `last`."""
    peers = [{"name": f"n{n}", "current": True, "active": 0} for n in range(replicas)]
    state = {"messages": 0, "bytes": 0, "first_seq": 0, "last_seq": last, "consumer_count": 0}
    answer: dict[str, Any] = {
        "config": {"name": "ODIN_TOKENS", "subjects": ["odin.token.>"], "storage": "memory"},
        "state": state,
        "cluster": {"name": "c", "leader": "n9", "replicas": peers},
        "created": "2026-11-28T14:50:29.5Z",
    }
    return cast("StreamInfo", StreamInfo.from_response(answer))


class Leaders:
    """A client that gets these answers, one after the other."""

    def __init__(self, *answers: StreamInfo) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def jetstream(self, *, timeout: float) -> Leaders:
        return self

    async def stream_info(self, name: str) -> StreamInfo:
        self.asked.append(name)
        return self.answers.pop(0)


def is_behind(state: StreamState) -> bool:
    return state.last < _OFFSET


def found(first: StreamInfo, leaders: Leaders, monkeypatch: pytest.MonkeyPatch) -> int:
    """The last offset of the stream that is believed in the end."""
    monkeypatch.setattr(stream_module, "_DOUBT_SECONDS", 0.0)
    client = cast("Client", leaders)
    believed = asyncio.run(info_after_doubt(client, first, is_lost=is_behind))
    return int(believed.state.last_seq)


def test_a_leader_that_has_not_everything_yet_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seen in a cluster whose leader was killed: the events came again, as of another life."""
    leaders = Leaders(info(0), info(431), info(600))
    assert found(info(0), leaders, monkeypatch) == 600
    assert leaders.asked == ["ODIN_TOKENS"] * 3


def test_who_is_not_behind_is_believed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    leaders = Leaders()
    assert found(info(_OFFSET), leaders, monkeypatch) == _OFFSET
    assert not leaders.asked


def test_a_stream_that_stays_empty_is_believed_after_some_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leaders = Leaders(*[info(0)] * 10)
    assert found(info(0), leaders, monkeypatch) == 0
    assert 2 <= len(leaders.asked) <= 5


def test_a_stream_without_replicas_is_believed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    leaders = Leaders()
    assert found(info(0, replicas=0), leaders, monkeypatch) == 0
    assert not leaders.asked


def test_a_mirror_has_the_epoch_of_its_origin() -> None:
    """Its metadata has it: a client may resume in another region, with the same offsets."""
    origin, mirror = info(_OFFSET), info(_OFFSET)
    assert state_of(origin).epoch == "661574c3ed860"
    mirror.config.metadata = {EPOCH: "63fc2bd2a9d40"}
    assert state_of(mirror).epoch == "63fc2bd2a9d40"


def test_an_emptied_mirror_has_no_epoch_of_its_origin() -> None:
    """An origin that is emptied counts its offsets from 1; a mirror goes on with those it had."""
    origin, mirror = info(_OFFSET), info(_OFFSET)
    emptied = {"trio_odin_generation": "1"}
    origin.config.metadata = emptied
    mirror.created = dt.datetime(2026, 11, 29, tzinfo=dt.UTC)
    mirror.config.metadata = {EPOCH: "661574c3ed860", **emptied}
    assert state_of(origin).epoch == "661574c3ed860-1"
    assert state_of(mirror).epoch == "661574c3ed860-6615ef970c000-1"
    # All servers of a region see the same one; another region has another mirror.
    elsewhere = info(_OFFSET)
    elsewhere.config.metadata = {EPOCH: "661574c3ed860", **emptied}
    assert state_of(elsewhere).epoch not in {state_of(one).epoch for one in (origin, mirror)}
