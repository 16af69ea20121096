"""Answers to a command: ready frames, events that are sent again or are due; and one notice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import attrs
import msgspec

from trio_odin.fanout.batch import Batch
from trio_odin.fanout.publication import Publication
from trio_odin.wire.frames import text_frame
from trio_odin.wire.messages import Upstream, nats_state


@attrs.frozen
class Resend:
    """Events of a snapshot, a resume or a replay, oldest first. Only as many are sent as may wait.

    They are not encoded here: an answer of a hundred large events would take megabytes for each
    client that asks for it and does not read.

    Attributes:
        messages: each event with its `seq` on this connection.
        finish: called once with the number of messages that were written or queued; returns the
            frames that follow them, maybe none.
    """

    messages: Sequence[tuple[int, Publication]]
    finish: Callable[[int], list[bytes]]


Answer: TypeAlias = bytes | Resend | Batch


def upstream_notice(*, is_connected: bool) -> bytes:
    """The frame that says whether the server is connected to NATS."""
    return text_frame(msgspec.json.encode(Upstream(nats_state(is_connected=is_connected))))
