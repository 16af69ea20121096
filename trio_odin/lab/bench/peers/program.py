"""The frame of every peer: options, feed, the line that announces its address, and its end.

run(serve)                  ends in order at SIGTERM or SIGINT, with exit code 0
├── signals
├── feed                    NATS → channel
└── serve                   the peer: channel → WebSockets
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import click
import trio

from trio_odin.lab.bench.peers.feed import Feed, run_feed
from trio_odin.net.address import Address
from trio_odin.overload.process import raise_file_limit, settle_garbage_collector


def run(serve: Callable[..., Awaitable[Any]]) -> None:
    """Read the command line and run `serve` until a signal; then exit.

    Args:
        serve: takes a feed, the address to listen on, and a counter by reason of undelivered
            events; starts with its actual address, and runs until cancelled.
    """

    @click.command()
    @click.option("--nats", "nats_url", required=True, help="URL of the NATS server.")
    @click.option("--addr", default="127.0.0.1:0", help="Address to listen on.")
    def command(nats_url: str, addr: str) -> None:
        try:
            address = Address.parse(addr)
        except ValueError as error:
            raise click.BadParameter(f"--addr {addr!r} is not {error}") from error
        raise_file_limit()
        trio.run(_main, serve, nats_url, address)

    command()


async def _main(serve: Callable[..., Awaitable[Any]], nats_url: str, address: Address) -> None:
    dropped: Counter[str] = Counter()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at_signal, signals, nursery.cancel_scope)
            feed: Feed = await nursery.start(run_feed, nats_url, dropped)
            bound: Address = await nursery.start(serve, feed, address, dropped)
            settle_garbage_collector()
            click.echo(f"listening on {bound}")
    for why, count in (+dropped).items():
        click.echo(f"dropped {count}: {why}", err=True)


async def _cancel_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel(reason="a signal")
