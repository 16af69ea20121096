"""A real Prometheus and a real Alertmanager with the project's files, and a webhook to hear them.

Only addresses and times are changed, in copies: who is scraped, where alerts go, and every interval
is shorter, the `for` of an alert and the waits of a route by the same factor. Expressions stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
import yaml

from tests.e2e.nats import free_port
from tests.ops.conftest import OPS
from tests.ops.prometheus import Prometheus, running, running_prometheus, wait_ready
from tests.waiting import wait_until
from trio_odin.lab.load.pages import get
from trio_odin.net.http import Request, Response, serve_request

INSTANCE = "odin-ws"
_FASTER = 60  # a minute is a second
_EVERY = "200ms"
_PULSE = "5m"
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@attrs.define
class Webhook:
    """Who is told: every notification of an alert, as `(status, alert)`.

    `pulses` are those for whoever calls when they stay away.
    """

    port: int
    told: list[tuple[str, dict[str, Any]]] = attrs.field(factory=list)
    pulses: list[dict[str, Any]] = attrs.field(factory=list)

    async def take(self, request: Request) -> Response:
        for alert in json.loads(request.body)["alerts"]:
            if request.path == "/watchdog_webhook_url":
                self.pulses.append(alert)
            else:
                self.told.append((alert["status"], alert))
        return Response(200)

    def names(self, status: str = "firing") -> set[str]:
        return {alert["labels"]["alertname"] for of, alert in self.told if of == status}

    async def hear(self, name: str, status: str = "firing") -> dict[str, Any]:
        """Wait for a notification; the alert in it."""
        await wait_until(lambda: name in self.names(status), what=f"{name} {status}")
        found = [alert for of, alert in self.told if of == status]
        return next(alert for alert in found if alert["labels"]["alertname"] == name)


@attrs.frozen
class Alerting:
    """What watches a server and tells of it."""

    prometheus: Prometheus
    alertmanager: str
    webhook: Webhook

    async def silent(self) -> dict[str, list[str]]:
        """Alerts that Alertmanager keeps back, and by what: `inhibited` or `silenced`."""
        page = await get(f"{self.alertmanager}/api/v2/alerts")
        assert page is not None
        assert page.status == 200, page.body
        return {
            alert["labels"]["alertname"]: [
                why for why in ("inhibited", "silenced") if alert["status"][f"{why}By"]
            ]
            for alert in json.loads(page.body)
            if alert["status"]["state"] == "suppressed"
        }


@asynccontextmanager
async def alerting(folder: Path, server_port: int, proxy_port: int = 0) -> AsyncIterator[Alerting]:
    """Watch the server whose metrics are at `server_port`, and HAProxy if its port is given."""
    async with trio.open_nursery() as nursery:
        webhook = await _webhook(nursery)
        own, port = free_port(), free_port()
        alertmanager = f"http://127.0.0.1:{port}"
        copy_alertmanager(folder, webhook.port)
        copy_prometheus(folder, server_port, own, port, proxy_port)
        with (
            running(_alertmanager(port), folder),
            running_prometheus(folder, own) as prometheus,
        ):
            await prometheus.wait_ready()
            await wait_ready(alertmanager)
            yield Alerting(prometheus, alertmanager, webhook)
        nursery.cancel_scope.cancel(reason="nobody is to be told any more")


async def _webhook(nursery: trio.Nursery) -> Webhook:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    webhook = Webhook(listener.socket.getsockname()[1])

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await serve_request(stream, webhook.take)

    nursery.start_soon(trio.serve_listeners, serve, [listener])
    return webhook


def _alertmanager(port: int) -> list[str]:
    return [
        "prometheus-alertmanager",
        "--config.file=alertmanager.yml",
        "--storage.path=alertmanager-data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]


def copy_prometheus(
    folder: Path,
    server: int,
    own: int,
    alertmanager: int,
    proxy: int = 0,
    *,
    every: str = _EVERY,
    faster: int = _FASTER,
    has_short_windows: bool = False,
) -> None:
    """The configuration with its rules and targets, quick and at other addresses.

    `every` is the time between two scrapes. Each `for` is divided by `faster`, and the windows of
    the expressions too if `has_short_windows`; thresholds stay.
    """
    config = _load(OPS / "prometheus" / "prometheus.yml")
    config["global"] |= dict.fromkeys(
        ("scrape_interval", "scrape_timeout", "evaluation_interval"), every
    )
    moved = {
        "ws:3005": f"127.0.0.1:{server}",
        "localhost:9090": f"127.0.0.1:{own}",
        "alertmanager:9093": f"127.0.0.1:{alertmanager}",
    }
    (folder / "targets").mkdir()
    _save(
        folder / "targets" / "ws.yml",
        _moved(_load(OPS / "prometheus" / "targets" / "ws.yml"), moved),
    )
    proxies = [{"targets": [f"127.0.0.1:{proxy}"], "labels": {"instance": "odin-proxy"}}]
    _save(folder / "targets" / "haproxy.yml", proxies if proxy else [])
    (folder / "rules").mkdir()
    for file in (OPS / "prometheus" / "rules").iterdir():
        rules = _load(file)
        for group in rules["groups"]:
            for rule in group["rules"]:
                if "for" in rule:
                    rule["for"] = _quicker(rule["for"], faster)
                if has_short_windows:
                    rule["expr"] = with_short_windows(rule["expr"], faster)
        _save(folder / "rules" / file.name, rules)
    _save(folder / "prometheus.yml", _moved(config, moved))


def copy_alertmanager(folder: Path, webhook: int) -> None:
    """The configuration with a webhook of ours; older versions know no `url_file`."""
    config = _load(OPS / "alertmanager" / "alertmanager.yml")
    for route in (config["route"], *config["route"]["routes"]):
        for name in ("group_wait", "group_interval"):
            route[name] = _quicker(route[name])
        if route["repeat_interval"] == _PULSE:
            route["repeat_interval"] = _quicker(_PULSE)
    for receiver in config["receivers"]:
        (hook,) = receiver["webhook_configs"]
        # Each has a file of its own, so none is told what is for another.
        hook["url"] = f"http://127.0.0.1:{webhook}/{Path(hook.pop('url_file')).name}"
    _save(folder / "alertmanager.yml", config)


def _load(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


def _save(file: Path, content: Any) -> None:
    file.write_text(yaml.safe_dump(content))


def _moved(content: Any, addresses: dict[str, str]) -> Any:
    """The same content with other addresses."""
    text = json.dumps(content)
    for before, after in addresses.items():
        text = text.replace(json.dumps(before), json.dumps(after))
    return json.loads(text)


def with_short_windows(expression: str, faster: int) -> str:
    """The expression with each window, as in `[5m]`, divided by `faster`."""
    return re.sub(r"\[(\d+[smh])\]", lambda one: f"[{_quicker(one[1], faster)}]", expression)


def _quicker(duration: str, faster: int = _FASTER) -> str:
    match = re.fullmatch(r"(\d+)([smh])", duration)
    assert match, duration
    return f"{round(int(match[1]) * _UNITS[match[2]] / faster * 1000)}ms"
