"""Spans: what a trace shows of this server. Pure; `telemetry/otlp.py` exports them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import attrs

from trio_odin.wire.trace_context import TraceContext


@attrs.frozen
class Span:
    """Something that took its time.

    Attributes:
        name: what it was.
        context: the span itself, in its trace.
        parent_id: the span that led to it.
        kind: `consumer` took a message from somebody else, `producer` made one for somebody else.
        begin_ns: when it began, in Unix nanoseconds.
        end_ns: when it ended.
        attributes: what else is known, by name.
    """

    name: str
    context: TraceContext
    parent_id: str
    kind: Literal["consumer", "producer", "internal"]
    begin_ns: int
    end_ns: int
    attributes: Mapping[str, str | int | bool]


# Takes a span. Neither waits nor raises.
GiveSpan: TypeAlias = Callable[[Span], object]
