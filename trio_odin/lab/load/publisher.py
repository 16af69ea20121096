"""Controls the publisher from outside, as anybody could: POST /control, GET /stats."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import trio

from trio_odin.lab.fleet.limits import LoadImpossible
from trio_odin.lab.load.pages import get_object, post
from trio_odin.lab.load.plan import LoadPlan

_STOP_SECONDS = 10.0


class PublisherControl:
    """Starts and stops the publisher of a plan; does nothing if the plan has none.

    Attributes:
        published: the publisher's own count of events, once it has been stopped.
        events: these events by channel and number; None if it does not list them.
    """

    events: Collection[tuple[str, int]] | None = None

    def __init__(self, plan: LoadPlan) -> None:
        self.published: int | None = None
        self._url = (plan.publisher_url or "").rstrip("/")
        self._rate = plan.rate
        # Channels are `TOKEN.trade`, tokens without a dot.
        self._tokens = [channel.rpartition(".")[0] for channel in plan.workload.channels]
        self._is_running = False

    @property
    def is_ours(self) -> bool:
        """Whether there is a publisher to control."""
        return bool(self._url)

    async def prepare(self) -> None:
        """Stop the publisher before the load.

        Raises:
            LoadImpossible: it does not answer.
        """
        if self._url:
            await self._command("stop")

    async def start(self) -> None:
        """Start the publisher.

        Raises:
            LoadImpossible: it refuses; the message gives its reason.
        """
        if self._url:
            self._is_running = True
            options: dict[str, Any] = {"tokens": self._tokens}
            if self._rate is not None:
                options["messagesPerSecond"] = self._rate
            await self._command("start", **options)

    async def stop(self) -> None:
        """Stop the publisher if it was started, and note its count of events. Returns within 10 s.

        Cancellation: it may still be publishing; the next call stops it.
        """
        if not self._is_running:
            return
        with trio.move_on_after(_STOP_SECONDS):
            await post(f"{self._url}/control", {"action": "stop"})
            self._is_running = False
            self.published = _published(await get_object(f"{self._url}/stats"))

    async def _command(self, action: str, **options: Any) -> None:
        answer = await post(f"{self._url}/control", {"action": action, **options})
        if answer is None:
            raise LoadImpossible(f"the publisher at {self._url} does not answer")
        if not answer.get("success"):
            said = answer.get("message")
            raise LoadImpossible(f"the publisher at {self._url} does not {action}: {said}")


def _published(answer: dict[str, Any] | None) -> int | None:
    stats = (answer or {}).get("stats")
    count = stats.get("messagesPublished") if isinstance(stats, dict) else None
    return count if isinstance(count, int) else None
