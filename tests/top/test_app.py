"""The screen, through textual's own pilot, with a source that answers from memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, RichLog, Static
from textual.widgets._toast import Toast

from tests.top.rig import connection, detail, reading
from trio_odin.top.app import AskToClose, Detail, Frames, Main, TopApp
from trio_odin.top.source import Reading, Source, SourceError

_SECONDS = 30.0


class FakeTrace:
    def __init__(self) -> None:
        self.is_closed = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield {"type": "started", "connections": 1}
        yield {
            "type": "frame", "connection": "2", "unix_ms": 1000, "opcode": "text", "bytes": 9,
            "content": "[bold]not markup", "is_cut": False,
        }  # fmt: skip

    def close(self) -> None:
        self.is_closed = True


class FakeSource(Source):
    """Three connections, of which the second one lags."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1")
        self.at = 0.0
        self.asked: list[Mapping[str, Any]] = []
        self.closed: list[str] = []
        self.traces: list[tuple[Mapping[str, Any], FakeTrace]] = []
        self.trouble = ""

    def read(self, source: Source, query: Mapping[str, Any]) -> Reading:
        self.asked.append(dict(query))
        if self.trouble:
            raise SourceError(self.trouble)
        self.at += 1
        lagging = connection(2, is_lagging=True, queued_bytes=900)
        return reading(self.at, lagging, connection(1, user_agent="[red]x"), connection(3))

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        return detail(int(path.rpartition("/")[2]))

    def close(self, connection_id: str) -> None:
        self.closed.append(connection_id)

    def trace(self, query: Mapping[str, Any]) -> Any:
        trace = FakeTrace()
        self.traces.append((query, trace))
        return trace


def on_screen(
    test: Callable[[Pilot[None], FakeSource], Awaitable[None]], width: int = 80, height: int = 24
) -> None:
    """Run a test with the app on a terminal of this size, under asyncio, which textual needs."""

    async def run() -> None:
        source = FakeSource()
        app = TopApp(source, interval=0.2, read=source.read)
        async with app.run_test(size=(width, height), notifications=True) as pilot:
            await until(pilot, lambda: isinstance(app.screen, Main))
            await until(pilot, lambda: table(pilot).row_count == 3)
            await test(pilot, source)

    asyncio.run(run())


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_SECONDS):
        while not condition():
            await pilot.pause(0.02)


def table(pilot: Pilot[None], name: str = "#connections") -> DataTable[Any]:
    return pilot.app.screen.query_one(name, DataTable)


def text_of(pilot: Pilot[None], name: str) -> str:
    return str(pilot.app.screen.query_one(name, Static).render())


def notices(pilot: Pilot[None]) -> str:
    """The notices on the screen, the newest last."""
    shown = pilot.app.screen.query(Toast)
    return "\n".join(str(one.render()) for one in shown)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 50), (40, 12)])
def test_the_main_screen_has_load_clients_and_channels(width: int, height: int) -> None:
    async def test(pilot: Pilot[None], source: FakeSource) -> None:
        assert "127.0.0.1:1" in text_of(pilot, "#head")
        assert "NATS connected" in text_of(pilot, "#head")
        assert "sorted by queued_bytes" in text_of(pilot, "#status")
        rows = [str(table(pilot).get_row_at(at)[0]) for at in range(3)]
        assert rows == ["2", "1", "3"]
        assert str(table(pilot, "#channels").get_row_at(0)[0]) == "BTC.trade"
        assert (len(table(pilot).columns) > 10) == (width > 140)

    on_screen(test, width, height)


def test_keys_sort_reverse_and_filter() -> None:
    async def test(pilot: Pilot[None], source: FakeSource) -> None:
        await pilot.press("s")
        await until(pilot, lambda: source.asked[-1].get("sort") == "queued")
        await pilot.press("r")
        await until(pilot, lambda: source.asked[-1].get("order") == "asc")
        await pilot.press("r", "S")
        await until(pilot, lambda: source.asked[-1] == {"sort": "queued_bytes"})
        await pilot.press("slash", *"user", "equals_sign", *"ann", "enter")
        await until(pilot, lambda: source.asked[-1].get("subject") == "ann")
        assert "user=ann" in text_of(pilot, "#status")
        await pilot.press("slash")
        pilot.app.screen.query_one(Input).value = "x=1"
        await pilot.press("enter")
        assert source.asked[-1].get("subject") == "ann", "what cannot be read changes nothing"
        pilot.app.screen.query_one(Input).value = "user="
        await pilot.press("enter")
        await until(pilot, lambda: "'user=': allowed is a value" in notices(pilot))
        asked = len(source.asked)
        await until(pilot, lambda: len(source.asked) > asked)
        assert source.asked[-1].get("subject") == "ann", "an empty value changes nothing"
        await pilot.press("escape", "escape")
        await until(pilot, lambda: "subject" not in source.asked[-1])

    on_screen(test)


def test_enter_opens_a_connection_and_t_follows_its_frames() -> None:
    async def test(pilot: Pilot[None], source: FakeSource) -> None:
        await pilot.press("down", "enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, Detail))
        await until(pilot, lambda: "Connection 1 from" in text_of(pilot, "#detail"))
        await pilot.press("t")
        await until(pilot, lambda: isinstance(pilot.app.screen, Frames))
        log = pilot.app.screen.query_one(RichLog)
        await until(pilot, lambda: len(log.lines) >= 2)
        assert "[bold]not markup" in "".join(line.text for line in log.lines)
        ((query, trace),) = source.traces
        assert query["connection"] == "1"
        await pilot.press("escape")
        await until(pilot, lambda: trace.is_closed)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(pilot.app.screen, Main))

    on_screen(test)


def test_a_channel_lists_its_clients_and_can_be_followed() -> None:
    async def test(pilot: Pilot[None], source: FakeSource) -> None:
        await pilot.press("tab", "t")
        await until(pilot, lambda: isinstance(pilot.app.screen, Frames))
        await until(pilot, lambda: bool(source.traces))
        assert source.traces[0][0]["channel"] == "BTC.trade"
        await pilot.press("escape", "enter")
        await until(pilot, lambda: source.asked[-1].get("channel") == "BTC.trade")

    on_screen(test)


def test_a_connection_is_closed_only_after_a_yes() -> None:
    async def test(pilot: Pilot[None], source: FakeSource) -> None:
        for answer in ("n", "escape", "q"):
            await pilot.press("x")
            await until(pilot, lambda: isinstance(pilot.app.screen, AskToClose))
            await pilot.press(answer)
            await until(pilot, lambda: isinstance(pilot.app.screen, Main))
        assert source.closed == []
        await pilot.press("x")
        await until(pilot, lambda: isinstance(pilot.app.screen, AskToClose))
        await pilot.press("y")
        await until(pilot, lambda: source.closed == ["2"])

    on_screen(test)


def test_the_cursor_stays_at_its_connection() -> None:
    async def test(pilot: Pilot[None], source: FakeSource) -> None:
        await pilot.press("down", "down")
        asked = len(source.asked)
        await until(pilot, lambda: len(source.asked) > asked + 2)
        assert table(pilot).cursor_row == 2

    on_screen(test)


def test_a_server_that_is_away_is_reported_and_comes_back() -> None:
    async def test(pilot: Pilot[None], source: FakeSource) -> None:
        source.trouble = "127.0.0.1:1 cannot be reached: [refused]"
        await until(pilot, lambda: "cannot be reached: [refused]" in text_of(pilot, "#status"))
        assert table(pilot).row_count == 3, "what was known stays"
        source.trouble = ""
        await until(pilot, lambda: "sorted by" in text_of(pilot, "#status"))

    on_screen(test)


def test_paused_nothing_is_read() -> None:
    async def test(pilot: Pilot[None], source: FakeSource) -> None:
        await pilot.press("p")
        await until(pilot, lambda: "paused" in text_of(pilot, "#status"))
        await pilot.pause(0.5)
        asked = len(source.asked)
        await pilot.pause(0.6)
        assert len(source.asked) == asked
        await pilot.press("p")
        await until(pilot, lambda: len(source.asked) > asked)

    on_screen(test)


def test_what_another_screen_hides_is_not_read() -> None:
    async def test(pilot: Pilot[None], source: FakeSource) -> None:
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, Detail))
        await pilot.pause(0.5)
        asked = len(source.asked)
        await pilot.pause(0.6)
        assert len(source.asked) == asked
        await pilot.press("escape")
        await until(pilot, lambda: len(source.asked) > asked)

    on_screen(test)
