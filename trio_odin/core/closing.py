"""Why a connection ended: one enum for the wire, the metric label and the log field."""

from __future__ import annotations

from enum import Enum


class CloseReason(Enum):
    """Each reason has a `label` (metric, log), and a code and text if the server closes for it.

    `code` None: the peer has gone, or trio-websocket has told it already, or the process that held
    the connection is no more. Codes below 4000 are those of RFC 6455, 7.4.1; of ours, 4000 to 4499
    mean "come back", and 4500 to 4999 "do not".
    """

    PEER_CLOSED = ("peer_closed", None, "")
    PEER_GONE = ("peer_gone", None, "")
    PROTOCOL_ERROR = ("protocol_error", None, "")
    MESSAGE_TOO_BIG = ("message_too_big", None, "")
    OUTBOX_FULL = ("outbox_full", 1008, "Client too slow to process messages")
    WRITE_DEADLINE = ("write_deadline", 1008, "Client too slow to process messages")
    KEEPALIVE_TIMEOUT = ("keepalive_timeout", 1008, "No sign of life")
    TOKEN_EXPIRED = ("token_expired", 4001, "Token expired: come back with a new one")
    TOKEN_REVOKED = ("token_revoked", 4501, "Token is not valid any more")
    DRAINING = ("draining", 1001, "Server is shutting down")
    STOPPED = ("stopped", 1001, "Server is shutting down")
    INTERNAL_ERROR = ("internal_error", 1011, "Internal error")
    WORKER_LOST = ("worker_lost", None, "")

    def __init__(self, label: str, code: int | None, text: str) -> None:
        self.label = label
        self.code = code
        self.text = text
