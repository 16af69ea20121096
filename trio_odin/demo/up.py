"""`trio-odin up`: all parts in one nursery tree, for a first try and for development.

    up()
    └── nats-server          a real one, a child process with its own store
        └── publisher        an open-loop market
            └── server       as in production
                └── screen   where to connect, and live counts

Each level ends before the level that it needs, so a Ctrl-C ends everything in order.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from shlex import quote

import attrs
import trio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trio_odin.admin.access import is_loopback
from trio_odin.demo.nats_server import run_nats_server
from trio_odin.demo.publisher import Publisher, PublisherSettings, publish
from trio_odin.demo.shares import Shares
from trio_odin.net.listening import Address
from trio_odin.server import Server, serve
from trio_odin.settings.settings import Settings
from trio_odin.signals import drain_on_signal, end_signals

_REFRESH_SECONDS = 0.5
_LINE_EVERY_SECONDS = 5.0
_TOKENS_SHOWN = 5


@attrs.frozen
class UpPlan:
    """The parts to start. `settings_for` makes the server's settings from the URL of NATS."""

    settings_for: Callable[[str], Settings]
    rate: float
    tokens: Sequence[str]
    events: Sequence[str]
    shares: Shares
    duration_seconds: float = math.inf


async def up(plan: UpPlan, console: Console) -> None:
    """Run everything until a signal, the end of `plan.duration_seconds`, or cancellation.

    Raises:
        AddressUnavailable: the server's address is taken.
        BrokerUnavailable: nats-server is missing, or ended.
    """
    with end_signals() as signals:
        await _start_levels(plan, signals, console)


async def _start_levels(plan: UpPlan, signals: AsyncIterator[int], console: Console) -> None:
    async with trio.open_nursery() as broker_level:
        nats_url: str = (await broker_level.start(run_nats_server)).url
        async with trio.open_nursery() as publisher_level:
            publisher: Publisher = await publisher_level.start(
                publish,
                PublisherSettings(
                    address=Address("127.0.0.1", 0),
                    nats_urls=[nats_url],
                    rate=plan.rate,
                    tokens=plan.tokens,
                    events=plan.events,
                    shares=plan.shares,
                ),
            )
            await _serve_and_show(plan, nats_url, publisher, signals, console)
            publisher_level.cancel_scope.cancel(reason="the server has finished")
        broker_level.cancel_scope.cancel(reason="the publisher has finished")


async def _serve_and_show(
    plan: UpPlan,
    nats_url: str,
    publisher: Publisher,
    signals: AsyncIterator[int],
    console: Console,
) -> None:
    async with trio.open_nursery() as nursery:
        settings = plan.settings_for(nats_url)
        server: Server = await nursery.start(serve, settings)
        where = _where_to_connect(plan, settings, server, publisher, nats_url)
        console.print(where, soft_wrap=True)
        nursery.start_soon(
            partial(
                drain_on_signal,
                signals,
                server,
                stop=nursery.cancel_scope,
                after_seconds=plan.duration_seconds,
            )
        )
        nursery.start_soon(_show_live if console.is_terminal else _show_lines, server, console)
        await server.finished.wait()
        nursery.cancel_scope.cancel(reason="the server has finished")
    console.print(f"Stopped in order after {_counts(server)}.")


def _where_to_connect(
    plan: UpPlan, settings: Settings, server: Server, publisher: Publisher, nats_url: str
) -> RenderableType:
    here = server.addresses[0].connectable
    s = "" if settings.tls_cert is None else "s"
    channel = f"{plan.tokens[0]}.{plan.events[0]}"
    types = plan.events[0] if len(plan.events) == 1 else "*"
    facts = (
        *([("Page", f"http{s}://{here}/")] if settings.page == "on" else []),
        ("WebSocket", f"ws{s}://{here}/ws"),
        ("Open to", _who_can_connect(server)),
        ("Health", f"http{s}://{here}/health   /ready   /metrics"),
        *[("Operators", _top_command(one, settings)) for one in server.admin_addresses],
        ("Publisher", f"http://{publisher.address.connectable}/stats   /control"),
        ("NATS", f"{nats_url}   subjects odin.token.*.{types}"),
    )
    # Not a table, which would break what is to be copied at the end of a line.
    rows = [Text.assemble((f"  {what:9}", "bold"), f"  {where}") for what, where in facts]
    title = Text(f"trio-odin is up: {plan.rate:g} events a second of {_named(plan.tokens)}", "bold")
    hint = "Try in another terminal (Ctrl-C here ends everything)"
    watch = f"  trio-odin watch {channel} --url ws{s}://{here}/ws"
    if settings.jwt_keys is not None:
        watch += " --token-file FILE"
        hint += "; FILE has a token that WS_JWT_KEYS verifies"
    return Group("", title, "", *rows, "", Text(f"{hint}:"), "", Text(watch, "green"), "")


def _who_can_connect(server: Server) -> str:
    if all(is_loopback(address.host) for address in server.addresses):
        return "this machine alone; with --addr :PORT also to others"
    return "everybody who reaches this address; with --addr 127.0.0.1:PORT to this machine alone"


def _top_command(admin: Address, settings: Settings) -> str:
    """The command for another terminal, to be typed in any folder."""
    command = f"trio-odin top http://{admin.connectable}"
    file = settings.admin_token_file
    return command if file is None else f"{command} --token-file {quote(str(file.absolute()))}"


def _named(tokens: Sequence[str]) -> str:
    shown = ", ".join(tokens[:_TOKENS_SHOWN])
    return f"{shown}, …" if len(tokens) > _TOKENS_SHOWN else shown


def _counts(server: Server) -> str:
    ledger = server.ledger
    return (
        f"{ledger.publications.received} messages in, {ledger.deliveries.written} deliveries, "
        f"{ledger.traffic.accepted} connections in all"
    )


async def _show_live(server: Server, console: Console) -> None:
    """Show a small table that is updated in place."""
    rates = _Rates()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(_live_table(server, rates), refresh=True)
            await trio.sleep(_REFRESH_SECONDS)


async def _show_lines(server: Server, console: Console) -> None:
    """Print a line every few seconds, where the output is not a terminal."""
    while True:
        await trio.sleep(_LINE_EVERY_SECONDS)
        console.print(f"{server.connections} connected, {_counts(server)}")


class _Rates:
    """Messages and deliveries per second since the last reading."""

    def __init__(self) -> None:
        self._at = trio.current_time()
        self._counts = (0, 0)

    def read(self, received: int, written: int) -> tuple[float, float]:
        now = trio.current_time()
        seconds = max(now - self._at, 1e-3)
        before, self._counts, self._at = self._counts, (received, written), now
        return (received - before[0]) / seconds, (written - before[1]) / seconds


def _live_table(server: Server, rates: _Rates) -> Table:
    received = server.ledger.publications.received
    written = server.ledger.deliveries.written
    in_rate, out_rate = rates.read(received, written)
    table = Table.grid(padding=(0, 3))
    table.add_row("  connections", f"{server.connections}", "")
    table.add_row("  messages in", f"{received}", f"{in_rate:.0f}/s")
    table.add_row("  deliveries", f"{written}", f"{out_rate:.0f}/s")
    return table
