"""The incidents: what is done in each, and what every place has to show of it."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from tests.e2e.nats import nats_client
from tests.faults.attacker import Attacker
from tests.faults.cohort import fleet_plan
from tests.faults.incidents.expects import Expect, alert, amount, event, says, table
from tests.faults.incidents.site import CLIENTS, Site, site
from tests.faults.publisher import CHANNELS
from tests.faults.server import MIB
from tests.signing import SECRET, secret_signer
from trio_odin.lab.fleet.fleets import fleets
from trio_odin.lab.incidents import Place

_TOP, _SCREEN = Place.TOP, Place.SCREEN
_CONNECTIONS, _CHANNELS = Place.CONNECTIONS, Place.CHANNELS
_LOG, _EXPLAIN, _ALERT = Place.LOG, Place.EXPLAIN, Place.ALERT

_ALL = json.dumps({"type": "subscribe", "channels": CHANNELS})
_NOBODY_CLOSED: Final = "it is about connections that the server has closed, and there are none"
_SAME_CHANNELS: Final = "the channels are as busy as before"
_REFUSED_ARE_NOT_LISTED: Final = "refused clients are no connections"

Play = Callable[..., Awaitable[None]]


@attrs.frozen(kw_only=True)
class Scene:
    """One incident.

    Args:
        name, title, what_was_done, users, what_to_do, command: as in `Incident`.
        expects: what places have to show.
        blind: of all other places, why they do not.
        play: does it: `play(it, task_status)` reports its beginning, and goes on until cancelled.
        settings: of the server; may depend on a folder for files.
        sort: as `top --sort`.
        clients: that read, and come back.
        seconds: the most until everything has been seen.
    """

    name: str
    title: str
    what_was_done: str
    users: str
    what_to_do: str
    expects: Sequence[Expect]
    blind: Mapping[Place, str]
    play: Play
    settings: Callable[[Path], Awaitable[dict[str, str]]]
    sort: str = "queued_bytes"
    clients: int = CLIENTS
    seconds: float = 60.0

    @property
    def command(self) -> str:
        """What to type first."""
        return "trio-odin top" + ("" if self.sort == "queued_bytes" else f" --sort {self.sort}")


def usual(**settings: str) -> Callable[[Path], Awaitable[dict[str, str]]]:
    """These settings, whatever the folder."""

    async def given(_: Path) -> dict[str, str]:
        return settings

    return given


def _in(place: Place, what: str, holds: Callable[[Any], object]) -> Expect:
    """What is shown, if it holds of a JSON object; `holds` returns the part that shows it."""

    def sees(content: Any) -> str:
        found = holds(content)
        return "" if not found else what if found is True else f"{what}: {found}"

    return Expect(place, what, sees)


def _row(place: Place, what: str, title: str, holds: Callable[[dict[str, str]], bool]) -> Expect:
    """A row of a table of the screen."""

    def sees(text: str) -> str:
        row = next((one for one in table(text, title) if holds(one)), None)
        return "" if row is None else "  ".join(f"{name} {cell}" for name, cell in row.items())

    return Expect(place, what, sees)


# ---- a client that does not read

_SLOW = 20
_SLOW_STAY_SECONDS = 6


async def _do_not_read(
    it: Site, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    it.publisher.payload_bytes = 20_000
    task_status.started()
    async with trio.open_nursery() as nursery:
        for number in range(_SLOW):
            nursery.start_soon(_read_nothing, it, number % _SLOW_STAY_SECONDS)


async def _read_nothing(it: Site, delay: float) -> None:
    """Come, read nothing, be closed, and come back, as such clients do."""
    await trio.sleep(delay)
    while True:
        one = await it.attackers.tcp(receive_bytes=4096)
        if await one.upgrade() != 101:
            raise RuntimeError("a client was not let in")
        await one.say(_ALL)
        await trio.sleep(_SLOW_STAY_SECONDS)
        await one.stream.aclose()


_slow_client = Scene(
    name="slow-client",
    title="Slow clients",
    what_was_done=f"{_SLOW} clients subscribe to all channels and read nothing, while events of "
    "20 KB come, 20 a second; those that are closed come back",
    users="the slow ones are closed with 1008 and come back; nobody else notices",
    what_to_do="Take the connection's address, user and agent from `top`, or from the line in the "
    "log, and let `trio-odin explain` say what it did before. One kind of client: report it. "
    "All kinds: look at the network. See [SlowConsumers](alerts.md#slowconsumers).",
    expects=(
        _in(
            _TOP,
            "connections with 8 or more messages that wait",
            lambda c: sum(one["queued"] >= 8 for one in c["connections"]["connections"]),
        ),
        _row(_SCREEN, "rows with WAIT of 8 or more", "connections", lambda r: _is_at_least(r, 8)),
        _in(
            _CONNECTIONS,
            "connections with 8 or more messages that wait",
            lambda c: sum(one["queued"] >= 8 for one in c["connections"]),
        ),
        alert("SlowConsumers"),
        event("connection.evicted"),
        says(_EXPLAIN, "why it was closed", r"(It read too slowly|It had stopped reading).*"),
    ),
    blind={_CHANNELS: _SAME_CHANNELS},
    settings=usual(WS_OUTBOX_CAPACITY="64"),
    play=_do_not_read,
)


def _is_at_least(row: dict[str, str], waiting: int) -> bool:
    return amount(row["WAIT"]) >= waiting


# ---- a hot channel

_HOT, _TIMES = "T0.trade", 50


async def _heat(it: Site, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    task_status.started()
    await it.publish(_HOT, 2.0 * _TIMES, b'{"price":1}')


def _hot_of(channels: Sequence[Mapping[str, Any]]) -> str:
    """The first channel, if it is far above the second."""
    rates = [one["events_per_second"] for one in channels]
    is_hot = len(rates) > 1 and rates[0] > 10 * max(rates[1], 1.0)
    return f"{channels[0]['name']}, {rates[0]:.0f} a second" if is_hot else ""


_hot_channel = Scene(
    name="hot-channel",
    title="A hot channel",
    what_was_done=f"one symbol gets {_TIMES} times the events of each other",
    users="those who have this channel get that many events; slow ones among them are closed",
    what_to_do="The first row of `/channels` is the channel. If the events are wanted, let pages "
    "ask for a rate (`every_ms`); if not, inform its source. `WS_MAX_BROADCAST_RATE` is for all "
    "channels alike, so it is the last resort. See [HighCPUUsage](alerts.md#highcpuusage).",
    expects=(
        _in(
            _TOP,
            "the first channel has ten times the events of the second",
            lambda c: _hot_of(c["channels"]["channels"]),
        ),
        _row(
            _SCREEN,
            "the row of the channel",
            "channels",
            lambda r: r["CHANNEL"] == _HOT and amount(r["EVENTS/S"]) > 20,
        ),
        _in(
            _CHANNELS,
            "the first channel has ten times the events of the second",
            lambda c: _hot_of(c["channels"]),
        ),
    ),
    blind={
        _CONNECTIONS: "its clients have more messages, like all who have a busy channel",
        _ALERT: "no metric is by channel, as there may be thousands; only what follows from it "
        "has an alert: LoopBusy, SlowConsumers",
        _LOG: "a line for each busy channel would be a line for each message",
        _EXPLAIN: _NOBODY_CLOSED,
    },
    settings=usual(),
    play=_heat,
)


# ---- NATS is down


async def _stop_nats(
    it: Site, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    it.nats.stop()
    task_status.started()


_nats_down = Scene(
    name="nats-down",
    title="NATS is down",
    what_was_done="SIGKILL of nats-server",
    users="they stay connected and get no events",
    what_to_do="Start NATS; nothing else has to be restarted. "
    "See [NatsDisconnected](alerts.md#natsdisconnected).",
    expects=(
        _in(
            _TOP,
            "NATS is not connected",
            lambda c: (
                not c["overview"]["nats"]["is_connected"] and c["overview"]["nats"]["trouble"]
            ),
        ),
        says(_SCREEN, "NATS AWAY", r"NATS AWAY.*"),
        _in(
            _CHANNELS,
            "the newest event of every channel is older than 3 s",
            lambda c: (
                bool(c["channels"])
                and all((one["last_age_seconds"] or 0) > 3 for one in c["channels"])
            ),
        ),
        alert("NatsDisconnected"),
        event("nats.lost"),
    ),
    blind={_CONNECTIONS: "the connections are as before", _EXPLAIN: _NOBODY_CLOSED},
    settings=usual(),
    play=_stop_nats,
)


# ---- tokens expire

_WITH_TOKEN, _TOKEN_SECONDS = 20, 15.0


async def _with_keys(folder: Path) -> dict[str, str]:
    keys = folder / "keys"
    keys.write_bytes(SECRET)
    return {
        "WS_JWT_KEYS": str(keys),
        "WS_JWT_ALGORITHMS": "HS256",
        # Tokens are looked at with each ping.
        "WS_PING_INTERVAL": "1s",
    }


async def _let_expire(
    it: Site, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Clients whose tokens expire at one moment, and who come back with the same one."""
    bearer = f"Authorization: Bearer {secret_signer().token(sub='page', expires_in=_TOKEN_SECONDS)}"
    end = trio.current_time() + _TOKEN_SECONDS
    those = [await it.attackers.websocket(bearer) for _ in range(_WITH_TOKEN)]
    for one in those:
        await one.say(_ALL)
    async with trio.open_nursery() as nursery:
        for one in those:
            nursery.start_soon(_come_back, it, one, bearer)
        await trio.sleep_until(end)
        task_status.started()


async def _come_back(it: Site, one: Attacker, bearer: str) -> None:
    code = await one.close_code(_TOKEN_SECONDS + 10)
    if code != 4001:
        raise RuntimeError(f"closed with {code} instead of 4001")
    while True:
        await _be_refused(it, bearer, 401)
        await trio.sleep(1)


async def _be_refused(it: Site, header: str, status: int) -> None:
    """Try to connect with this header, which has to be answered with this status."""
    one = await it.attackers.tcp()
    answered = await one.upgrade(header)
    if answered != status:
        raise RuntimeError(f"{header.partition(':')[0]}: answered with {answered}, not {status}")
    await one.stream.aclose()


_token_expired = Scene(
    name="token-expired",
    title="Tokens expire and are not renewed",
    what_was_done=f"{_WITH_TOKEN} clients whose tokens expire at one moment are closed with 4001, "
    "and each comes back every second with the same token",
    users="they are closed with 4001, and get a 401 until they bring a new token",
    what_to_do="The line `handshake.refused` has what is wrong. Ask those who issue tokens: is "
    "their service up, and do clients renew in time (command `token`)? A key that was replaced "
    "needs SIGHUP. See [HandshakesRefused](alerts.md#handshakesrefused).",
    expects=(
        _in(
            _TOP,
            "closed for token_expired, and rejected for unauthorized",
            lambda c: (
                c["overview"]["clients"]["closed"].get("token_expired", 0) > 0
                and c["overview"]["clients"]["rejected"].get("unauthorized", 0)
            ),
        ),
        says(_SCREEN, "refused (unauthorized)", r"refused \S+ \(unauthorized\)"),
        _in(_CONNECTIONS, "none of the connections is left", lambda c: c["total"] == 0),
        _in(
            _CHANNELS,
            "no channel has a subscriber",
            lambda c: not any(one["subscribers"] for one in c["channels"]),
        ),
        alert("HandshakesRefused", reason="unauthorized"),
        event("handshake.refused", reason="unauthorized"),
    ),
    blind={_EXPLAIN: "a close for an expired token is a line at debug only, as many as clients"},
    settings=_with_keys,
    play=_let_expire,
    clients=0,
)


# ---- a client that subscribes more and more

_MOST_CHANNELS = 256


async def _subscribe_more(
    it: Site, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    one = await it.attackers.websocket()
    task_status.started()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.end_of_stream, 600)
        for number in range(0, 2 * _MOST_CHANNELS, 8):
            names = [f"LEAK{number + more}.trade" for more in range(8)]
            await one.say(json.dumps({"type": "subscribe", "channels": names}))
            await trio.sleep(0.2)


def _most_channels(rows: Sequence[Mapping[str, Any]]) -> str:
    most = max(rows, key=lambda one: one["channels"], default=None)
    if most is None or most["channels"] < _MOST_CHANNELS:
        return ""
    return f"{most['id']} from {most['address']} with {most['channels']}"


_leak = Scene(
    name="leak",
    title="A client that never unsubscribes",
    what_was_done="one client subscribes to 40 more channels a second and leaves none",
    users=f"this client gets an error from {_MOST_CHANNELS} channels on; nobody else notices",
    what_to_do="`top --sort channels` has the client in its first row; Enter shows its "
    "channels. `WS_MAX_CHANNELS` holds it, so report it to whoever makes the client.",
    expects=(
        _in(
            _TOP,
            "a connection with all channels that are allowed",
            lambda c: _most_channels(c["connections"]["connections"]),
        ),
        _row(
            _SCREEN,
            "the first row with all channels that are allowed",
            "connections",
            lambda r: amount(r["CH"]) >= _MOST_CHANNELS,
        ),
        _in(
            _CONNECTIONS,
            "a connection with all channels that are allowed",
            lambda c: _most_channels(c["connections"]),
        ),
        _in(
            _CHANNELS,
            "far more channels than before",
            lambda c: f"{c['total']} channels" if c["total"] > 200 else "",
        ),
    ),
    blind={
        _ALERT: "the limit holds it: one client cannot do harm by it; "
        "`ws_subscription_count_per_client` shows it in Grafana",
        _LOG: "refused commands are answered to the client, and have no line",
        _EXPLAIN: _NOBODY_CLOSED,
    },
    settings=usual(),
    play=_subscribe_more,
    sort="channels",
)


# ---- everybody comes at once

_STORM, _ROOM = 3000, 800


async def _storm_in(
    it: Site, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    plan = attrs.evolve(
        fleet_plan(it.server.port, _STORM, channels=1), in_flight=2000, reconnect_seconds=1.0
    )
    async with fleets([plan]) as crowd:
        task_status.started()
        await crowd.connect()
        await trio.sleep_forever()


_storm = Scene(
    name="storm",
    title="Everybody comes back at once",
    what_was_done=f"{_STORM:,} clients connect at once, again and again, to a server with room for "
    f"{_ROOM}, which accepts 100 a second with each of its two workers",
    users="some get a 503 and try again; open connections are served",
    what_to_do="If it is one storm, wait: it passes. If clients are refused for longer, there is "
    "too little room. See [ConnectionRejections](alerts.md#connectionrejections).",
    expects=(
        _in(
            _TOP,
            "rejected for at_capacity",
            lambda c: c["overview"]["clients"]["rejected"].get("at_capacity", 0),
        ),
        says(_SCREEN, "refused (at_capacity)", r"refused \S+ \(at_capacity.*?\)"),
        _in(_CONNECTIONS, "as many as there is room for", lambda c: c["total"] >= _ROOM),
        _in(
            _CHANNELS,
            "five times the subscribers",
            lambda c: max((one["subscribers"] for one in c["channels"]), default=0) > 75,
        ),
        alert("ConnectionRejections", reason="at_capacity"),
        event("handshake.refused", reason="at_capacity"),
    ),
    blind={_EXPLAIN: _NOBODY_CLOSED},
    settings=usual(WS_MAX_CONNECTIONS=str(_ROOM), WS_ACCEPT_RATE="100"),
    play=_storm_in,
)


# ---- a worker dies, again and again

_KILLS, _BETWEEN_KILLS_SECONDS = 5, 4.0


async def _kill_workers(
    it: Site, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    task_status.started()
    for _ in range(_KILLS):
        if workers := it.server.workers():
            os.kill(workers[0], signal.SIGKILL)
        await trio.sleep(_BETWEEN_KILLS_SECONDS)


_worker_dead = Scene(
    name="worker-dead",
    title="A worker dies again and again",
    what_was_done=f"SIGKILL of one of two workers, {_KILLS} times, one every "
    f"{_BETWEEN_KILLS_SECONDS:.0f} s; its clients come back",
    users="those of that worker are disconnected each time and come back to the other",
    what_to_do="The line `worker.ended` says how it ended: signal 9 is mostly the kernel, for "
    "memory. See [ServerRestarts](alerts.md#serverrestarts) and "
    "[WorkerMissing](alerts.md#workermissing).",
    expects=(
        _in(
            _TOP,
            "restarts of workers",
            lambda c: c["overview"]["workers"]["restarts"],
        ),
        says(_SCREEN, "workers … restarts", r"workers \d of 2, \d+ restarts?"),
        _in(
            _CONNECTIONS,
            "fewer connections than clients",
            lambda c: f"{c['total']} of {CLIENTS}" if c["total"] < CLIENTS else "",
        ),
        _in(
            _CHANNELS,
            "fewer subscribers than before",
            lambda c: max((one["subscribers"] for one in c["channels"]), default=0) < 15,
        ),
        alert("ServerRestarts"),
        event("worker.ended"),
    ),
    blind={_EXPLAIN: "a worker that is killed writes no line about its connections"},
    settings=usual(),
    play=_kill_workers,
)


# ---- the disk of the log is full

_FULL_SECONDS = 15.0


async def _fill_disk(
    it: Site, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """The file of the log may grow no more, for all processes; after a while it may again."""
    pids = it.server.pids()
    unlimited = resource.prlimit(pids[0], resource.RLIMIT_FSIZE)
    size = it.server.log.stat().st_size
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, unlimited[1]))
    task_status.started()
    await trio.sleep(_FULL_SECONDS)
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)


_log_full = Scene(
    name="log-full",
    title="The disk of the log is full",
    what_was_done="the file of the log may grow no more (a limit of the processes, which gives an "
    f"error of a write as a full disk does), and {_FULL_SECONDS:.0f} s later it may again",
    users="they do not notice",
    what_to_do="Make room. Lines that were lost are counted, and nothing has to be restarted. "
    "See [LogLinesDropped](alerts.md#loglinesdropped).",
    expects=(
        _in(_TOP, "lost lines of the log", lambda c: c["overview"]["log"]["lines_dropped"]),
        says(_SCREEN, "log lines lost", r"log lines lost \S+"),
        alert("LogLinesDropped"),
        event("log.dropped"),
    ),
    blind={
        _CONNECTIONS: "clients do not notice",
        _CHANNELS: "clients do not notice",
        _EXPLAIN: _NOBODY_CLOSED,
    },
    settings=usual(METRICS_INTERVAL="1s"),
    play=_fill_disk,
)


# ---- a wrong origin

_ORIGIN = "https://new.example"


async def _come_from_elsewhere(
    it: Site, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    task_status.started()
    while True:
        await _be_refused(it, f"Origin: {_ORIGIN}", 403)
        await trio.sleep(0.1)


_wrong_origin = Scene(
    name="wrong-origin",
    title="A page of another origin",
    what_was_done="pages of an origin that WS_ALLOWED_ORIGINS does not name, ten a second, as "
    "after a move of the page to a new name",
    users="those pages get a 403, and nobody can connect from them; open connections are served",
    what_to_do="The line `handshake.refused` has the origin. Is it yours, as after a move? Then "
    "add it to `WS_ALLOWED_ORIGINS` and send SIGHUP. "
    "See [HandshakesRefused](alerts.md#handshakesrefused).",
    expects=(
        _in(
            _TOP,
            "rejected for origin",
            lambda c: c["overview"]["clients"]["rejected"].get("origin", 0),
        ),
        says(_SCREEN, "refused (origin)", r"refused \S+ \(origin\)"),
        alert("HandshakesRefused", reason="origin"),
        event("handshake.refused", reason="origin", origin=_ORIGIN),
    ),
    blind={
        _CONNECTIONS: _REFUSED_ARE_NOT_LISTED,
        _CHANNELS: _REFUSED_ARE_NOT_LISTED,
        _EXPLAIN: _NOBODY_CLOSED,
    },
    settings=usual(WS_ALLOWED_ORIGINS="https://app.example"),
    play=_come_from_elsewhere,
)


# ---- memory runs out

_HEADROOM = 0.72
_LARGE = b'"%b"' % (b"x" * 60_000)
_LARGE_EVENTS = 4000


async def _measured_limit(folder: Path) -> dict[str, str]:
    """A limit little above what a server of this drill holds."""
    before = folder / "before"
    before.mkdir()
    async with site(before, {"WS_SNAPSHOT_BYTES": str(512 * MIB)}) as it:
        held = it.server.footprint().mib * MIB
    return {
        "WS_MEMORY_LIMIT": str(int(held / _HEADROOM)),
        "WS_SNAPSHOT_BYTES": str(512 * MIB),
        "WS_REPLAY_BYTES": "1024",
    }


async def _fill_memory(
    it: Site, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """The newest event of each channel is kept, so large events of new channels fill memory."""
    task_status.started()
    async with nats_client(it.nats.url) as client, trio.open_nursery() as nursery:
        nursery.start_soon(_try_to_connect, it)
        for number in range(_LARGE_EVENTS):
            await client.publish(f"odin.token.BIG{number}.trade", _LARGE)
            await trio.sleep(0.02)


async def _try_to_connect(it: Site) -> None:
    while True:
        one = await it.attackers.tcp()
        await one.upgrade()
        await one.stream.aclose()
        await trio.sleep(0.5)


_memory = Scene(
    name="memory",
    title="Memory runs out",
    what_was_done="large events of ever more channels, whose newest ones are kept, at a "
    "WS_MEMORY_LIMIT little above what the server held before; clients come, two a second",
    users="from 85 % on new ones get a 503; from 95 % on nobody gets events",
    what_to_do="Find out what grows: what waits for slow clients (`waiting` in `top`), "
    "connections, or what is kept (`WS_SNAPSHOT_BYTES`, `WS_REPLAY_BYTES`). "
    "See [HighMemoryUsage](alerts.md#highmemoryusage).",
    expects=(
        _in(
            _TOP,
            "refusing_for memory, and all events are shed",
            lambda c: (
                "memory" in c["overview"]["load"]["refusing_for"]
                and c["overview"]["load"]["shed_percent"] == 100
            ),
        ),
        says(_SCREEN, "refused (memory), shed 100 %", r"refused \S+ \(memory[\s\S]*shed 100 %"),
        _in(
            _CHANNELS,
            "far more channels than before",
            lambda c: f"{c['total']} channels" if c["total"] > 100 else "",
        ),
        alert("HighMemoryUsage"),
        event("shedding.began"),
    ),
    blind={
        _CONNECTIONS: "the connections are as before",
        _EXPLAIN: _NOBODY_CLOSED,
    },
    settings=_measured_limit,
    play=_fill_memory,
    seconds=90.0,
)


SCENES: Final[Sequence[Scene]] = (
    _slow_client,
    _hot_channel,
    _nats_down,
    _token_expired,
    _leak,
    _storm,
    _worker_dead,
    _log_full,
    _wrong_origin,
    _memory,
)
