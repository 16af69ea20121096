"""The plan of a load."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Set
from urllib.parse import urlsplit, urlunsplit

import attrs

from trio_odin.lab.fleet.limits import LoadImpossible
from trio_odin.lab.fleet.workload import Workload
from trio_odin.wire.channels import CHANNEL_RULE, is_channel

RECONNECT_SECONDS = 1.0
CHURNING_SHARE = 0.2


@attrs.frozen(kw_only=True)
class LoadPlan:
    """The phases of a load, in this order; a phase of 0 seconds is left out.

    Args:
        url: of the server, ws:// or wss://.
        connections: number of connections, 1 or more.
        workload: subscriptions of each connection.
        ramp_per_second: connects a second; 0: as fast as possible, 200 handshakes at a time.
        idle_seconds: time without events, in which the server's idle cost is measured.
        hold_seconds: time in which events are received and checked.
        is_cut: after the hold all connections are cut at once and come back, and events continue
            for `after_seconds`.
        reconnects: lost connections come back, each after a random part of a second.
        churn_per_second: connections replaced in order each second while events are received; a
            fifth of all take part.
        rate: events a second requested from the publisher.
        publisher_url: of its control; None: somebody else controls the publisher.
        processes: least number of client processes.
        dialect: protocol of the server, a key of `DIALECTS`.
        kind: of the events, a key of `KINDS`.
        encoding: of the events on the wire, one of `ENCODINGS`.
        authority: file of the authorities to trust with `wss`, in PEM; empty: those of the system.
        is_sampled: take a sample each second. False: one sample at the end of the idle time and of
            the hold, as sampling disturbs a publisher in this process.
        health_url: the server's /health, with /metrics beside it; None: its figures stay unknown.
    """

    url: str = "ws://127.0.0.1:3002/ws"
    connections: int
    workload: Workload
    ramp_per_second: float = 0.0
    idle_seconds: float = 0.0
    hold_seconds: float
    is_cut: bool = False
    after_seconds: float = 10.0
    reconnects: bool = False
    churn_per_second: float = 0.0
    rate: float | None = None
    publisher_url: str | None = None
    processes: int = 1
    dialect: str = "odin"
    kind: str = "market"
    encoding: str = "plain"
    authority: str = ""
    is_sampled: bool = True
    health_url: str | None = attrs.field(
        default=attrs.Factory(lambda plan: health_beside(plan.url), takes_self=True)
    )

    @property
    def metrics_url(self) -> str | None:
        """The URL of /metrics, beside /health."""
        if self.health_url is None:
            return None
        parts = urlsplit(self.health_url)
        folder = parts.path.rpartition("/")[0]
        return urlunsplit((parts.scheme, parts.netloc, f"{folder}/metrics", "", ""))

    @property
    def churners(self) -> int:
        """The number of connections that take part in the churn."""
        return max(1, int(self.connections * CHURNING_SHARE)) if self.churn_per_second else 0

    @property
    def reconnect_seconds(self) -> float:
        """The longest wait before a reconnect, for the fleets."""
        return RECONNECT_SECONDS if self.reconnects or self.is_cut else 0.0

    def check(self) -> None:
        """Refuse a plan that no machine can carry out.

        Raises:
            LoadImpossible: the message names the wrong value and says what is allowed.
        """
        for sentence in (*self._wrong_names(), *self._wrong_numbers()):
            raise LoadImpossible(sentence)

    def _wrong_names(self) -> Iterator[str]:
        if not is_address(self.url, {"ws", "wss"}):
            yield f"{self.url!r} is no address like ws://127.0.0.1:3002/ws"
        for what, url, example in (
            ("server's health page", self.health_url, "http://127.0.0.1:3002/health"),
            ("publisher", self.publisher_url, "http://127.0.0.1:3003"),
        ):
            if url is not None and not is_address(url, {"http", "https"}):
                yield f"{url!r} is no address of a {what}, like {example}"
        for channel in self.workload.channels:
            if not is_channel(channel):
                yield f"{channel!r} is no channel: {CHANNEL_RULE}"

    def _wrong_numbers(self) -> Iterator[str]:
        total, each = len(self.workload.channels), self.workload.channels_per_connection
        if not total:
            yield "no channels: allowed is 1 or more"
        if not 1 <= each <= total:
            yield f"{each} channels a connection: with {total} tokens, allowed is 1 to {total}"
        for count, what in ((self.connections, "connections"), (self.processes, "processes")):
            if count < 1:
                yield f"{count} {what}: allowed is 1 or more"
        for number, what in (
            (self.hold_seconds, "hold of {:g} seconds"),
            (self.idle_seconds, "idle of {:g} seconds"),
            (self.after_seconds, "after of {:g} seconds"),
            (self.ramp_per_second, "ramp of {:g} a second"),
            (self.churn_per_second, "churn of {:g} a second"),
        ):
            if not 0 <= number < math.inf:
                yield f"{what.format(number)}: allowed is a number, 0 or more"
        yield from self._wrong_rates()
        if self.rate is not None and not 0 < self.rate < math.inf:
            yield f"rate of {self.rate:g} a second: allowed is a number above 0"
        if self.churn_per_second and self.connections < 2:
            yield (
                f"churn of {self.churn_per_second:g} a second with {self.connections} connections: "
                "allowed is 2 connections or more"
            )

    def _wrong_rates(self) -> Iterator[str]:
        every_ms = self.workload.every_ms
        if every_ms < 0:
            yield f"an update every {every_ms} ms: allowed is 0 or more"
        if every_ms and not self.workload.is_filtered:
            yield f"an update every {every_ms} ms without a subscription: a rate belongs to one"
        if every_ms and self.is_cut:
            yield f"an update every {every_ms} ms with a cut: then it is unknown what is missing"


def is_address(url: str, schemes: Set[str]) -> bool:
    """Whether it is a URL of one of these schemes, with a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an impossible port, or brackets around something other than IPv6
        return False


def health_beside(url: str) -> str:
    """The health page of a WebSocket's server; `LoadPlan` checks whether `url` is a WebSocket."""
    scheme, _, rest = url.partition("://")
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    return f"{'https' if scheme == 'wss' else 'http'}://{host}/health"
