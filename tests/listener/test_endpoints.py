from __future__ import annotations

import json
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.telemetry.snapshots import snapshot
from trio_odin.ledger.snapshot import Snapshot, Workers
from trio_odin.listener.endpoints import Pages
from trio_odin.net.http import Request

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pages() -> Pages:
    async def gather() -> Snapshot:
        return snapshot()

    return Pages(gather)


async def test_the_front_page_explains_how_to_connect(pages: Pages) -> None:
    page = await pages.respond(Request("GET", "/"))
    text = page.body.decode()
    assert page.status == 200
    for word in ("trio-odin", "/ws", '"subscribe"', "/health", "/ready", "/metrics"):
        assert word in text


async def test_health_and_readiness_are_json(pages: Pages) -> None:
    for path, key in (("/health", "checks"), ("/ready", "ready")):
        page = await pages.respond(Request("GET", path))
        assert page.status in {200, 503}
        assert page.content_type == "application/json"
        assert key in json.loads(page.body)


async def test_metrics_have_the_format_of_prometheus(pages: Pages) -> None:
    page = await pages.respond(Request("GET", "/metrics"))
    assert page.content_type.startswith("text/plain; version=0.0.4")
    names = {family.name for family in text_string_to_metric_families(page.body.decode())}
    assert {"ws_connections_current", "process_resident_memory_bytes"} <= names


async def test_the_contract_is_the_committed_one_and_may_be_cached(pages: Pages) -> None:
    page = await pages.respond(Request("GET", "/asyncapi.json"))
    assert (page.status, page.content_type) == (200, "application/json")
    assert dict(page.headers) == {"Cache-Control": "public, max-age=3600"}
    assert page.body == (ROOT / "docs" / "asyncapi.json").read_bytes()
    assert b"/asyncapi.json" in (await pages.respond(Request("GET", "/"))).body
    assert (await pages.respond(Request("POST", "/asyncapi.json"))).status == 405
    assert (await pages.respond_to_admin(Request("GET", "/asyncapi.json"))).status == 404


async def gathered() -> Snapshot:
    return snapshot()


async def test_with_an_admin_address_metrics_are_not_public() -> None:
    pages = Pages(gathered, has_metrics=False)
    assert (await pages.respond(Request("GET", "/metrics"))).status == 404
    assert b"/metrics" not in (await pages.respond(Request("GET", "/"))).body
    for path in ("/health", "/ready"):
        assert (await pages.respond(Request("GET", path))).status == 200


@pytest.mark.parametrize("has_metrics", [True, False])
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/metrics", 200),
        ("HEAD", "/health", 200),
        ("GET", "/ready", 200),
        ("GET", "/ws", 404),
        ("GET", "/", 404),
        ("POST", "/metrics", 405),
    ],
)
async def test_the_admin_address_has_three_pages_and_nothing_else(
    method: str, path: str, status: int, has_metrics: bool
) -> None:
    pages = Pages(gathered, has_metrics=has_metrics)
    assert (await pages.respond_to_admin(Request(method, path))).status == status


@pytest.mark.parametrize("path", ["/", "*", "/health", "/ready", "/metrics", "/ws"])
async def test_options_lists_the_methods_and_allows_any_origin(path: str, pages: Pages) -> None:
    answer = await pages.respond(Request("OPTIONS", path))
    assert answer.status == 204
    assert answer.body == b""
    assert dict(answer.headers) == {
        "Allow": "GET, HEAD, OPTIONS",
        "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
        "Access-Control-Allow-Headers": "Authorization, *",
    }


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/health", 405),
        ("DELETE", "/", 405),
        ("GET", "/ws", 426),
        ("HEAD", "/ready", 200),
    ],
)
async def test_any_other_request_gets_its_status(
    method: str, path: str, status: int, pages: Pages
) -> None:
    assert (await pages.respond(Request(method, path))).status == status


async def test_figures_of_one_worker_are_not_shown_as_those_of_all() -> None:
    """Counters would fall and rise again, which Prometheus takes for two restarts."""

    async def gather() -> Snapshot:
        return snapshot(workers=Workers(3, 1, 0, [7], is_whole=False))

    pages = Pages(gather)
    metrics = await pages.respond(Request("GET", "/metrics"))
    assert metrics.status == 503
    assert b"ws_" not in metrics.body
    health = await pages.respond(Request("GET", "/health"))
    assert health.status == 503
    assert json.loads(health.body)["workers"]["configured"] == 3
    assert (await pages.respond(Request("GET", "/ready"))).status == 200, "this one is"
