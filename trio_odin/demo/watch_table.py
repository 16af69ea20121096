"""What `trio-odin watch` shows to people: a table, drawn anew, and a line about the state."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import attrs
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trio_odin.client import Event, Feed, Gap, Position, Refused, State
from trio_odin.client.connection import is_pattern, names_for
from trio_odin.client.errors import printable
from trio_odin.client.queues import Item, Policy
from trio_odin.demo.watch_words import hint_for, json_text, why_of

_RATE_SECONDS: Final = 10
_DATA_CHARS: Final = 60
_PRICE_SHARE: Final = 0.4
# The table gives up its last columns first.
_COLUMNS: Final = (("price", 0), ("change", 36), ("age", 46), ("events/s", 56), ("gaps", 66))
_LINES_BESIDE: Final = 2  # the names of the columns, and the state
# From here on all digits would need more room than they are worth.
_LARGE, _LARGE_PERCENT, _LARGE_RATE = 1e12, 1e5, 1e6
_COLOURS: Final = {"live": "green", "stale": "yellow", "offline": "red", "closed": "red"}
_SECOND, _MINUTE, _HOUR, _DAY = 1, 60, 3600, 86_400


class PerSecond:
    """How often something happens, over the last ten seconds."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._counts: deque[tuple[int, int]] = deque(maxlen=_RATE_SECONDS + 1)

    def add(self, now: float, count: int = 1) -> None:
        """Count."""
        second = int(now)
        if self._counts and self._counts[-1][0] == second:
            count += self._counts.pop()[1]
        self._counts.append((second, count))

    def rate(self, now: float) -> float:
        """So many a second."""
        since = now - _RATE_SECONDS
        total = real(sum(count for second, count in self._counts if second >= since))
        return total / min(_RATE_SECONDS, max(1.0, now - self._began))


@attrs.define(eq=False)
class Row:
    """What is known of a channel; or of a name without an event."""

    name: str
    rate: PerSecond
    event: Event | None = None
    first_price: float | None = None
    before: float | None = None  # the price before this one
    price: float | None = None
    gaps: int = 0
    missed: int | None = 0
    reason: str = ""  # of the last gap
    refused: str = ""

    def take(self, event: Event, now: float) -> None:
        """Note an event."""
        self.event = event
        if not event.is_snapshot:
            self.rate.add(now, 1 + (event.skipped or 0))
        price = number_of(event.data, "price")
        if price is not None:
            self.before, self.price = self.price, price
            if self.first_price is None:
                self.first_price = price

    def lose(self, missed: int | None, reason: str) -> None:
        """Note a gap."""
        self.gaps += 1
        self.reason = reason
        self.missed = None if missed is None or self.missed is None else self.missed + missed

    @property
    def change(self) -> str:
        """Of the price in percent: in 24 hours, if the event says so, or since the first one."""
        if self.event is None:
            return ""
        percent = number_of(self.event.data, "priceChange24h")
        if percent is not None:
            return f"{percent_text(percent)} % 24h"
        if self.price is None or not self.first_price:
            return ""
        return f"{percent_text((self.price / self.first_price - 1) * 100)} %"


class Rows:
    """The rows of all names that were asked for, and of the channels that patterns have found."""

    def __init__(self, names: Sequence[str], now: float) -> None:
        self._rows = {name: Row(name, PerSecond(now)) for name in names}
        self._last_gap: tuple[Gap, float] | None = None

    def take(self, item: Item, now: float) -> None:
        """Note an item."""
        if isinstance(item, Event):
            row = self._rows.get(item.channel)
            if row is None:
                row = self._rows[item.channel] = Row(item.channel, PerSecond(now))
            row.take(item, now)
        elif isinstance(item, Gap):
            missing = set(item.channels)
            # How many of which channel is not known, unless it is about one.
            missed = item.missed if len(missing) == 1 else None
            for row in self._rows.values():
                if not missing.isdisjoint(names_for(row.name)):
                    row.lose(missed, item.reason)
            self._last_gap = item, now
        elif isinstance(item, Refused) and item.channel in self._rows:
            self._rows[item.channel].refused = item.code

    def last_gap(self, now: float) -> str:
        """What was lost last, when, and why; empty if nothing was."""
        if self._last_gap is None:
            return ""
        gap, at = self._last_gap
        missed = "events" if gap.missed is None else f"{count_text(gap.missed)} events"
        first, *others = (printable(channel) for channel in gap.channels)
        more = f" and {len(others)} more" if others else ""
        ago = duration(now - at)
        return f"gap {ago} ago, {missed} of {first}{more}: {why_of(gap.reason)}"

    @property
    def hint(self) -> str:
        """Which name may be meant by one that has had no event; empty if there is none."""
        silent = [row.name for row in self.in_order() if not row.event and not row.refused]
        found = [(name, hint) for name in silent if (hint := hint_for(name))]
        if not found:
            return ""
        more = f" ({len(found) - 1} more like it)" if len(found) > 1 else ""
        return f"{found[0][0]}: did you mean {found[0][1]} ?{more}"

    @property
    def has_events(self) -> bool:
        """Whether there was any."""
        return any(row.event for row in self._rows.values())

    def in_order(self) -> list[Row]:
        """Channels by name; patterns that have found nothing, or were refused, come last."""
        found = {name for one in self._rows.values() if one.event for name in names_for(one.name)}
        shown = [
            row
            for row in self._rows.values()
            if row.event or row.refused or not is_pattern(row.name) or row.name not in found
        ]
        return sorted(shown, key=lambda row: (is_pattern(row.name), row.name))


class LiveTable:
    """The table on a terminal; a context manager, as the terminal has to be given back."""

    policy: Policy = "newest"

    def __init__(
        self,
        names: Sequence[str],
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._clock = clock
        now = clock()
        self._rows = Rows(names, now)
        self._events, self._bytes = PerSecond(now), PerSecond(now)
        self._bytes_before = 0
        self._live = Live(console=console, screen=True, auto_refresh=False)
        self._last: RenderableType | None = None

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # the terminal has gone
            self._live.stop()
            self._print_last()

    def _print_last(self) -> None:
        if self._last is not None and self._rows.has_events:
            self._console.print(self._last)  # what was last seen stays

    async def take(self, item: Item) -> None:
        """Note an item."""
        now = self._clock()
        self._rows.take(item, now)
        if isinstance(item, Event) and not item.is_snapshot:
            self._events.add(now, 1 + (item.skipped or 0))

    async def reach(self, position: Position) -> None:
        """Positions are for programs."""

    def draw(self, feed: Feed) -> None:
        """Draw everything."""
        now = self._clock()
        self._bytes.add(now, feed.bytes_received - self._bytes_before)
        self._bytes_before = feed.bytes_received
        rates = (self._events.rate(now), self._bytes.rate(now))
        state = state_line(feed.state, feed.now_ms(), *rates)
        lines = [
            Text(line, "yellow", no_wrap=True, overflow="ellipsis")
            for line in (self._rows.hint, self._rows.last_gap(now))
            if line
        ]
        width, height = self._console.size
        height -= len(lines)
        table = table_of(self._rows.in_order(), now, time.time() * 1000, width, height)
        self._last = Group(table, *lines, state)
        self._live.update(self._last, refresh=True)


def table_of(rows: list[Row], now: float, unix_ms: float, width: int, height: int) -> Table:
    """A table that fits into `width` and `height`, with a line left for the state."""
    columns = [name for name, least in _COLUMNS if width >= least]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("channel", no_wrap=True, overflow="ellipsis", ratio=None)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True, overflow="ellipsis")
    room = max(1, height - _LINES_BESIDE)
    hidden = len(rows) - room + 1 if len(rows) > room else 0
    for row in rows[: len(rows) - hidden]:
        cells = _cells(row, now, unix_ms, int(width * _PRICE_SHARE))
        table.add_row(
            Text(printable(row.name), overflow="ellipsis"), *(cells[name] for name in columns)
        )
    if hidden:
        table.add_row(Text(f"… and {hidden} more", "dim"))
    return table


def _cells(row: Row, now: float, unix_ms: float, price_width: int) -> dict[str, Text]:
    event = row.event
    if event is None:
        why = f"refused: {printable(row.refused)}" if row.refused else "no event yet"
        price, age, rate = Text(why, "red" if row.refused else "dim"), "", ""
    else:
        price = _price(row, event.data, price_width)
        age = duration(max(0.0, unix_ms - real(event.unix_ms)) / 1000)
        rate = rate_text(row.rate.rate(now))
    missed = "" if row.missed is None else f" ({count_text(row.missed)})"
    gaps = f"{count_text(row.gaps)}{missed}" if row.gaps else ""
    change = row.change
    colour = "red" if change.startswith("-") else "green"
    return {
        "price": price,
        "change": Text(change, colour),
        "age": Text(age),
        "events/s": Text(rate),
        "gaps": Text(gaps, "yellow"),
    }


def _price(row: Row, data: Any, width: int) -> Text:
    if row.price is not None and number_of(data, "price") is not None:
        before = row.price if row.before is None else row.before
        colour = "" if before == row.price else "green" if row.price > before else "red"
        return Text(price_text(row.price), colour)
    text = printable(json_text(data))
    if cell_len(text) > width:
        text = set_cell_size(text, max(1, width - 1)) + "…"
    return Text(text)


def state_line(state: State, now_ms: float, events: float, received: float) -> Text:
    """How the connection is, and how much comes: one line."""
    colour = _COLOURS.get(state.name, "")
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"● {state.name}", colour)
    if state.retry_at is not None:
        line.append(f", again in {duration(max(0.0, state.retry_at - now_ms) / 1000)}")
    if state.cause and state.name != "live":
        line.append(f": {state.cause}")
    line.append(f" · {rate_text(events)} events/s · {size(received)}/s", "dim")
    return line


def number_of(data: Any, key: str) -> float | None:
    """The number under a key of an event's data, if there is one; a very large one is infinite."""
    value = data.get(key) if isinstance(data, dict) else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return real(value)


def real(number: float) -> float:
    """The number as a float; a whole one that is too large for that is infinite."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def price_text(price: float) -> str:
    """A price with as many decimals as make a difference."""
    if abs(price) >= _LARGE:
        return f"{price:.6g}"
    if abs(price) >= 1000:
        return f"{price:,.2f}"
    return f"{price:,.4f}" if abs(price) >= 1 else f"{price:.6g}"


def percent_text(percent: float) -> str:
    """A change in percent, without the sign for it."""
    if abs(percent) < _LARGE_PERCENT:
        return f"{round(percent, 2) + 0.0:+.2f}"  # no -0.00
    return f"{percent:+.3g}"


def count_text(count: float) -> str:
    """How many; of very many only roughly."""
    return f"{count:,}" if abs(count) < _LARGE else f"{real(count):.3g}"


def rate_text(rate: float) -> str:
    """How many a second."""
    return f"{rate:.1f}" if rate < _LARGE_RATE else f"{rate:.3g}"


def duration(seconds: float) -> str:
    """A time in its largest unit."""
    if seconds >= _LARGE:
        return f"{real(seconds):.3g} s"
    if seconds < 10 * _SECOND:
        return f"{seconds:.1f} s"
    for unit, name, most in ((_SECOND, "s", _MINUTE), (_MINUTE, "min", _HOUR), (_HOUR, "h", _DAY)):
        if seconds < 2 * most:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / _DAY:.0f} d"


def size(count: float) -> str:
    """A number of bytes."""
    if count < 1000:
        return f"{count:.0f} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"
