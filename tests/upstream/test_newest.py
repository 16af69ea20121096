"""The mirror of the newest messages, where NATS answers late."""

from __future__ import annotations

from typing import Any, cast

from nats.js.api import StreamConfig, StreamInfo
from nats.js.errors import NotFoundError

from trio_odin.settings.reading import read_settings
from trio_odin.upstream.nats_client import TotalClient
from trio_odin.upstream.newest import newest_in_mirror
from trio_odin.upstream.stream import EPOCH, MADE

STREAM, MIRROR = "ODIN_TOKENS", "ODIN_TOKENS_NEWEST"


def info(name: str, **config: Any) -> StreamInfo:
    answer: dict[str, Any] = {
        "config": {"name": name, "storage": "memory", **config},
        "state": {"messages": 0, "bytes": 0, "first_seq": 0, "last_seq": 0, "consumer_count": 0},
        "created": "2026-11-28T14:50:29.5Z",
    }
    return cast("StreamInfo", StreamInfo.from_response(answer))


class LateAnswer:
    """JetStream, which deletes a stream at once, but whose answer is lost: it is asked again."""

    def __init__(self) -> None:
        self.streams = {
            STREAM: info(STREAM, subjects=["odin.token.>"]),
            MIRROR: info(MIRROR, mirror={"name": STREAM}, metadata={MADE: "yes", EPOCH: "old"}),
        }
        self.added: list[StreamConfig] = []

    def jetstream(self, *, timeout: float) -> LateAnswer:
        del timeout
        return self

    async def stream_info(self, name: str) -> StreamInfo:
        return self.streams[name]

    async def delete_stream(self, name: str) -> None:
        for _ in range(2):
            if self.streams.pop(name, None) is None:
                raise NotFoundError(code=404, err_code=10059, description="stream not found")

    async def add_stream(self, config: StreamConfig) -> None:
        self.added.append(config)


async def test_a_mirror_of_another_life_is_made_anew_though_it_is_deleted_twice() -> None:
    client = LateAnswer()
    found = await newest_in_mirror(cast("TotalClient", client), read_settings({}), STREAM, "new")
    assert found == []
    assert [(one.name, (one.metadata or {})[EPOCH]) for one in client.added] == [(MIRROR, "new")]
