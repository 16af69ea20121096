from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest
import trio

from tests.lab.load.made_up import load_plan
from trio_odin.demo.publisher import Publisher, PublisherSettings, publish
from trio_odin.lab.fleet.limits import LoadImpossible
from trio_odin.lab.load import pages
from trio_odin.lab.load.publisher import PublisherControl
from trio_odin.net.http import Request, Response, serve_request
from trio_odin.net.listening import Address


@pytest.fixture
async def publisher(nursery: trio.Nursery) -> Publisher:
    """A real publisher without NATS: it counts its events as errors."""
    settings = PublisherSettings(
        address=Address("127.0.0.1", 0),
        nats_urls=["nats://127.0.0.1:9"],
        rate=5,
        autostart=False,
        seed=1,
    )
    return cast("Publisher", await nursery.start(publish, settings))


def control_of(publisher: Publisher, **changes: Any) -> PublisherControl:
    return PublisherControl(load_plan(publisher_url=f"http://{publisher.address}/", **changes))


async def test_it_publishes_the_planned_tokens_at_the_planned_rate(
    publisher: Publisher, nursery: trio.Nursery
) -> None:
    control = control_of(publisher, rate=50.0)
    assert control.is_ours
    await control.start()
    run = publisher.control.run
    assert run is not None
    assert (run.rate, run.tokens) == (50, ("BTC", "ETH", "SOL"))
    publisher.control.stats.published = 77
    await control.stop()
    assert publisher.control.run is None
    assert control.published == 77
    nursery.cancel_scope.cancel(reason="the test is over")


async def test_without_a_rate_the_publisher_keeps_its_own(
    publisher: Publisher, nursery: trio.Nursery
) -> None:
    control = control_of(publisher)
    await control.start()
    assert publisher.control.rate == 5
    await control.stop()
    nursery.cancel_scope.cancel(reason="the test is over")


async def test_an_earlier_publication_is_stopped_and_does_not_count(
    publisher: Publisher, nursery: trio.Nursery
) -> None:
    publisher.control.start(now=trio.current_time(), unix_ms=0)
    publisher.control.stats.published = 1000
    control = control_of(publisher)
    await control.prepare()
    assert publisher.control.run is None
    await control.start()
    await control.stop()
    assert control.published == 0
    nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_publisher_that_was_not_started_is_not_stopped(
    publisher: Publisher, nursery: trio.Nursery
) -> None:
    publisher.control.start(now=trio.current_time(), unix_ms=0)
    control = control_of(publisher)
    await control.stop()
    assert publisher.control.run is not None
    assert control.published is None
    nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_refusal_is_a_sentence_with_the_reason_of_the_publisher(
    publisher: Publisher, nursery: trio.Nursery
) -> None:
    control = control_of(publisher, rate=10.0**9)
    with pytest.raises(LoadImpossible, match=r"does not start: messagesPerSecond=1e\+09"):
        await control.start()
    publisher.control.start(now=trio.current_time(), unix_ms=0)
    with pytest.raises(LoadImpossible, match="does not start: Already publishing"):
        await control_of(publisher).start()
    nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_silent_publisher_gives_a_sentence_with_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pages, "_PAGE_SECONDS", 0.2)
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:  # connects succeed, but nobody answers
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        control = PublisherControl(load_plan(publisher_url=url))
        for command in (control.prepare, control.start):
            with pytest.raises(LoadImpossible, match=f"^the publisher at {url} does not answer$"):
                await command()
        with trio.fail_after(2):
            await control.stop()  # it may have been started nevertheless
        assert control.published is None


async def test_without_a_publisher_nothing_is_sent() -> None:
    control = PublisherControl(load_plan())
    assert not control.is_ours
    await control.prepare()
    await control.start()
    await control.stop()
    assert control.published is None


async def test_a_cancelled_stop_is_made_up_for(publisher: Publisher, nursery: trio.Nursery) -> None:
    control = control_of(publisher)
    await control.start()
    with trio.CancelScope() as scope:
        scope.cancel(reason="the test wants it")
        await control.stop()
    assert scope.cancelled_caught
    await control.stop()
    assert publisher.control.run is None
    assert control.published == 0
    nursery.cancel_scope.cancel(reason="the test is over")


@asynccontextmanager
async def fake(answers: Mapping[str, object]) -> AsyncIterator[str]:
    """A publisher that answers each path with the same object."""

    async def answer(request: Request) -> Response:
        return Response(200, json.dumps(answers.get(request.path)).encode())

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        serve = partial(serve_request, respond=answer)
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel(reason="the test is over")


@pytest.mark.parametrize(
    "stats",
    [
        None,
        [],
        {},
        {"stats": None},
        {"stats": 7},
        {"stats": {}},
        {"stats": {"messagesPublished": "7"}},
    ],
)
async def test_a_publisher_that_does_not_count_leaves_the_count_unknown(stats: object) -> None:
    async with fake({"/control": {"success": True}, "/stats": stats}) as url:
        control = PublisherControl(load_plan(publisher_url=url))
        await control.start()
        await control.stop()
        assert control.published is None
