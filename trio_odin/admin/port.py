"""The admin port: where it listens, and what it answers: the API, and the pages for machines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog
import trio

from trio_odin.admin.access import Access, read_token
from trio_odin.admin.api import Api, Process
from trio_odin.admin.inspector import Inspector
from trio_odin.admin.questions import Question, Reply
from trio_odin.ledger.counters import Traffic
from trio_odin.ledger.snapshot import Snapshot
from trio_odin.listener.admin import AdminPort
from trio_odin.listener.endpoints import Pages
from trio_odin.net.address import Address
from trio_odin.net.http import Request, Response
from trio_odin.net.listening import AddressUnavailable, bound_address, open_listeners
from trio_odin.settings.settings import Settings

DEFAULT_ADDRESS: Final = Address("127.0.0.1", 3008)
_NONE = "no worker serves yet"
_NOT_YET: Final = {
    "/health": Response.json(503, {"status": "unhealthy", "healthy": False, "errors": [_NONE]}),
    "/ready": Response.json(503, {"ready": False, "reasons": [_NONE]}),
}

_log = structlog.get_logger("admin")


async def open_admin(settings: Settings) -> list[trio.SocketListener]:
    """Listen for the admin port; an empty list if it is off.

    If nobody has chosen an address and the default one is taken, the kernel chooses the port:
    several servers of one machine must start without settings.

    Raises:
        AddressUnavailable: it cannot listen at the address that was chosen.
    """
    if settings.admin_address == "off":
        return []
    if settings.admin_address is not None:
        return await open_listeners(settings.admin_address)
    try:
        return await open_listeners(DEFAULT_ADDRESS)
    except AddressUnavailable as error:
        _log.info("admin.elsewhere", reason=str(error))
    try:
        return await open_listeners(DEFAULT_ADDRESS._replace(port=0))
    except AddressUnavailable as error:  # there is no loopback interface
        _log.warning("admin.off", reason=str(error))
        return []


class _NoneServes(Exception):
    """No worker serves, so there is nothing to show."""


class Own:
    """The own process, as one of those that hold connections."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector

    @property
    def worker(self) -> int:
        """0: there are no workers."""
        return 0

    async def ask(self, question: Question) -> Reply:
        """Return its answer."""
        return await self._inspector.answer(question)


class Admin:
    """The admin port of a server.

    Args:
        listeners: where it listens; see `open_admin`.
        settings: the settings, for the token.
        gather: returns the state of the whole server; None while no worker serves.
        processes: returns those that hold connections now.
        traffic: counts what goes wrong while it accepts.

    Raises:
        SettingError: the file with the token cannot be used.
    """

    def __init__(
        self,
        listeners: Sequence[trio.SocketListener],
        settings: Settings,
        *,
        gather: Callable[[], Awaitable[Snapshot | None]],
        processes: Callable[[], Sequence[Process]],
        traffic: Traffic,
    ) -> None:
        self._listeners = listeners
        self.addresses = [bound_address(one) for one in listeners]
        self._gather = gather
        self._pages = Pages(self._gathered)
        self._access = Access(self.addresses, read_token(settings.admin_token_file))
        self._api = Api(gather, processes, self._access)
        self._port = AdminPort(self._respond, traffic)

    def set_token(self, token: bytes) -> None:
        """Ask for another token from now on."""
        self._access.token = token

    async def run(self) -> None:
        """Answer until cancelled."""
        async with trio.open_nursery() as nursery:
            for listener in self._listeners:
                nursery.start_soon(self._port.run, listener, nursery, name="admin")

    async def _respond(self, request: Request) -> Response:
        response = await self._api.respond(request)
        if response is not None:
            return response
        refusal = self._access.refusal_of_page(request)
        if refusal is not None:
            return Response.text(refusal.status, refusal.reason)
        try:
            return await self._pages.respond_to_admin(request)
        except _NoneServes:
            return _NOT_YET.get(request.path) or Response.text(503, _NONE)

    async def _gathered(self) -> Snapshot:
        snapshot = await self._gather()
        if snapshot is None:
            raise _NoneServes
        return snapshot
