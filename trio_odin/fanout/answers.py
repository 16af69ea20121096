"""What answers a command: ready frames, and events that are sent again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import attrs

from trio_odin.fanout.publication import Publication


@attrs.frozen
class Resend:
    """Events of a resume or a replay, oldest first. Only so many are sent as may wait.

    They are not made into bytes here: an answer of a hundred large events would be megabytes for
    each client that asks for it and does not read.

    Attributes:
        envelopes: each event with its `seq` on this connection.
        finish: is called once with how many of them are out or wait, and returns the frames that
            come after them; maybe none.
    """

    messages: Sequence[tuple[int, Publication]]
    finish: Callable[[int], list[bytes]]


Answer: TypeAlias = bytes | Resend
