"""A real HAProxy, scraped by a real Prometheus: the alerts when it has no node, or has gone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.e2e.nats import free_port
from tests.ops.alerting import Alerting, alerting
from tests.ops.nodes import NODES
from tests.ops.prometheus import RUNBOOKS_URL
from tests.ops.rules import ALERTS, is_of_haproxy
from tests.ops.test_haproxy_tls import door
from tests.ops.tools import require
from tests.waiting import until_answer

pytestmark = pytest.mark.ops


async def _is_kept_back(watch: Alerting, name: str) -> bool:
    return "inhibited" in (await watch.silent()).get(name, [])


async def test_no_node_and_then_no_proxy_are_each_one_message(tmp_path: Path) -> None:
    require("prometheus", "prometheus-alertmanager", "haproxy")
    async with door(tmp_path) as it, alerting(tmp_path, free_port(), it.proxy.admin_port) as watch:
        up = 'haproxy_server_status{job="haproxy", state="UP"} == 1'
        await watch.prometheus.wait_until(up)
        for rule in ALERTS.values():
            if is_of_haproxy(rule["expr"]):
                figures = rule["expr"].rpartition(" > ")[0] or rule["expr"].partition(" == ")[0]
                await watch.prometheus.wait_until(figures)
        it.nodes.cancel(reason="both nodes die")
        await it.proxy.wait_status("DOWN", *NODES)
        alert = await watch.webhook.hear("ProxyWithoutNodes")
        assert alert["labels"]["instance"] == "odin-proxy"
        assert alert["annotations"]["runbook_url"] == f"{RUNBOOKS_URL}#proxywithoutnodes"
        await until_answer(
            partial(_is_kept_back, watch, "ProxyNodeDown"), what="the dead nodes are no more news"
        )
        it.proxy.kill()
        await watch.webhook.hear("ProxyDown")
        # There is no server in this test, which is an alert as well.
        assert watch.webhook.names() <= {"ProxyWithoutNodes", "ProxyDown", "ServerDown"}
