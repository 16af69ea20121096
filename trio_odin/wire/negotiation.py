"""What a connection uses: one subprotocol at most, one encoding, permessage-deflate or not."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from trio_odin.wire.compression import PLAIN, Z1, Deflate, Encoding
from trio_odin.wire.dictionary import Dictionary
from trio_odin.wire.extensions import NARROW_WINDOW_BITS, WINDOW_BITS, agree_on_deflate
from trio_odin.wire.frames import text_frame

# Selected if a client offers it. One that offers its token as a subprotocol needs one of ours.
SUBPROTOCOL: Final = b"trio-odin"
Z1_SUBPROTOCOL: Final = b"trio-odin.z1"
_Z1_WITH_ID: Final = b"trio-odin.z1."


class Agreed(NamedTuple):
    """What client and server agreed on.

    Attributes:
        subprotocol: the one that is selected; empty: none.
        extensions: the answer to the extensions that the client offers; empty: none is used.
        encoding: how the client gets events.
        client_window_bits: what the client deflates may refer to, as a power of two; 0: it does
            not deflate.
        greeting: frames that come before everything else.
    """

    subprotocol: bytes = b""
    extensions: bytes = b""
    encoding: Encoding = PLAIN
    client_window_bits: int = 0
    greeting: bytes = b""


NO_COMPRESSION: Final = Agreed()


class Encodings:
    """What a server can use. One for all connections: they share what is compressed.

    Attributes:
        has_deflate: whether permessage-deflate is accepted.
    """

    def __init__(self, dictionary: Dictionary | None = None, *, has_deflate: bool = False) -> None:
        """Without a `dictionary` no client gets `trio-odin.z1`."""
        self.has_deflate = has_deflate
        self._z1: dict[bytes, Agreed] = {} if dictionary is None else _z1_by_name(dictionary)
        self._deflate = {bits: Deflate(bits) for bits in (WINDOW_BITS, NARROW_WINDOW_BITS)}

    def agree(self, subprotocols: Collection[bytes], extensions: bytes) -> Agreed:
        """Choose from what a client offers.

        With `trio-odin.z1` the extension would compress what is compressed, so it is declined.

        Args:
            subprotocols: the names that the client offers.
            extensions: the value of its header `Sec-WebSocket-Extensions`.
        """
        for name, agreed in self._z1.items():
            if name in subprotocols:
                return agreed
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in subprotocols else b""
        deflate = agree_on_deflate(extensions) if self.has_deflate and extensions else None
        if deflate is None:
            return Agreed(subprotocol)
        encoding = self._deflate[deflate.window_bits]
        return Agreed(subprotocol, deflate.answer, encoding, deflate.client_window_bits)


def _z1_by_name(dictionary: Dictionary) -> dict[bytes, Agreed]:
    """What is agreed on with clients that name the dictionary, and with those that do not."""
    encoding, greeting = Z1(dictionary.content), text_frame(dictionary.announcement())
    names = (_Z1_WITH_ID + dictionary.id.encode(), Z1_SUBPROTOCOL)
    return {name: Agreed(name, encoding=encoding, greeting=greeting) for name in names}
