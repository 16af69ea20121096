"""A real Prometheus answers every query of every dashboard; Grafana's grammar takes the LogQL."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import trio

from tests.e2e.nats import free_port
from tests.ops.conftest import Require
from tests.ops.grafana import LABELS_OF_LINES, Query, all_queries, log_queries, panels
from tests.ops.logql import parsed
from tests.ops.prometheus import Prometheus
from tests.ops.under_load import prometheus_of, under_load
from trio_odin.config import variables
from trio_odin.lab.model.model import Demand, forecast
from trio_odin.lab.model.tables import read_costs, read_prices

pytestmark = pytest.mark.ops

_VARIABLES = {"__rate_interval": "5s", "__range": "60s", "instance": ".*", "cores": "1.9"}
# What has no answer while all is well, by a part of the query; the panel says it in words.
_EMPTY_WHILE_WELL = {
    'max by (alertname) (ALERTS{alertstate="firing", alertname!="Watchdog"})': "no alert fires",
    "deriv(ws_connections_current": "the number of users does not grow",
    "resets(ws_uptime_seconds": "annotation: no restart",
    "ws_draining{job": "annotation: no drain",
    "ws_nats_connected{job": "annotation: NATS was never away",
}


async def _answers(prometheus: Prometheus, query: Query) -> bool:
    """Whether a query gives data, or would if what it counts had happened at all."""
    text = query.filled(**_VARIABLES)
    if await prometheus.now(text):
        return True
    # "… > 0" leaves out what did not happen; the metric has to be there with 0.
    everything = re.sub(r" > 0$", "", text)
    return everything != text and bool(await prometheus.now(everything))


async def test_each_query_of_each_dashboard_has_an_answer(tmp_path: Path, require: Require) -> None:
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


# The model


def _calculation(query: str, values: dict[str, float]) -> str:
    """The query with numbers in place of what the servers report."""
    selector = r"(\w+)\{[^}]*\}"
    text = re.sub(rf"rate\({selector}\[\w+\]\)", _number(values), query)
    return re.sub(selector, _number(values), text)


def _number(values: dict[str, float]) -> Callable[[re.Match[str]], str]:
    return lambda found: f"vector({values.get(found[1], 0)})"


@pytest.mark.parametrize("users", [2_000, 10_000, 18_000])
async def test_the_capacity_page_computes_what_trio_odin_plan_does(
    tmp_path: Path, require: Require, users: int
) -> None:
    require("prometheus")
    costs, machine = read_costs(), read_prices().machines["e2-standard-2"]
    assert costs is not None
    demand = Demand(users=users, rate=30)
    reported = {
        "ws_workers": 1,
        "ws_connections_current": users,
        "ws_nats_messages_received_total": demand.rate,
        "ws_messages_sent_total": demand.writes_per_second,
        "ws_memory_limit_bytes": machine.memory_limit_mib * 2**20,
    }
    lines = {
        f"{panel['title']}: {target['legendFormat']}": target["expr"]
        for panel in panels("capacity")
        for target in panel.get("targets", [])
    }
    with prometheus_of(tmp_path, free_port()) as prometheus:
        await prometheus.wait_ready()

        async def ask(line: str) -> dict[str, float]:
            text = Query("capacity", line, "prometheus", lines[line]).filled(**_VARIABLES)
            answer = await prometheus.now(_calculation(text, reported))
            return {one["metric"].get("bound", ""): float(one["value"][1]) for one in answer}

        cores = (await ask("Cores: the model"))[""]
        memory = (await ask("Memory: the model"))[""]
        most = await ask("Users that fit, by what would end first: {{bound}}")
    assert cores == pytest.approx(costs.cores(users, demand.rate, demand.writes_per_second))
    assert memory == pytest.approx(costs.host_mib(users) * 2**20, rel=1e-4)
    # The door closes below the limit of memory; `plan` knows the limit only.
    reject = next(v for v in variables() if v.name == "WS_MEMORY_REJECT_THRESHOLD")
    share = machine.memory_share * float(reject.default) / 100
    found = forecast(demand, costs, attrs.evolve(machine, memory_share=share))
    assert most["memory"] == pytest.approx(found.max_by_memory, rel=0.001)
    # Two rounds of what has no closed form.
    assert most["CPU"] == pytest.approx(found.max_by_cpu, rel=0.02)


def test_each_query_for_lines_is_logql(tmp_path: Path) -> None:
    broken = 'sum by (level) (count_over_time({job="odin" [1m]))'
    *found, control = parsed(tmp_path, [*log_queries(), broken])
    assert control.wrong, "the grammar takes anything"
    for text, one in zip(log_queries(), found, strict=True):
        assert not one.wrong, text
        # The quick test looks at names by patterns; this is what is there in truth.
        assert set(one.names) <= LABELS_OF_LINES | {"event", "reason", "__error__"}, text
