"""A real Prometheus answers every query of every dashboard; Grafana's grammar takes the LogQL."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio

from tests.logs_page import LABELS
from tests.ops.grafana import Query, all_queries, log_queries
from tests.ops.logql import parsed
from tests.ops.prometheus import Prometheus
from tests.ops.tools import require
from tests.ops.under_load import under_load

pytestmark = pytest.mark.ops

_VARIABLES = {"__rate_interval": "5s", "__range": "60s", "instance": ".*", "cores": "1.9"}
# What has no answer while all is well, by a part of the query; the panel says it in words.
_EMPTY_WHILE_WELL = {
    'max by (alertname) (ALERTS{alertstate="firing", alertname!="Watchdog"})': "no alert fires",
    "deriv(ws_connections_current": "the number of users does not grow",
    "resets(ws_uptime_seconds": "annotation: no restart",
    "ws_draining{job": "annotation: no drain",
    "ws_nats_connected{job": "annotation: NATS was never away",
    "ws_tls_certificate_seconds_left{job": "the server does not speak TLS itself",
}


async def _answers(prometheus: Prometheus, query: Query) -> bool:
    """Whether a query gives data, or would if what it counts had happened at all."""
    text = query.filled(**_VARIABLES)
    if await prometheus.now(text):
        return True
    # "… > 0" leaves out what did not happen; the metric has to be there with 0.
    everything = re.sub(r" > 0$", "", text)
    return everything != text and bool(await prometheus.now(everything))


async def test_each_query_of_each_dashboard_has_an_answer(tmp_path: Path) -> None:
    require("prometheus")
    async with under_load(tmp_path) as prometheus:
        missing = all_queries("prometheus")
        # One needs two scrapes, another one growth of a counter; none needs half a minute.
        with trio.move_on_after(60):
            while missing := [one for one in missing if not await _answers(prometheus, one)]:
                if all(map(_is_empty_while_well, missing)):
                    break
                await trio.sleep(1)
    assert not [str(query) for query in missing if not _is_empty_while_well(query)]


def _is_empty_while_well(query: Query) -> bool:
    return any(part in query.text for part in _EMPTY_WHILE_WELL)


def test_each_query_for_lines_is_logql(tmp_path: Path) -> None:
    broken = 'sum by (level) (count_over_time({job="odin" [1m]))'
    *found, control = parsed(tmp_path, [*log_queries(), broken])
    assert control.wrong, "the grammar takes anything"
    for text, one in zip(log_queries(), found, strict=True):
        assert not one.wrong, text
        # The quick test looks at names by patterns; this is what is there in truth.
        assert set(one.names) <= LABELS | {"event", "reason", "__error__"}, text
