"""The admin port, for Prometheus and health checks only: no WebSockets, and no waiting."""

from __future__ import annotations

import structlog
import trio

from trio_odin.ledger.counters import Traffic
from trio_odin.listener.acceptor import Acceptor
from trio_odin.net.http import Respond, serve_request

_log = structlog.get_logger("admin")


class AdminPort:
    """Answers each request with `respond`. Pages of other sites cannot read any answer."""

    def __init__(self, respond: Respond, traffic: Traffic) -> None:
        self._respond = respond
        self._acceptor = Acceptor(traffic)

    async def run(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Accept on `listener` until cancelled; each request is a task in `nursery`."""
        await self._acceptor.run(listener, nursery, self._serve)

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            await serve_request(stream, self._respond, is_public=False)
        except Exception:  # noqa: BLE001 - an error in one page must not end the server
            _log.exception("request.failed")
            await trio.aclose_forcefully(stream)
