"""The plan's users over two nodes: a rolling restart in the middle of their day.

`nox -s ops -- -k plan --users 20000` is the plan's number. A process may have 20,000 files open on
some machines, so there is a HAProxy, and a `trio-odin load`, for each 6,700 of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.nats import free_port
from tests.ops.nodes import Proxy, Site, site
from tests.ops.prometheus import running
from tests.ops.rehearsing import Rehearse
from trio_odin.lab.rehearsals import Rehearsal

pytestmark = pytest.mark.ops

_USERS = 2000
_USERS_OF_A_PROXY = 6700
_TOKENS = 200
_EVENTS_PER_SECOND = 12
_MIX = "home=0.5,token=0.5"  # the plan's average: 15.5 channels a user
_CONNECTS_PER_SECOND = 1000
_BEFORE_SECONDS = 10.0


def _market(it: Site) -> AbstractContextManager[None]:
    """The plan's events."""
    command = [sys.executable, "-m", "trio_odin", "publish", f"--addr=127.0.0.1:{free_port()}"]
    command += [f"--nats={it.nodes[0].nats_url}", f"--rate={_EVENTS_PER_SECOND}"]
    return running([*command, f"--tokens={_TOKENS}"], it.folder, "publisher")


async def _load(it: Site, proxy: Proxy, users: int, hold: float, seed: int) -> dict[str, Any]:
    """What `trio-odin load` found; its exit code is 1, as events are missed by who is away."""
    path = it.folder / f"load-{seed}.json"
    command = [sys.executable, "-m", "trio_odin", "load", f"ws://127.0.0.1:{proxy.port}/ws"]
    command += [f"--connections={users}", f"--tokens={_TOKENS}", f"--mix={_MIX}", "--reconnect"]
    command += [f"--ramp={_CONNECTS_PER_SECOND / 3:.0f}", f"--hold={hold}", f"--seed={seed}"]
    command += [f"--health-url={it.nodes[0].admin.url('/health')}", f"--json={path}"]
    done = await trio.run_process(
        command, check=False, capture_stdout=True, stderr=subprocess.STDOUT
    )
    assert done.returncode in (0, 1), done.stdout.decode()
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


async def test_the_plans_users_and_a_rolling_restart(
    tmp_path: Path, rehearse: Rehearse, request: pytest.FixtureRequest
) -> None:
    users = request.config.getoption("--users", default=None) or _USERS
    row = rehearse(
        "migration",
        f"{users:,} users over two nodes",
        f"rolling.py while `trio-odin load` holds them: 15.5 channels each, {_EVENTS_PER_SECOND} "
        "events a second; nodes of 2 workers",
    )
    # Each node has to hold all of them, while the other one is away; and files are by process.
    room = str(users + 500)
    hold = _BEFORE_SECONDS + _back_seconds(users) + 40 + users / 250
    async with site(tmp_path, WS_MAX_CONNECTIONS=room, WS_WORKERS="2") as it:
        with _market(it):
            async with _proxies(it, -(-users // _USERS_OF_A_PROXY)) as proxies:
                loads = await _roll_under_load(it, proxies, users, hold, row)
        _check(row, loads, users)
        await it.check_balance()


@asynccontextmanager
async def _proxies(it: Site, count: int) -> AsyncIterator[list[Proxy]]:
    """So many of them, all before the same two nodes."""
    more = [Proxy(it.folder, it.nodes) for _ in range(count - 1)]
    try:
        for proxy in more:
            proxy.start()
            await proxy.wait_up()
        yield [it.proxy, *more]
    finally:
        for proxy in more:
            proxy.kill()


async def _roll_under_load(
    it: Site, proxies: Sequence[Proxy], users: int, hold: float, row: Rehearsal
) -> list[dict[str, Any]]:
    loads: list[dict[str, Any]] = []

    async def one(number: int, proxy: Proxy) -> None:
        share = users // len(proxies) + (number < users % len(proxies))
        loads.append(await _load(it, proxy, share, hold, number))

    async with trio.open_nursery() as nursery:
        for number, proxy in enumerate(proxies):
            nursery.start_soon(one, number, proxy)
        await _wait_connected(proxies, users, 60 + users / 100)
        row.notes.append(f"connected to {' and '.join(await _shares(proxies))}")
        await trio.sleep(_BEFORE_SECONDS)
        begun = trio.current_time()
        code, said = await it.roll("--pause=5", proxies=proxies)
        row.seconds = trio.current_time() - begun
        assert code == 0, said
        await _wait_connected(proxies, users, _back_seconds(users))
        row.notes.append(f"afterwards {' and '.join(await _shares(proxies))}")
    return loads


def _back_seconds(users: int) -> float:
    """How long the last of them may take to be back after the last restart."""
    return 10 + users / 400


async def _wait_connected(proxies: Sequence[Proxy], users: int, seconds: float) -> None:
    connected = 0
    with trio.move_on_after(seconds):
        while (connected := await _connected(proxies)) < users:
            await trio.sleep(0.2)
    assert connected >= users, f"{connected:,} of {users:,} are connected after {seconds:.0f} s"


async def _connected(proxies: Sequence[Proxy]) -> int:
    return sum([sum(await proxy.connections()) for proxy in proxies])


async def _shares(proxies: Sequence[Proxy]) -> list[str]:
    """Connections of each node, over all proxies."""
    each = [await proxy.connections() for proxy in proxies]
    return [f"{sum(counts):,}" for counts in zip(*each, strict=True)]


def _check(row: Rehearsal, loads: Sequence[dict[str, Any]], users: int) -> None:
    def total(name: str) -> int:
        return sum(load[name] for load in loads)

    row.users = total("connected")
    row.refused = sum(sum(load["rejections"].values()) for load in loads)
    row.refused += sum(sum(load["failures"].values()) for load in loads)
    row.sent_away = sum(load["reconnects"]["back"] for load in loads)
    row.away_p50_ms = max(load["reconnects"]["ms"]["p50_ms"] for load in loads)
    row.away_max_ms = max(load["reconnects"]["ms"]["max_ms"] for load in loads)
    row.missed = total("lost")
    row.lost = total("gaps")
    row.repeated = total("repeated")
    ends = {reason for load in loads for reason in load["disconnects"]}
    row.notes.append(f"p99 {max(load['latency']['p99_ms'] for load in loads):,.0f} ms")
    assert row.users == users
    assert row.refused == 0, [(load["rejections"], load["failures"]) for load in loads]
    assert sum(load["reconnects"]["lost"] for load in loads) == row.sent_away >= users
    assert row.lost == 0, "an event was lost while connected"
    assert all(end.startswith("1001") for end in ends), ends
