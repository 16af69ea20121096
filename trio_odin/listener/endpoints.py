"""The answers of the port to plain HTTP."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from trio_odin import __version__
from trio_odin.ledger.snapshot import Snapshot
from trio_odin.listener.page import FOREVER, VARY, Page
from trio_odin.net.http import Request, Response
from trio_odin.telemetry.exposition import CONTENT_TYPE, render
from trio_odin.telemetry.health import HealthReport, health, ready
from trio_odin.wire import contract
from trio_odin.wire.dictionary import Dictionary

_WELCOME = f"""trio-odin {__version__}: NATS token events, over WebSocket, to whom they concern.

Connect a WebSocket to /ws on this port and send one JSON object per text frame:

    {{"type":"subscribe","channels":["BTC.trade","*.liquidity"],"snapshot":true}}
    {{"type":"subscribe","channels":["BTC.trade"],"after":OFFSET,"epoch":EPOCH}}
    {{"type":"unsubscribe","channels":["BTC.trade"]}}
    {{"type":"replay","data":{{"since":41}}}}
    {{"type":"channels","prefix":"BTC."}}
    {{"type":"heartbeat"}}

You get exactly the events of your channels, numbered by "seq": a gap means a loss. All of it is in
docs/protocol.md.

    /health   how it is (JSON)
    /ready    whether it takes clients (200 or 503)
    {contract.PATH}  all messages, for programs (AsyncAPI)"""
_METRICS_LINE = "\n    /metrics  for Prometheus"
_DICTIONARY_LINE = "\n    {}  what events have in common, for trio-odin.z1"

_NOT_FOUND = Response.text(404, "Not found; see / for what there is")
_NOT_ALL = Response.text(503, "The parent of the workers does not answer; see /health")
_AN_HOUR = (("Cache-Control", "public, max-age=3600"),)
_READING = {"GET", "HEAD"}
_ALLOWED = "GET, HEAD, OPTIONS"
# RFC 9110, 9.3.7. Load balancers use it for health checks, and browsers for preflights (Fetch),
# which fail at WS_ADMIN_ADDR.
_OPTIONS = Response(204, headers=[("Allow", _ALLOWED)])
_PREFLIGHT = Response(
    204,
    headers=[
        ("Allow", _ALLOWED),
        ("Access-Control-Allow-Methods", _ALLOWED),
        ("Access-Control-Allow-Headers", "Authorization, *"),
    ],
)


class Pages:
    """Answers `/`, `/health`, `/ready` and `/metrics`, from the snapshot that `gather` returns.

    `/asyncapi.json` is the contract of /ws. If `has_metrics` is false, /metrics is only at
    WS_ADMIN_ADDR. With a `dictionary`, clients get it at its path. The path names the content, so a
    cache may keep it forever. With a `page`, browsers get it at `/`, and other programs the text as
    without it.
    """

    def __init__(
        self,
        gather: Callable[[], Awaitable[Snapshot]],
        *,
        has_metrics: bool = True,
        dictionary: Dictionary | None = None,
        page: Page | None = None,
    ) -> None:
        self._gather = gather
        self._page = page
        self._has_metrics = has_metrics
        self._dictionary_path = None if dictionary is None else dictionary.path
        self._welcome = _WELCOME + _METRICS_LINE * has_metrics
        if dictionary is not None:
            self._welcome += _DICTIONARY_LINE.format(dictionary.path)
        content = b"" if dictionary is None else dictionary.content
        self._dictionary = Response(200, content, "application/octet-stream", (FOREVER,))
        self._contract = Response(200, contract.asyncapi_json(), "application/json", _AN_HOUR)

    async def respond(self, request: Request) -> Response:
        """Answer a request at WS_ADDR. Waits for nothing but `gather`."""
        if request.method == "OPTIONS" and (self._has_metrics or request.path != "/metrics"):
            return _PREFLIGHT
        if self._page is not None and request.method in _READING:
            response = self._page.respond(request)
            if response is not None:
                return response
        match request.path:
            case "/" if request.method in _READING:
                return Response.text(200, self._welcome, headers=(VARY,) if self._page else ())
            case "/metrics" if not self._has_metrics:
                return _NOT_FOUND
            case self._dictionary_path if request.method in _READING:
                return self._dictionary
            case contract.PATH if request.method in _READING:
                return self._contract
            case "/ws" if request.method in _READING:
                return Response.text(
                    426,
                    "This is a WebSocket endpoint; see / on how to use it",
                    headers=[("Upgrade", "websocket")],
                )
            case _:
                return await self.respond_to_admin(request)

    async def respond_to_admin(self, request: Request) -> Response:
        """Answer a request at WS_ADMIN_ADDR. Waits for nothing but `gather`."""
        if request.method == "OPTIONS":
            return _OPTIONS
        if request.method not in _READING:
            return Response.text(405, f"Use {_ALLOWED}", headers=[("Allow", _ALLOWED)])
        match request.path:
            case "/health":
                return _json(health(await self._gather(), time.time()))
            case "/ready":
                return _json(ready(await self._gather()))
            case "/metrics":
                snapshot = await self._gather()
                # One worker's counters would look like a restart, and the next complete answer like
                # another one.
                return _metrics(snapshot) if snapshot.workers.is_whole else _NOT_ALL
            case _:
                return _NOT_FOUND


def _metrics(snapshot: Snapshot) -> Response:
    return Response(200, render(snapshot), CONTENT_TYPE)


def _json(report: HealthReport) -> Response:
    return Response.json(report.status, report.content)
