"""Every reason that is counted: for a rejection, for a close, for a lost event or message.

One enum per question; a member has the code on the wire, the metric's label and the log's field.
"""

from __future__ import annotations

from enum import Enum


class Rejection(Enum):
    """Why a connection is rejected: metric label; text, status and Retry-After of the answer.

    The answer may have a text of its own that says more. `TLS` and `HALF_OPEN` get no answer.
    """

    SHUTTING_DOWN = ("shutting_down", "Server is shutting down", 503, 1)
    AT_CAPACITY = ("at_capacity", "Server at capacity", 503, 5)
    FILES = ("files", "Server at capacity", 503, 5)
    MEMORY = ("memory", "Server overloaded", 503, 5)
    OVERLOADED = ("overloaded", "Server overloaded", 503, 1)
    LAG = ("lag", "Server overloaded", 503, 1)
    PER_ADDRESS = ("per_address", "Too many connections from this address", 429, 5)
    ORIGIN = ("origin", "Origin not allowed", 403, 0)
    UNAUTHORIZED = ("unauthorized", "A token is needed", 401, 0)
    BAD_REQUEST = ("bad_request", "Bad request", 400, 0)
    TIMEOUT = ("timeout", "Request not complete in time", 408, 0)
    TLS = ("tls", "", 0, 0)
    HALF_OPEN = ("half_open", "", 0, 0)

    def __init__(self, label: str, text: str, status: int, retry_after_seconds: int) -> None:
        self.label = label
        self.text = text
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class CloseReason(Enum):
    """Why a connection ended: a `label` (metric, log), and a code and text if the server closes it.

    `code` is None if the peer has gone, if the WebSocket layer chooses the code, or if the process
    that held the connection has ended. Codes below 4000 are those of RFC 6455, 7.4.1. Of the
    server's own, 4000 to 4499 mean "come back", and 4500 to 4999 "do not".
    """

    PEER_CLOSED = ("peer_closed", None, "")
    PEER_GONE = ("peer_gone", None, "")
    PROTOCOL_ERROR = ("protocol_error", None, "")
    MESSAGE_TOO_BIG = ("message_too_big", None, "")
    OUTBOX_FULL = ("outbox_full", 1008, "Client too slow to process messages")
    WRITE_DEADLINE = ("write_deadline", 1008, "Client too slow to process messages")
    KEEPALIVE_TIMEOUT = ("keepalive_timeout", 1008, "No sign of life")
    TOKEN_EXPIRED = ("token_expired", 4001, "Token expired: come back with a new one")
    OPERATOR = ("operator", 4002, "Closed by the operator: you may come back")
    TOKEN_REVOKED = ("token_revoked", 4501, "Token is not valid any more")
    DRAINING = ("draining", 1001, "Server is shutting down")
    STOPPED = ("stopped", 1001, "Server is shutting down")
    INTERNAL_ERROR = ("internal_error", 1011, "Internal error")
    WORKER_LOST = ("worker_lost", None, "")

    def __init__(self, label: str, code: int | None, text: str) -> None:
        self.label = label
        self.code = code
        self.text = text


class GapReason(Enum):
    """Why events were lost before the fan-out."""

    START = "start"  # published before the server reached NATS for the first time
    WINDOW = "window"  # the stream's limits had dropped them before the bridge could take them
    STREAM = "stream"  # the stream was made anew or emptied
    CORE = "core"  # NATS was away, and core NATS keeps nothing
    UNREADABLE = "unreadable"  # two connections in a row ended at an event, which was skipped
    SHED = "shed"  # they arrived, and the server shed them; see `Shed`


class Invalid(Enum):
    """Why a NATS message could not become a publication."""

    SUBJECT = "subject"
    PAYLOAD = "payload"


class Shed(Enum):
    """Why a NATS message was shed before the fan-out."""

    FEED_FULL = "feed_full"
    PAUSED = "paused"
    NATS_RATE = "nats_rate"
    BROADCAST_RATE = "broadcast_rate"
    WORKER_LOST = "worker_lost"


class Dropped(Enum):
    """Why a message to a connection was not written."""

    OUTBOX_FULL = "outbox_full"
    OUTBOX_BYTES = "outbox_bytes"
    TOTAL_OUTBOX_BYTES = "total_outbox_bytes"
    CLOSING = "closing"
    WORKER_LOST = "worker_lost"
