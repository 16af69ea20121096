"""The shipped rules and routes with a real server, NATS, Prometheus and Alertmanager."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import promql_parser
import pytest
import trio
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.trio.client import ClientConnection, connect

from tests.e2e.nats import NatsServer, free_port, nats_client, running_nats
from tests.faults.attacker import Attackers
from tests.faults.server import ServerProcess, serving
from tests.ops.alerting import INSTANCE, Alerting, alerting
from tests.ops.conftest import ROOT
from tests.ops.prometheus import RUNBOOKS_URL
from tests.ops.promql import selectors
from tests.ops.rules import ALERTS, RECORDED, is_of_haproxy
from tests.ops.tools import require
from tests.waiting import until_answer, wait_until

pytestmark = pytest.mark.ops

_CHANNEL = "BTC.trade"
_EVENT_SECONDS = 0.05
_EVENTS_MAX = 4000
_SLOW_CLIENTS = 20
_SETTINGS = """\
WS_MAX_CONNECTIONS=40
# As tight as the test wants it; the machine is busy with other tests.
WS_CPU_REJECT_THRESHOLD=0
WS_CPU_PAUSE_THRESHOLD=0
WS_LAG_REJECT_MS=0
WS_OUTBOX_CAPACITY=32
"""


@attrs.define
class Watched:
    """All that runs. `payload_bytes` is the size of the next events; 0: none are published."""

    nats: NatsServer
    server: ServerProcess
    watch: Alerting
    settings: Path
    payload_bytes: int = 0

    async def publish(self) -> None:
        """Publish until cancelled, but for when NATS is away."""
        for number in range(_EVENTS_MAX):
            try:
                async with nats_client(self.nats.url) as client:
                    while True:
                        await trio.sleep(_EVENT_SECONDS)
                        payload = json.dumps({"number": number, "pad": "x" * self.payload_bytes})
                        if self.payload_bytes:
                            await client.publish(f"odin.token.{_CHANNEL}", payload.encode())
            except (OSError, AssertionError, trio.BrokenResourceError, trio.TooSlowError):
                continue


@asynccontextmanager
async def _site(folder: Path, nursery: trio.Nursery) -> AsyncIterator[Watched]:
    admin = free_port()
    settings = folder / "ws.env"
    settings.write_text(_SETTINGS)
    variables: dict[str, Any] = {
        "WS_ADMIN_ADDR": f"127.0.0.1:{admin}",
        "WS_RELOAD_FILE": str(settings),
    }
    async with AsyncExitStack() as stack:
        nats = stack.enter_context(running_nats(folder / "nats"))
        server = await stack.enter_async_context(serving(folder, nats.url, **variables))
        watch = await stack.enter_async_context(alerting(folder, admin))
        site = Watched(nats, server, watch, settings, payload_bytes=100)
        nursery.start_soon(site.publish)
        await until_answer(partial(_is_up, watch), what="the server is scraped")
        yield site


async def _is_up(watch: Alerting) -> bool:
    return await watch.prometheus.values(f'up{{job="ws", instance="{INSTANCE}"}}') == [1]


async def _has_value(watch: Alerting, query: str) -> bool:
    return bool(await watch.prometheus.values(query))


@pytest.fixture
async def site(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Watched]:
    require("prometheus", "prometheus-alertmanager", "amtool")
    async with _site(tmp_path, nursery) as site:
        yield site
        nursery.cancel_scope.cancel(reason="the test is over")


async def _subscribe(site: Watched, nursery: trio.Nursery) -> None:
    async def read(client: ClientConnection) -> None:
        with suppress(ConnectionClosed):  # the server may be killed
            async for _ in client:
                pass

    client = await nursery.start(_connected, site.server.port)
    await client.send(json.dumps({"type": "subscribe", "channels": [_CHANNEL]}))
    nursery.start_soon(read, client)


async def _connected(
    port: int, *, task_status: trio.TaskStatus[ClientConnection] = trio.TASK_STATUS_IGNORED
) -> None:
    async with connect(f"ws://127.0.0.1:{port}/ws") as client:
        task_status.started(client)
        await trio.sleep_forever()


async def test_every_rule_finds_its_figures_and_nothing_fires_under_a_small_load(
    site: Watched, nursery: trio.Nursery
) -> None:
    await _subscribe(site, nursery)
    queries = [*RECORDED]
    for rule in (*RECORDED.values(), *ALERTS.values()):
        if is_of_haproxy(rule["expr"]):
            continue  # see test_haproxy_alerts.py
        queries += [one.prettify() for one in selectors(promql_parser.parse(rule["expr"]))]
    for query in queries:
        await until_answer(partial(_has_value, site.watch, query), what=f"{query} has a value")
    groups = (await site.watch.prometheus.ask("rules"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(RECORDED) + len(ALERTS)
    assert {(rule["health"], rule.get("lastError", "")) for rule in rules} == {("ok", "")}
    assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == ["Watchdog"]
    webhook = site.watch.webhook
    await wait_until(lambda: len(webhook.pulses) > 1, what="the watchdog twice")
    assert webhook.pulses[0]["labels"] == {"alertname": "Watchdog", "severity": "none"}
    assert webhook.told == []


async def test_nats_that_goes_and_comes_back_is_told_once_with_its_runbook(
    site: Watched, nursery: trio.Nursery
) -> None:
    await _subscribe(site, nursery)
    site.nats.stop()
    alert = await site.watch.webhook.hear("NatsDisconnected")
    assert alert["labels"]["instance"] == INSTANCE
    assert alert["labels"]["severity"] == "critical"
    assert alert["annotations"] == ALERTS["NatsDisconnected"]["annotations"] | {
        "summary": f"{INSTANCE}: no connection to NATS",
        "runbook_url": f"{RUNBOOKS_URL}#natsdisconnected",
    }
    assert "runbooks" not in alert["labels"]
    # Nothing comes from it either, after 15 s of its own: known, and kept back.
    await until_answer(
        partial(_is_kept_back, site.watch, "NatsSilent", "inhibited"), what="NatsSilent is muted"
    )
    site.nats.start()
    await site.watch.webhook.hear("NatsDisconnected", "resolved")
    assert "NatsSilent" not in site.watch.webhook.names()


async def _is_kept_back(watch: Alerting, name: str, why: str) -> bool:
    return why in (await watch.silent()).get(name, [])


async def test_a_server_that_is_killed_mutes_what_it_did_before(
    site: Watched, nursery: trio.Nursery
) -> None:
    site.settings.write_text(_SETTINGS.replace("=40", "=1"))
    site.server.signal(signal.SIGHUP)
    await wait_until(
        lambda: any('"reload.done"' in line for line in site.server.log_lines()),
        what="the limit is 1",
    )
    await _subscribe(site, nursery)
    with pytest.raises(InvalidStatus, match="503"):
        async with connect(f"ws://127.0.0.1:{site.server.port}/ws"):
            pass
    rejections = await site.watch.webhook.hear("ConnectionRejections")
    assert rejections["labels"]["reason"] == "at_capacity"
    # It is full as well, which is no news beside that.
    await until_answer(
        partial(_is_kept_back, site.watch, "NearCapacity", "inhibited"),
        what="NearCapacity is muted",
    )
    site.server.kill()
    down = await site.watch.webhook.hear("ServerDown")
    assert down["annotations"]["summary"] == f"{INSTANCE}: does not answer"
    # Its refusals are in the window of the rule for minutes to come.
    await until_answer(
        partial(_is_kept_back, site.watch, "ConnectionRejections", "inhibited"),
        what="ConnectionRejections is muted",
    )
    assert site.watch.webhook.names() == {"ConnectionRejections", "ServerDown"}


async def test_bad_settings_are_told_and_the_runbooks_silence_keeps_others_back(
    site: Watched, nursery: trio.Nursery
) -> None:
    site.settings.write_text("WS_MAX_CONNECTIONS=many\n")
    site.server.signal(signal.SIGHUP)
    alert = await site.watch.webhook.hear("ReloadFailed")
    assert alert["labels"]["severity"] == "warning"
    runbook = (ROOT / "docs" / "runbooks" / "alerts.md").read_text()
    (line,) = [line for line in runbook.splitlines() if " amtool " in line]
    command = line[line.index("amtool") :].split()
    command[1] = f"--alertmanager.url={site.watch.alertmanager}"
    await trio.run_process(command, capture_stdout=True)
    site.nats.stop()
    await until_answer(
        partial(_is_kept_back, site.watch, "NatsDisconnected", "silenced"),
        what="NatsDisconnected is silenced",
    )
    assert site.watch.webhook.names() == {"ReloadFailed"}


async def test_clients_that_do_not_read_are_told_of(site: Watched) -> None:
    attackers = Attackers(site.server.port)
    subscribe = json.dumps({"type": "subscribe", "channels": [_CHANNEL]})
    for _ in range(_SLOW_CLIENTS):
        one = await attackers.tcp(receive_bytes=4096)
        assert await one.upgrade() == 101
        await one.say(subscribe)
    site.payload_bytes = 100_000
    alert = await site.watch.webhook.hear("SlowConsumers")
    assert alert["annotations"]["runbook_url"] == f"{RUNBOOKS_URL}#slowconsumers"
    attackers.leave()
