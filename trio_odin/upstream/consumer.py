"""An ordered consumer of a JetStream stream: every message once and in order, or its end.

Runs under asyncio, called by the bridge. nats-py has one, too, which makes itself anew at the next
offset when something is missing: also in a stream that was emptied and counts from 1 again, so that
events vanish without a word. This one never mends anything. It gives its connection up, and the
next one finds its place in the stream with all checks (docs/decisions/0002).

nats-py's also takes a publisher's word for what only NATS may say, as it looks for heartbeats among
the events.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping

from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy

from trio_odin.upstream.metadata import MessageMetadata, metadata_of
from trio_odin.upstream.nats_client import TotalClient

# NATS sends one whenever it has nothing else to send for so long.
_HEARTBEAT_SECONDS = 1.0
# Looks, not seconds: a process that was held up for as long has missed one.
_SILENT_LOOKS_MAX = 3
_REQUEST_SECONDS = 5.0
# A cluster may give the consumer to a node that is gone, which it does not know yet. Then there is
# no answer, and another consumer, of another connection, has better luck.
_START_SECONDS = 1.5
_CONTROL = "100"  # the status of what is no message of the stream


class OrderedConsumer:
    """Hands each message of the stream to `take`, in order; calls `fail` when that has an end.

    Args:
        client: connected.
        take: gets each message and its place. Must not raise or wait.
        fail: gets a sentence that says why nothing more is to be expected.
    """

    def __init__(
        self,
        client: TotalClient,
        take: Callable[[Msg, MessageMetadata], None],
        fail: Callable[[str], None],
    ) -> None:
        self._client = client
        self._jetstream = client.jetstream(timeout=_REQUEST_SECONDS)
        self._take = take
        self._fail = fail
        self._stream = self._inbox = ""
        # With a name, making it twice makes one.
        self._name = f"trio-odin-{secrets.token_hex(8)}"
        self._delivered = 0  # messages of this consumer that came
        self._was_heard = True

    async def start(self, stream: str, subject: str, *, after: int) -> ConsumerInfo:
        """Make a consumer of `subject` of `stream` from behind offset `after` on; then `listen`.

        Raises:
            nats.errors.Error: NATS refuses, or does not answer.
        """
        self._inbox = self._client.new_inbox()
        self._stream = stream
        info: ConsumerInfo = await self._jetstream.add_consumer(
            stream,
            ConsumerConfig(
                name=self._name,
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=after + 1,
                filter_subject=subject,
                deliver_subject=self._inbox,
                ack_policy=AckPolicy.NONE,
                max_deliver=1,
                flow_control=True,
                idle_heartbeat=_HEARTBEAT_SECONDS,
                num_replicas=1,
                mem_storage=True,
            ),
            timeout=_START_SECONDS,
        )
        return info

    async def listen(self) -> None:
        """Have the messages come: NATS waits with them until somebody listens."""
        self._was_heard = True
        await self._client.listen(self._inbox, self._on_message)

    async def info(self) -> ConsumerInfo:
        """What NATS says of it now.

        Raises:
            nats.errors.Error: NATS does not answer, or has forgotten it.
        """
        info: ConsumerInfo = await self._jetstream.consumer_info(self._stream, self._name)
        return info

    async def watch(self) -> None:
        """Fail when it was silent for longer than it can be, until cancelled."""
        silent_looks = 0
        while silent_looks < _SILENT_LOOKS_MAX:
            self._was_heard = False
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            silent_looks = 0 if self._was_heard else silent_looks + 1
        self._fail("the consumer is silent")

    async def _on_message(self, message: Msg) -> None:
        self._was_heard = True
        headers: Mapping[str, str] = message.headers or {}
        if headers.get("Status") == _CONTROL:
            await self._on_control(message, headers)
            return
        place = metadata_of(message.reply)
        if place is None:
            return  # somebody else has published to this inbox
        if place.consumer_sequence != self._delivered + 1:
            self._fail("messages of the consumer are missing")
            return
        self._delivered += 1
        self._take(message, place)

    async def _on_control(self, message: Msg, headers: Mapping[str, str]) -> None:
        """A request for flow control, which is answered when all before it is taken, or silence."""
        if stalled := message.reply or headers.get("Nats-Consumer-Stalled", ""):
            await self._client.publish(stalled)
        delivered = headers.get("Nats-Last-Consumer", "")
        if delivered.isdecimal() and int(delivered) != self._delivered:
            self._fail("the last messages of the consumer are missing")
