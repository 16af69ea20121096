"""docs/readiness.md against the plan's rows, the prices and the scripts that it names."""

from __future__ import annotations

import re

from tests.ops.conftest import OPS, ROOT
from tests.ops.tools import run
from trio_odin.lab.model.tables import read_prices

PAGE = (ROOT / "docs" / "readiness.md").read_text()
# The words by which the rows of the plan's checklist can be told apart.
ROWS = (
    *("Subscription filtering implemented", "Load tests passing at 10K", "CPU usage below 30 %"),
    *("Memory usage", "No connection rejections", "Grafana dashboards", "Alerts configured"),
    *("Loki logs flowing", "rollback procedure documented", "Feature flag", "e2-standard-2 inst"),
    *("Load balancer configured", "DNS updated", "Monitoring in place for 24 hours"),
)


def test_every_row_of_the_plans_checklist_is_there_once_with_a_way_to_see_it() -> None:
    lines = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| ☐ |")]
    for row in ROWS:
        (cells,) = (cells for cells in lines if row in cells[1])
        assert cells[2].strip(), row


def test_the_costs_of_both_versions_are_sums_of_the_prices() -> None:
    prices = read_prices().machines
    small, micro = prices["e2-small"].monthly_usd, prices["e2-micro"].monthly_usd
    v1, v2 = prices["e2-medium"].monthly_usd, prices["e2-standard-2"].monthly_usd
    one, two = v1 + small + micro, v2 + small + micro
    assert f"{v1:g} + {small:g} + {micro:g} = {one:g} USD" in PAGE
    assert f"{v2:g} + {small:g} + {micro:g} = {two:g} USD (+{two - one:g})" in PAGE
    assert f"10 × e2-medium = {10 * v1:g} USD" in PAGE
    assert f"2 × e2-standard-2 = {2 * v2:g} USD" in PAGE
    for kind, mib in (("e2-medium", 3584), ("e2-standard-2", 7168)):
        assert prices[kind].memory_mib * 7 // 8 == mib
        assert f"{mib:,} MB" in PAGE


def test_the_names_and_commands_that_it_gives_are_those_of_the_script() -> None:
    told = run(OPS / "cloud" / "instances.sh", "--help").stdout
    names = set(re.findall(r"`(odin-[\w-]+)`", PAGE))
    assert names == {"odin-ws-go", "odin-backend", "odin-test-runner", "odin-ws-go-v2"}
    variables = set(re.findall(r"`([A-Z]+_(?:[A-Z0-9_]+_)?(?:TYPE|NAME))`", PAGE))
    assert len(variables) == 7
    commands = set(re.findall(r"nox -s instances -- (\w+)", PAGE))
    assert commands == {"ips", "dns", "create"}
    for word in names | variables | commands:
        assert word in told, word


def test_the_second_way_back_names_the_limits_of_the_first_version() -> None:
    text = (ROOT / "docs" / "runbooks" / "rollback.md").read_text()
    assert "WS_LIMIT_MEMORY=3584M" in text
    services = (OPS / "services.yml").read_text()
    for name in ("WS_LIMIT_CPUS", "WS_LIMIT_MEMORY", "WS_MAX_CONNECTIONS"):
        assert f"${{{name}:-" in services
