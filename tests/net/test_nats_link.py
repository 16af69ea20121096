"""Which server is connected to, and what is learnt from it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
import structlog

from trio_odin.net.nats_client import Refused
from trio_odin.net.nats_link import NatsLink, Outage, Unreachable, nats_link

T = TypeVar("T")
_SECONDS = 20
_NOWHERE = "nats://127.0.0.1:9"


def in_asyncio(work: Coroutine[Any, Any, T]) -> T:
    async def within() -> T:
        async with asyncio.timeout(_SECONDS):
            return await work

    return asyncio.run(within())


class FakeNats:
    """A server that says what it is told to say. `connects` are the CONNECT lines it got."""

    def __init__(
        self,
        *,
        answer: bytes = b"PONG\r\n",
        is_dumb: bool = False,
        delay_seconds: float = 0.0,
        **info: Any,
    ) -> None:
        self.url = ""
        self.connects: list[dict[str, Any]] = []
        self.is_dumb = is_dumb
        self.open = 0
        self._answer = answer
        self._delay_seconds = delay_seconds
        self._info = {"server_id": "x", "version": "2.15.1", "headers": True, **info}
        self._writers: list[asyncio.StreamWriter] = []

    def say(self, **info: Any) -> None:
        for writer in self._writers:
            writer.write(b"INFO %b\r\n" % json.dumps({**self._info, **info}).encode())

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self._writers.append(writer)
        try:
            await asyncio.sleep(self._delay_seconds)
            if not self.is_dumb:
                writer.write(b"INFO %b\r\n" % json.dumps(self._info).encode())
            async for line in reader:
                if line.startswith(b"CONNECT"):
                    self.connects.append(json.loads(line[7:]))
                elif line.startswith(b"PING"):
                    writer.write(self._answer)
        except OSError:
            pass
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def serving(*fakes: FakeNats) -> AsyncIterator[None]:
    servers = [await asyncio.start_server(fake.serve, "127.0.0.1", 0) for fake in fakes]
    for fake, server in zip(fakes, servers, strict=True):
        fake.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield
    finally:
        for server in servers:
            server.close()
        async with asyncio.timeout(_SECONDS):
            while any(fake.open for fake in fakes):
                await asyncio.sleep(0.01)


async def ignore(link: NatsLink, error: Exception) -> None:
    pass


def outage_of(*urls: str) -> Outage:
    return Outage(structlog.get_logger("test"), urls)


def place_of(fake: FakeNats) -> str:
    return fake.url.removeprefix("nats://")


def test_a_server_that_hangs_or_is_down_keeps_nobody_from_the_next() -> None:
    async def connect() -> None:
        dumb, good = FakeNats(is_dumb=True), FakeNats()
        async with serving(dumb, good):
            urls = [_NOWHERE, dumb.url, good.url]
            async with nats_link(urls, name="test", on_error=ignore) as link:
                assert str(link.url) == place_of(good)
                assert link.is_up
            assert (len(good.connects), len(dumb.connects)) == (1, 0)

    in_asyncio(connect())


def test_of_two_that_answer_at_once_one_is_taken_and_none_stays_open() -> None:
    async def connect() -> None:
        slow, late = FakeNats(delay_seconds=0.7), FakeNats(delay_seconds=0.2)
        async with serving(slow, late):  # until both are closed again
            async with nats_link([slow.url, late.url], name="test", on_error=ignore) as link:
                assert link.is_up
            assert slow.connects or late.connects

    in_asyncio(connect())


def test_the_reason_is_given_for_each_server() -> None:
    async def connect() -> None:
        no = FakeNats(answer=b"-ERR 'Authorization Violation'\r\n")
        async with serving(no):
            with pytest.raises(Unreachable) as caught:
                async with nats_link([_NOWHERE, no.url], name="test", on_error=ignore):
                    pass
        assert "127.0.0.1:9: connection refused" in str(caught.value)
        assert f"{place_of(no)}: Authorization Violation" in str(caught.value)
        assert not caught.value.is_refused, "one of them may be back in a moment"

    in_asyncio(connect())


def test_what_does_not_speak_nats_is_no_server() -> None:
    async def connect() -> None:
        other = FakeNats(answer=b"220 mail.example\r\n")
        async with serving(other):
            with pytest.raises(Unreachable, match="does not answer as NATS does"):
                async with nats_link([other.url], name="test", on_error=ignore):
                    pass

    in_asyncio(connect())


def test_servers_that_were_announced_are_tried_with_the_same_credentials() -> None:
    async def connect() -> None:
        second = FakeNats()
        first = FakeNats()
        async with serving(first, second):
            outage = outage_of(first.url.replace("nats://", "nats://odin:s%40cret@"))
            first._info["connect_urls"] = [place_of(first), place_of(second), "no place", 5]
            async with outage.link(name="test", on_error=ignore) as link:
                assert str(link.url) == place_of(first)
            async with outage.link(name="test", on_error=ignore) as link:
                assert str(link.url) == place_of(second), "the one lost last comes last"
                second.say(connect_urls=[place_of(second)])
                await link.client.flush(timeout=_SECONDS)
            async with outage.link(name="test", on_error=ignore) as link:
                assert str(link.url) == place_of(first), "what is no longer announced is forgotten"
        for connect in (*first.connects, *second.connects):
            assert (connect["user"], connect["pass"]) == ("odin", "s@cret")

    in_asyncio(connect())


@pytest.mark.parametrize("others", [[], ["127.0.0.1:9"]])
def test_a_server_in_lame_duck_mode_is_left_if_there_is_another(others: list[str]) -> None:
    async def connect() -> bool:
        fake = FakeNats()
        async with (
            serving(fake),
            outage_of(fake.url).link(name="test", on_error=ignore) as link,
        ):
            fake.say(ldm=True, connect_urls=others)
            await link.client.flush(timeout=_SECONDS)
            if not link.is_up:
                assert "lame duck" in str(link.lost_by)
            return link.is_up

    assert in_asyncio(connect()) is (not others)


def test_pauses_grow_to_half_a_second_and_to_five_where_nats_says_no() -> None:
    async def fail(outage: Outage) -> list[float]:
        pauses = []
        for _ in range(12):
            try:
                async with outage.link(name="test", on_error=ignore):
                    pass
            except Unreachable as error:
                outage.note(error)
            pauses.append(outage.pause_seconds())
        return pauses

    async def both() -> tuple[list[float], list[float]]:
        no = FakeNats(answer=b"-ERR 'Authorization Violation'\r\n")
        async with serving(no):
            return await fail(outage_of(_NOWHERE)), await fail(outage_of(no.url))

    away, refused = in_asyncio(both())
    assert 0.1 <= away[0] <= 0.2
    assert 0.25 <= away[-1] <= max(away) <= 0.5
    assert 0.1 <= refused[0] <= 0.2
    assert 2.5 <= refused[-1] <= max(refused) <= 5


def test_pauses_begin_anew_after_a_connection_that_was_of_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def live(outage: Outage, *, lost_by: Exception | None = None) -> float:
        async with outage.link(name="test", on_error=ignore) as link:
            outage.over()
            if lost_by:
                link.lose(lost_by)
        return outage.pause_seconds()

    async def lives() -> tuple[float, float]:
        fake = FakeNats()
        async with serving(fake):
            outage = outage_of(fake.url)
            for _ in range(10):
                short = await live(outage, lost_by=Refused("maximum subscriptions exceeded"))
            monkeypatch.setattr("trio_odin.net.nats_link._STABLE_SECONDS", 0.0)
            return short, await live(outage)

    short, long = in_asyncio(lives())
    assert short >= 2.5
    assert long <= 0.1


def test_a_connect_that_is_cancelled_at_any_moment_leaves_no_socket_open() -> None:
    """Also while it closes what it could not use: this server offers no TLS."""

    async def connect(url: str) -> None:
        async with nats_link([url], name="test", on_error=ignore):
            pass

    async def cancelled_after(turns: int, plain: FakeNats) -> None:
        connecting = asyncio.create_task(connect(plain.url.replace("nats:", "tls:")))
        while not plain.open:
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        connecting.cancel()
        await asyncio.wait([connecting])
        async with asyncio.timeout(_SECONDS / 4):
            while plain.open:
                await asyncio.sleep(0.01)

    async def work() -> None:
        plain = FakeNats()
        async with serving(plain):
            for turns in range(40):
                await cancelled_after(turns, plain)

    in_asyncio(work())
