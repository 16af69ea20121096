"""Looks at all places again and again during an incident, and notes when each shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlencode

import attrs
import trio

from tests.faults.incidents.expects import Expect, cut, firing, is_pending
from tests.faults.incidents.site import Site
from trio_odin.lab.incidents import Place, Sighting
from trio_odin.lab.load.pages import get_object

_LOOK_SECONDS = 0.25
_COMMAND_SECONDS = 20.0
_ROWS = 100
Say = Callable[[str], object]


@attrs.define
class Watch:
    """Looks at a site.

    Args:
        it: the site.
        sort: order of the connections, as `top --sort` takes it.

    Attributes:
        fired: names of all alerts that were seen to fire.
    """

    it: Site
    sort: str = "queued_bytes"
    fired: set[str] = attrs.field(factory=set)
    _log_from: int = 0

    def begin(self) -> None:
        """Lines of the log count from now on."""
        self._log_from = self.it.server.log.stat().st_size

    async def read(self, place: Place) -> Any:
        """What a place says now; None if it gives no answer."""
        match place:
            case Place.TOP:
                text = await self._top("--json")
                return json.loads(text) if text else None
            case Place.SCREEN:
                return await self._top() or None
            case Place.CONNECTIONS:
                return await self._api("/connections", sort=self.sort, limit=str(_ROWS))
            case Place.CHANNELS:
                return await self._api("/channels", limit=str(_ROWS))
            case Place.ALERT:
                return await self._alerts()
            case Place.LOG:
                return self._lines()
            case Place.EXPLAIN:
                return await self._explain()

    async def until_seen(
        self, expects: Sequence[Expect], found: Mapping[Place, Sighting], since: float, say: Say
    ) -> None:
        """Look until every place shows what is expected; cancelled at the deadline."""
        async with trio.open_nursery() as nursery:
            for expect in expects:
                nursery.start_soon(self._wait, expect, found[expect.place], since, say)

    async def follow_alerts(self) -> None:
        """Note each alert that fires, until cancelled."""
        while True:
            await self._alerts()
            await trio.sleep(_LOOK_SECONDS)

    async def _wait(self, expect: Expect, sighting: Sighting, since: float, say: Say) -> None:
        while True:
            content = await self.read(expect.place)
            seconds = round(trio.current_time() - since, 1)
            if content is not None:
                if (
                    expect.alert
                    and sighting.pending_seconds is None
                    and is_pending(content, expect.alert)
                ):
                    sighting.pending_seconds = seconds
                if text := expect.sees(content):
                    sighting.seconds, sighting.text = seconds, cut(text)
                    say(f"  {seconds:5.1f} s  {expect.place.value}: {sighting.text}")
                    return
            await trio.sleep(_LOOK_SECONDS)

    async def _top(self, *options: str) -> str:
        command = ["top", self.it.admin, "--once", "--sort", self.sort, *options]
        return (await _odin(command)).decode()

    async def _api(self, path: str, **query: str) -> dict[str, Any] | None:
        content = await get_object(f"{self.it.admin}{path}?{urlencode(query)}")
        return None if content is None or "error" in content else content

    async def _alerts(self) -> list[dict[str, Any]]:
        alerts: list[dict[str, Any]] = (await self.it.prometheus.ask("alerts"))["alerts"]
        self.fired |= firing(alerts)
        return alerts

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        for line in self._new_log().splitlines():
            with suppress(ValueError):
                lines.append(json.loads(line))
        return lines

    async def _explain(self) -> str | None:
        log = self._new_log()
        if b'"connection.evicted"' not in log and b'"connection.closed"' not in log:
            return None
        return (await _odin(["explain"], stdin=log)).decode()

    def _new_log(self) -> bytes:
        with self.it.server.log.open("rb") as file:
            file.seek(self._log_from)
            return file.read()


async def _odin(arguments: Sequence[str], *, stdin: bytes = b"") -> bytes:
    """What a command of trio-odin prints; empty if it fails, as `top` without a server does."""
    run: Callable[[], Awaitable[subprocess.CompletedProcess[bytes]]] = partial(
        trio.run_process,
        [sys.executable, "-m", "trio_odin", *arguments],
        stdin=stdin,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    with trio.move_on_after(_COMMAND_SECONDS):
        done = await run()
        return b"" if done.returncode else done.stdout
    return b""
