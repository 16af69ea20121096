"""The screen of `trio-odin top`, on textual: the one module that knows it.

    TopApp ── Main           head, connections, hot channels
              ├── Detail     one connection
              ├── Frames     a trace
              └── AskToClose yes or no

Requests run in threads, so the screen answers keys also while the server does not answer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import DataTable, Footer, Input, RichLog, Static

from trio_odin.top import figures
from trio_odin.top.figures import CHANNELS, CONNECTIONS, SORTS, Column, Fact
from trio_odin.top.source import Reading, Source, SourceError, Trace

_ROWS: Final = 200
_CHANNELS_SHOWN: Final = 50
_DETAIL_SECONDS: Final = 1.0
_FRAMES_SECONDS: Final = 0.2
_FRAMES_AT_ONCE: Final = 100
_LINES_KEPT: Final = 2000


def read(source: Source, query: Mapping[str, Any], limit: int = _ROWS) -> Reading:
    """Read all that the main screen shows. It takes up to some seconds: for threads.

    Raises:
        SourceError: the server does not answer, or refuses.
    """
    channels = source.get("/channels", {"seconds": 0.5, "limit": min(limit, _CHANNELS_SHOWN)})
    connections = source.get("/connections", {**query, "limit": limit})
    return Reading(time.monotonic(), source.get("/overview"), connections, channels)


class AskToClose(ModalScreen[bool]):
    """Asks whether to close a connection."""

    CSS = """
    AskToClose { align: center middle; }
    AskToClose Static { width: auto; max-width: 76; padding: 1 2; border: heavy $error; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Close it"),
        Binding("n,escape,q", "answer(False)", "Leave it"),
    ]

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name_of_connection = name

    def compose(self) -> ComposeResult:
        """Show the question."""
        question = f"Close connection {self._name_of_connection}?\nThe client may come back."
        yield Static(Text(f"{question}\n\ny: close it   n: leave it"))

    def action_answer(self, answer: bool) -> None:
        """Take the answer."""
        self.dismiss(answer)


class Detail(Screen[None]):
    """One connection, read anew each second."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "trace", "Follow frames"),
        Binding("x", "close_connection", "Close"),
        Binding("escape,q", "app.pop_screen", "Back"),
    ]

    def __init__(self, source: Source, connection_id: str) -> None:
        super().__init__()
        self._source = source
        self._connection_id = connection_id
        self._is_reading = False

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        with VerticalScroll():
            yield Static("", id="detail")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to read."""
        self._read()
        self.set_interval(_DETAIL_SECONDS, self._read)

    def _read(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._read_in_thread()

    @work(thread=True)
    def _read_in_thread(self) -> None:
        try:
            lines = figures.detail_of(self._source.get(f"/connections/{self._connection_id}"))
        except SourceError as error:
            lines = [str(error)]
        _show(self.app, self._show, lines)

    def _show(self, lines: list[str]) -> None:
        self._is_reading = False
        if self.is_attached:
            self.query_one("#detail", Static).update(Text("\n".join(lines)))

    def action_trace(self) -> None:
        """Follow the frames of this connection."""
        self.app.push_screen(Frames(self._source, {"connection": self._connection_id}))

    def action_close_connection(self) -> None:
        """Ask whether to close it, and do so."""
        ask_to_close(self, self._source, self._connection_id)


class Frames(Screen[None]):
    """The frames of a trace, as they come."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "hold", "Hold"),
        Binding("escape,q", "app.pop_screen", "Back"),
    ]

    def __init__(self, source: Source, query: Mapping[str, Any]) -> None:
        super().__init__()
        self._source = source
        self._query = query
        self._trace: Trace | None = None
        self._came: deque[str] = deque(maxlen=_LINES_KEPT)
        self._is_held = self._is_left = False

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield RichLog(max_lines=_LINES_KEPT, wrap=True, id="frames")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to follow."""
        self._follow()
        self.set_interval(_FRAMES_SECONDS, self._show_some)

    def on_unmount(self) -> None:
        """End the trace, at the server too."""
        self._is_left = True
        if self._trace is not None:
            self._trace.close()

    @work(thread=True)
    def _follow(self) -> None:
        try:
            trace = self._trace = self._source.trace(
                {**self._query, "seconds": 600, "frames": 10_000}
            )
        except SourceError as error:
            self._came.append(str(error))
            return
        if self._is_left:
            trace.close()
        for line in trace:
            self._came.append(figures.line_of_trace(line))

    def _show_some(self) -> None:
        log = self.query_one(RichLog)
        for _ in range(0 if self._is_held else min(len(self._came), _FRAMES_AT_ONCE)):
            log.write(Text(self._came.popleft()))

    def action_hold(self) -> None:
        """Hold the screen, or let it go on."""
        self._is_held = not self._is_held
        self.sub_title = "held" if self._is_held else ""


class Main(Screen[None]):
    """Load, rates, connections and channels."""

    CSS = """
    #head { height: 4; padding: 0 1; }
    #status { height: 1; padding: 0 1; background: $panel; }
    #connections { height: 2fr; min-height: 5; }
    #channels { height: 1fr; min-height: 4; }
    #filter { height: 1; border: none; padding: 0 1; display: none; }
    #filter.asked { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "sort(1)", "Sort"),
        Binding("S", "sort(-1)", "Sort back", show=False),
        Binding("r", "reverse", "Reverse"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("t", "trace", "Frames"),
        Binding("x", "close_connection", "Close"),
        Binding("p", "pause", "Pause"),
        Binding("tab", "other_table", "Table", priority=True),
        Binding("escape", "clear_filter", "Clear", show=False),
        Binding("q", "app.quit", "Quit"),
    ]

    def __init__(
        self, source: Source, *, interval: float, query: Mapping[str, Any], read: Read
    ) -> None:
        super().__init__()
        self._source = source
        self._interval = interval
        self._query = dict(query)
        self._read_source = read
        self._now: Reading | None = None
        self._before: Reading | None = None
        self._is_reading = self._is_paused = False
        self._trouble = ""

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield Static("", id="head")
        yield Static("", id="status")
        yield Input(placeholder="10.0.0.0/8  user=ann  channel=BTC.*  lagging", id="filter")
        yield DataTable(id="connections", cursor_type="row", zebra_stripes=True)
        yield DataTable(id="channels", cursor_type="row", zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to read."""
        self.query_one("#connections").focus()
        self._show_status()
        self.read()
        self.set_interval(self._interval, self.read)

    def on_screen_resume(self) -> None:
        """Read at once when this screen is seen again."""
        self.read()

    def on_resize(self) -> None:
        """Show what there is room for."""
        self._show_tables()

    def read(self) -> None:
        """Read anew, unless that is in progress or paused, or another screen hides this one."""
        is_hidden = isinstance(self.app.screen, Detail | Frames)
        if not self._is_reading and not self._is_paused and not is_hidden:
            self._is_reading = True
            self._read_in_thread()

    @work(thread=True)
    def _read_in_thread(self) -> None:
        query = dict(self._query)
        try:
            reading = self._read_source(self._source, query)
        except SourceError as error:
            _show(self.app, self._show_trouble, str(error))
        else:
            _show(self.app, self._show_reading, reading, query)

    def _show_trouble(self, trouble: str) -> None:
        self._is_reading = False
        self._trouble = trouble
        self._show_status()

    def _show_reading(self, reading: Reading, query: Mapping[str, Any]) -> None:
        self._is_reading = False
        self._trouble = ""
        if query != self._query:  # it was asked for something else meanwhile
            self.read()
            return
        self._before, self._now = self._now, reading
        rates = figures.rates_between(self._before, reading)
        lines = figures.head_of(self._source.name, reading, rates, self._before)
        head = Text("\n", no_wrap=True, overflow="ellipsis").join(map(_styled, lines))
        self.query_one("#head", Static).update(head)
        self._show_status()
        self._show_tables()

    def _show_tables(self) -> None:
        if self._now is None:
            return
        width = self.size.width
        speeds = figures.message_rates(self._before, self._now)
        columns = figures.columns_for(CONNECTIONS, width)
        rows = [
            Row(
                one["id"],
                [column.cell(one, speeds.get(one["id"])) for column in columns],
                one["is_lagging"] or one["dropped"] > 0,
            )
            for one in self._now.connections["connections"]
        ]
        fill(self.query_one("#connections", DataTable), columns, rows)
        columns = figures.columns_for(CHANNELS, width)
        rows = [
            Row(one["name"], [column.cell(one, None) for column in columns])
            for one in self._now.channels["channels"]
        ]
        fill(self.query_one("#channels", DataTable), columns, rows)

    def _show_status(self) -> None:
        if self._trouble:
            self.query_one("#status", Static).update(Text(self._trouble, "bold red"))
            return
        sort = self._query.get("sort", SORTS[0])
        parts = [f"sorted by {sort}" + (", reversed" if self._query.get("order") else "")]
        filters = {name: v for name, v in self._query.items() if name not in {"sort", "order"}}
        if filters:
            parts.append(figures.text_of_filters(filters))
        if self._now is not None:
            listed = self._now.connections
            shown = len(listed["connections"])
            parts.append(f"{shown:,} of {listed['matching']:,} shown")
            if listed["silent_workers"]:
                parts.append(f"no answer of workers {listed['silent_workers']}")
        if self._is_paused:
            parts.append("paused")
        self.query_one("#status", Static).update(Text("   ".join(parts)))

    def _change(self, **query: Any) -> None:
        self._query.update(query)
        self._query = {name: value for name, value in self._query.items() if value}
        self._is_paused = False
        self._show_status()
        self.read()

    def action_sort(self, step: int) -> None:
        """Sort by the next field."""
        at = SORTS.index(self._query.get("sort", SORTS[0]))
        self._change(sort=SORTS[(at + step) % len(SORTS)], order=None)

    def action_reverse(self) -> None:
        """Turn the order round."""
        is_rising = self._query.get("sort", SORTS[0]) in {"address", "subject", "connection"}
        reverse = "desc" if is_rising else "asc"
        self._change(order=None if self._query.get("order") else reverse)

    def action_filter(self) -> None:
        """Ask for a filter."""
        box = self.query_one("#filter", Input)
        box.add_class("asked")
        box.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take a filter."""
        try:
            given = figures.filters_of(event.value)
        except ValueError as error:
            self.notify(str(error), severity="error", markup=False)
            return
        self._leave_filter()
        cleared = dict.fromkeys(("address", "subject", "channel", "lagging"))
        self._change(**{**cleared, **given})

    def action_clear_filter(self) -> None:
        """Leave the filter box, or clear the filters."""
        if self.query_one("#filter").has_class("asked"):
            self._leave_filter()
        else:
            self._change(address=None, subject=None, channel=None, lagging=None)

    def _leave_filter(self) -> None:
        self.query_one("#filter").remove_class("asked")
        self.query_one("#connections").focus()

    def action_other_table(self) -> None:
        """Go to the other table."""
        is_at_channels = self.query_one("#channels").has_focus
        self.query_one("#connections" if is_at_channels else "#channels").focus()

    def action_pause(self) -> None:
        """Read nothing anew, or go on."""
        self._is_paused = not self._is_paused
        self._show_status()
        self.read()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open a connection, or list those of a channel."""
        key = str(event.row_key.value)
        if event.data_table.id == "connections":
            self.app.push_screen(Detail(self._source, key))
        else:
            self._change(channel=key)

    def action_trace(self) -> None:
        """Follow the frames of what is under the cursor."""
        table = self.query_one("#channels", DataTable)
        name = "channel"
        if not table.has_focus:
            table, name = self.query_one("#connections", DataTable), "connection"
        if (key := key_at_cursor(table)) is not None:
            self.app.push_screen(Frames(self._source, {name: key}))

    def action_close_connection(self) -> None:
        """Ask whether to close the connection under the cursor, and do so."""
        key = key_at_cursor(self.query_one("#connections", DataTable))
        if key is not None:
            ask_to_close(self, self._source, key)


class TopApp(App[None]):
    """The app. `read` reads the source, in a thread."""

    TITLE = "trio-odin top"
    ENABLE_COMMAND_PALETTE = False

    def __init__(
        self,
        source: Source,
        *,
        interval: float = 2.0,
        query: Mapping[str, Any] | None = None,
        read: Read = read,
    ) -> None:
        super().__init__()
        self._main = Main(source, interval=interval, query=query or {}, read=read)

    def on_mount(self) -> None:
        """Show the main screen."""
        self.push_screen(self._main)


class Row(NamedTuple):
    """A row of a table; `is_bad` if a person should look at it."""

    key: str
    cells: Sequence[str]
    is_bad: bool = False


Read = Callable[[Source, Mapping[str, Any]], Reading]


def _styled(facts: Sequence[Fact]) -> Text:
    parts = [Text(fact.text, "bold red" if fact.is_bad else "") for fact in facts]
    return Text("  ").join(parts)


def _show(app: App[Any], show: Callable[..., object], *arguments: object) -> None:
    """Have the app show something, from a thread; nothing happens if it has ended meanwhile."""
    if app.is_running:
        app.call_from_thread(show, *arguments)


def fill(table: DataTable[Text], columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Put rows into a table. The cursor stays at its row, or at its place if that has gone."""
    at, place = key_at_cursor(table), table.cursor_row
    scroll = table.scroll_y
    table.clear(columns=True)
    table.add_columns(*(column.title for column in columns))
    for row in rows:
        style = "bold red" if row.is_bad else ""
        table.add_row(*(Text(cell, style) for cell in row.cells), key=row.key)
    keys = [row.key for row in rows]
    if at in keys:
        place = keys.index(at)
    table.move_cursor(row=max(0, min(place, len(keys) - 1)), scroll=False)
    table.scroll_to(y=scroll, animate=False)


def key_at_cursor(table: DataTable[Text]) -> str | None:
    """The key of the row under the cursor; None without rows."""
    if not table.is_valid_row_index(table.cursor_row):
        return None
    return table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value


def ask_to_close(screen: Screen[Any], source: Source, connection_id: str) -> None:
    """Ask whether to close a connection, and do so in a thread."""

    def close() -> None:
        try:
            source.close(connection_id)
        except SourceError as error:
            said, severity = str(error), "error"
        else:
            said, severity = f"Connection {connection_id} is closed", "information"
        _show(screen.app, lambda: screen.app.notify(said, severity=severity, markup=False))  # type: ignore[arg-type]

    def answered(answer: bool | None) -> None:
        if answer:
            screen.run_worker(close, thread=True)

    screen.app.push_screen(AskToClose(connection_id), answered)
