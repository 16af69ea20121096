"""An ordered consumer of a JetStream stream: every message once and in order, or a failure.

Runs under asyncio, called by the bridge. nats-py has an ordered consumer, too. When something is
missing, that one makes itself anew at the next offset, even in a stream that was emptied and counts
from 1 again, so events vanish silently. This one never repairs anything: it gives its connection
up, and the next one finds its position in the stream with all checks (docs/decisions/0002).

nats-py's also looks for heartbeats among the events, so it accepts from a publisher what only NATS
may say.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping

from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy

from trio_odin.upstream.metadata import MessageMetadata, metadata_of
from trio_odin.upstream.nats_client import TotalClient

# NATS sends a heartbeat when it has had nothing else to send for this long.
_HEARTBEAT_SECONDS = 1.0
# Checks, not seconds: a process that was held up for as long has missed one.
_SILENT_LOOKS_MAX = 3
_REQUEST_SECONDS = 5.0
# A cluster that does not know yet that a node is gone may give the consumer to it. Then no answer
# comes, and another consumer, on another connection, is more likely to get one.
_START_SECONDS = 1.5
_CONTROL = "100"  # the status of what is not a message of the stream


class OrderedConsumer:
    """Hands each message of the stream to `take`, in order; calls `fail` when it cannot go on.

    Args:
        client: a connected client.
        take: a callback for each message and its metadata. Must not raise or wait.
        fail: a callback for the sentence that says why no further messages will come.
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
        # A consumer with a name is made once, even if that is requested twice.
        self._name = f"trio-odin-{secrets.token_hex(8)}"
        self._delivered = 0  # messages of this consumer so far
        self._listener = 0
        self._was_heard = True

    async def start(self, stream: str, subject: str, *, after: int | None) -> ConsumerInfo:
        """Make a consumer of `subject` in `stream`, after offset `after`. Call `listen` next.

        Without `after` it begins with the newest message of each subject.

        Raises:
            nats.errors.Error: NATS refuses or does not answer.
        """
        self._inbox = self._client.new_inbox()
        self._stream = stream
        policy = DeliverPolicy.BY_START_SEQUENCE
        info: ConsumerInfo = await self._jetstream.add_consumer(
            stream,
            ConsumerConfig(
                name=self._name,
                deliver_policy=DeliverPolicy.LAST_PER_SUBJECT if after is None else policy,
                opt_start_seq=None if after is None else after + 1,
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
        """Let the messages come: NATS holds them back until somebody listens."""
        self._was_heard = True
        self._listener = await self._client.listen(self._inbox, self._on_message)

    async def leave(self) -> None:
        """Take no more messages. NATS forgets a consumer to which nobody listens."""
        await self._client.unlisten(self._listener)

    async def info(self) -> ConsumerInfo:
        """The state of the consumer, as NATS reports it now.

        Raises:
            nats.errors.Error: NATS does not answer or has forgotten the consumer.
        """
        info: ConsumerInfo = await self._jetstream.consumer_info(self._stream, self._name)
        return info

    async def watch(self) -> None:
        """Call `fail` and return once the consumer is silent for longer than it may be."""
        silent_looks = 0
        while silent_looks < _SILENT_LOOKS_MAX:
            self._was_heard = False
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            silent_looks = 0 if self._was_heard else silent_looks + 1
        self._fail("the consumer is silent")

    def _on_message(self, message: Msg) -> None:
        self._was_heard = True
        headers: Mapping[str, str] = message.headers or {}
        if headers.get("Status") == _CONTROL:
            self._on_control(message, headers)
            return
        metadata = metadata_of(message.reply)
        if metadata is None:
            return  # somebody else has published to this inbox
        if metadata.consumer_sequence != self._delivered + 1:
            self._fail("messages of the consumer are missing")
            return
        self._delivered += 1
        self._take(message, metadata)

    def _on_control(self, message: Msg, headers: Mapping[str, str]) -> None:
        """Answer a request for flow control, now that all before it is taken; check a heartbeat."""
        if stalled := message.reply or headers.get("Nats-Consumer-Stalled", ""):
            self._client.publish_now(stalled)
        delivered = headers.get("Nats-Last-Consumer", "")
        if delivered.isdecimal() and delivered != str(self._delivered):  # int() has a limit
            self._fail("the last messages of the consumer are missing")
