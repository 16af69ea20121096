"""Trace context: the `traceparent` header that publishers put on a message, by the W3C's rules.

    00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
    version    trace                    span of the sender  flags: 01 is sampled

See https://www.w3.org/TR/trace-context/. A header that breaks a rule counts as absent: whoever
receives it is asked to go on without, and not to complain.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

HEADER: Final = "traceparent"
_SAMPLED: Final = 0x01
_FIRST_VERSION: Final = "00"
_IN_HEADERS = re.compile(rb"\r\ntraceparent:[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)", re.IGNORECASE)
_IN_LOWER_CASE: Final = b"\r\ntraceparent:"
# Version ff is forbidden, and so are numbers of zeros. What follows the flags of a later version
# may be anything, after another hyphen.
_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})(?P<span>[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<later>-.*)?",
    re.DOTALL,
)


class TraceContext(NamedTuple):
    """A place in a trace: under this span something else goes on.

    Attributes:
        trace_id: 32 hexadecimal digits in lower case, not all zeros.
        span_id: 16 of them.
        is_sampled: whether the sender records the trace.
    """

    trace_id: str
    span_id: str
    is_sampled: bool = True

    def under(self, span_id: str) -> TraceContext:
        """The place below another span of the same trace."""
        return self._replace(span_id=span_id)

    @property
    def traceparent(self) -> str:
        """The value of the header, in the version that is written here: the first."""
        return f"{_FIRST_VERSION}-{self.trace_id}-{self.span_id}-{self.is_sampled:02x}"


def traceparent_in(block: bytes) -> str | None:
    """The value of the header in the headers of a NATS message; None if there is none.

    NATS keeps the case of names, and libraries write this one in two ways, so case is ignored.
    Two of them are none, as it is not known which one to follow.

    Args:
        block: as it comes, from `NATS/1.0` to the empty line.
    """
    if _IN_LOWER_CASE not in block.lower():  # a tenth of what the expression takes
        return None
    found = _IN_HEADERS.findall(block)
    return found[0].decode("latin-1") if len(found) == 1 else None


def parse_traceparent(text: str) -> TraceContext | None:
    """Parse the value of the header; None if it breaks a rule."""
    found = _TRACEPARENT.fullmatch(text)
    if found is None or (found["version"] == _FIRST_VERSION and found["later"]):
        return None
    return TraceContext(found["trace"], found["span"], bool(int(found["flags"], 16) & _SAMPLED))
