"""`trio-odin publish`."""

from __future__ import annotations

from functools import partial

import click
import trio

from trio_odin.cli.common import (
    NumberRange,
    fail,
    flag,
    nats_access_of,
    run,
    settings_from,
    start_logs,
)
from trio_odin.cli.market import events_option, rate_option, shares_option, tokens_option
from trio_odin.demo.publisher import PublisherSettings, publish
from trio_odin.demo.shares import Shares
from trio_odin.net.listening import Address
from trio_odin.signals import end_signals


@click.command("publish", short_help="Publish a simulated market to NATS.")
@click.option("--addr", default=":3003", show_default=True, help="Address of the HTTP control API.")
@flag("--nats")
@rate_option
@tokens_option
@events_option
@shares_option("even")
@click.option(
    "--trace",
    "traced_share",
    type=NumberRange(min=0, max=1),
    metavar="SHARE",
    default=0.0,
    show_default=True,
    help="Share of the events, from 0 to 1, that get a sampled traceparent header, for a server "
    "with OTEL_EXPORTER_OTLP_ENDPOINT.",
)
@click.option("--idle", is_flag=True, help="Wait for POST /control instead of publishing at once.")
@flag("--log-level")
@flag("--log-format")
def publish_command(
    addr: str,
    rate: float,
    tokens: list[str],
    events: tuple[str, ...],
    shares: Shares,
    *,
    traced_share: float,
    idle: bool,
    **flags: str | None,
) -> None:
    """Publish a simulated market to NATS, under HTTP control.

    Events go to odin.token.SYMBOL.TYPE on an open-loop schedule: a late event does not delay the
    ones after it. --rate is the sum over all tokens and types. POST /control starts, stops and
    configures; GET /stats and /health report:

    \b
      curl localhost:3003/control -d '{"action":"configure","messagesPerSecond":25}'

    Start prices follow from the names of tokens. A believable market, with candles and all:

    \b
      trio-odin publish --tokens 30 --shares zipf --events all
    """  # noqa: D301 - click needs the character, not the backslash
    settings = settings_from(flags)
    start_logs(settings)
    plan = PublisherSettings(
        address=_address(addr),
        nats_urls=settings.nats_urls,
        access=nats_access_of(settings),
        rate=rate,
        tokens=tokens,
        events=events,
        shares=shares,
        autostart=not idle,
        traced_share=traced_share,
    )
    run(partial(_publish_until_signalled, plan))


async def _publish_until_signalled(plan: PublisherSettings) -> None:
    with end_signals() as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(publish, plan)
            await anext(signals)
            nursery.cancel_scope.cancel(reason="signal")


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        fail(f"--addr {text!r}: allowed is {error}")
