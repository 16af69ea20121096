"""The contract: an AsyncAPI 3.0 document of the endpoint, made from the types of its messages.

commands.py   what clients send     ──┐
messages.py   what the server sends ──┼──► schemas.py ──► contract.py ──► /asyncapi.json
payloads.py   what is in `data`     ──┘                                   docs/asyncapi.json
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final, TypeAlias

import msgspec

from trio_odin import __version__
from trio_odin.ledger.reasons import CloseReason
from trio_odin.wire.commands import COMMANDS
from trio_odin.wire.messages import (
    MESSAGES,
    ChannelList,
    DictionaryNotice,
    Draining,
    ErrorReply,
    GapNotice,
    Pong,
    PriceBatch,
    PriceUpdate,
    ReplayDone,
    ReplayIncomplete,
    Resumed,
    ResumeIncomplete,
    SnapshotDone,
    SubscriptionAck,
    TokenAck,
    UnsubscriptionAck,
    Upstream,
)
from trio_odin.wire.schemas import descriptions, reference, schemas

_Types: TypeAlias = tuple[type[msgspec.Struct], ...]

PATH: Final = "/asyncapi.json"
# What comes in answer to each command, in this order.
_ANSWERS: Final[Mapping[str, _Types]] = {
    "subscribe": (
        PriceBatch,
        SubscriptionAck,
        ErrorReply,
        Upstream,
        PriceUpdate,
        SnapshotDone,
        ResumeIncomplete,
        Resumed,
    ),
    "unsubscribe": (UnsubscriptionAck, ErrorReply),
    "heartbeat": (Pong, ErrorReply),
    "replay": (PriceUpdate, ReplayIncomplete, ReplayDone, ErrorReply),
    "channels": (ChannelList, ErrorReply),
    "token": (TokenAck, ErrorReply),
}
# What comes by itself.
_SENT: Final[Mapping[str, tuple[str, _Types]]] = {
    "events": ("Events of your channels: one by one, or in batches.", (PriceUpdate, PriceBatch)),
    "notices": (
        "What a client has to know of NATS, of this server and of its dictionary.",
        (GapNotice, Upstream, Draining, DictionaryNotice),
    ),
}
_WS: Final = {"$ref": "#/channels/ws"}
_DESCRIPTION: Final = """\
One JSON object in each text message, in both directions; see docs/protocol.md. Clients have to
ignore keys that they do not know. No subprotocol is needed; `trio-odin` is selected if it is
offered. With `trio-odin.z1` events and batches are binary: `seq` as a varint, then the object
without `seq`, deflated against the dictionary of the first message."""
_HEADERS: Final = {
    "type": "object",
    "properties": {
        "Authorization": {
            "type": "string",
            "description": "A token, if the server needs one: `Bearer TOKEN`.",
        },
        "Sec-WebSocket-Protocol": {
            "type": "string",
            "description": (
                "`trio-odin` or `trio-odin.z1`; from browsers the token, too: `bearer.TOKEN`."
            ),
        },
        "Origin": {"type": "string", "description": "Of web pages: it has to be an allowed one."},
    },
}
_QUERY: Final = {
    "type": "object",
    "properties": {
        "access_token": {"type": "string", "description": "A token, where nothing else works."}
    },
}
_SECURITY: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "Only servers with `WS_JWT_KEYS` need a token.",
    },
    "query": {
        "type": "httpApiKey",
        "name": "access_token",
        "in": "query",
        "description": "The same token. Proxies may log it.",
    },
    "subprotocol": {
        "type": "httpApiKey",
        "name": "Sec-WebSocket-Protocol",
        "in": "header",
        "description": "The same token, for browsers: offer `trio-odin` and `bearer.TOKEN`.",
    },
}


@cache
def asyncapi() -> dict[str, Any]:
    """The document. It is the same object each time: do not change it."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "trio-odin",
            "version": __version__,
            "description": (
                "Token events from NATS, for the WebSocket clients that subscribed to them."
            ),
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {"plain": _server("ws"), "tls": _server("wss")},
        "channels": {"ws": _channel()},
        "operations": _operations(),
        "components": {
            "messages": {
                **{command.__name__: _message(command) for command in COMMANDS.values()},
                **{message.__name__: _message(message) for message in MESSAGES},
            },
            "schemas": schemas(),
            "securitySchemes": _SECURITY,
        },
    }


@cache
def asyncapi_json() -> bytes:
    """The document as a file."""
    return msgspec.json.format(msgspec.json.encode(asyncapi()), indent=2) + b"\n"


def _server(protocol: str) -> dict[str, Any]:
    security = [{"$ref": f"#/components/securitySchemes/{name}"} for name in _SECURITY]
    return {
        "host": "{host}",
        "protocol": protocol,
        "variables": {
            "host": {"default": "localhost:3002", "description": "Name and port of the server."}
        },
        "security": security,
    }


def _channel() -> dict[str, Any]:
    types = (*COMMANDS.values(), *MESSAGES)
    return {
        "address": "/ws",
        "description": _DESCRIPTION,
        "messages": {
            one.__name__: {"$ref": f"#/components/messages/{one.__name__}"} for one in types
        },
        "bindings": {
            "ws": {
                "method": "GET",
                "query": _QUERY,
                "headers": _HEADERS,
                "bindingVersion": "0.1.0",
            }
        },
        "x-close-codes": [
            {"code": code, "text": text}
            for code, text in sorted({(one.code, one.text) for one in CloseReason if one.code})
        ],
    }


def _operations() -> dict[str, Any]:
    received = {
        kind: {
            "action": "receive",
            "channel": _WS,
            "summary": descriptions(command)[0],
            "messages": _among_channel([command]),
            "reply": {"channel": _WS, "messages": _among_channel(_ANSWERS[kind])},
        }
        for kind, command in COMMANDS.items()
    }
    sent = {
        name: {
            "action": "send",
            "channel": _WS,
            "summary": summary,
            "messages": _among_channel(types),
        }
        for name, (summary, types) in _SENT.items()
    }
    return received | sent


def _among_channel(types: Iterable[type]) -> list[dict[str, str]]:
    return [{"$ref": f"#/channels/ws/messages/{one.__name__}"} for one in types]


def _message(struct: type) -> dict[str, Any]:
    schema = schemas()[struct.__name__]
    kind = schema["properties"]["type"]["const"]
    return {
        "name": kind,
        "title": struct.__name__,
        "summary": schema["description"].partition("\n\n")[0],
        "payload": reference(struct.__name__),
    }
