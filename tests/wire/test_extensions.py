from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import NegotiationError
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.headers import build_extension, parse_extension
from wsproto.extensions import PerMessageDeflate

from trio_odin.wire.extensions import Agreed, agree_on_deflate

PLAIN = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


CLIENT, SERVER = "client_max_window_bits", "server_max_window_bits"


@pytest.mark.parametrize(
    ("parameters", "answer", "bits", "client_bits"),
    [
        ("", "", 12, 15),
        (f"; {CLIENT}", f"; {CLIENT}=9", 12, 9),
        (f";{CLIENT}=15", f"; {CLIENT}=9", 12, 9),
        (f";{CLIENT}=8", f"; {CLIENT}=8", 12, 8),
        (f"; {SERVER}=15", f"; {SERVER}=12", 12, 15),
        (f"; {SERVER}=12", f"; {SERVER}=12", 12, 15),
        (f"; {SERVER}=11", f"; {SERVER}=9", 9, 15),
        (f"; {SERVER}=9", f"; {SERVER}=9", 9, 15),
        (f'; {SERVER}="10"', f"; {SERVER}=9", 9, 15),
        (f'; {SERVER} = "1\\0"', f"; {SERVER}=9", 9, 15),
        (f"; {CLIENT}; {SERVER}=12", f"; {SERVER}=12; {CLIENT}=9", 12, 9),
        ("\t; Server_No_Context_Takeover;client_no_context_takeover ", "", 12, 15),
    ],
)
def test_an_offer_is_accepted_with_its_limits(
    parameters: str, answer: str, bits: int, client_bits: int
) -> None:
    offer = f"permessage-deflate{parameters}".encode()
    expected = Agreed((PLAIN + answer).encode(), bits, client_bits)
    assert agree_on_deflate(offer) == expected
    # Empty elements, other extensions and declined offers may come before it.
    for before in (b", ,", b'x-other; a="b,c;d"; e, ', b"permessage-deflate; unknown,"):
        assert agree_on_deflate(before + offer) == expected
    assert agree_on_deflate(offer + b", permessage-deflate") == expected
    assert agree_on_deflate(offer.replace(b"permessage", b"Permessage")) == expected


@pytest.mark.parametrize(
    "parameters",
    [
        "foo", "foo=1", "server_no_context_takeover; server_no_context_takeover",
        f"{CLIENT}; {CLIENT}=9", f"{SERVER}=9; {SERVER}=9",
        "server_no_context_takeover=true", "client_no_context_takeover=1",
        SERVER, f"{SERVER}=7", f"{SERVER}=16", f"{SERVER}=012", f"{SERVER}=+9", f"{SERVER}=9.0",
        f"{SERVER}=x", f'{SERVER}=""', f"{CLIENT}=7", f"{CLIENT}=16", f'{CLIENT}=""',
        f"{CLIENT}=-1",
        f"{SERVER}=8",  # no zlib can compress in so small a window
    ],
)  # fmt: skip
def test_an_offer_with_a_bad_parameter_is_declined(parameters: str) -> None:
    offer = f"permessage-deflate; {parameters}".encode()
    assert agree_on_deflate(offer) is None
    assert agree_on_deflate(offer + b", permessage-deflate") == Agreed(PLAIN.encode(), 12, 15)


@pytest.mark.parametrize(
    "header",
    [
        "", "x-webkit-deflate-frame", "permessage-bzip2", "deflate", "permessage-deflate2",
        "permessage-deflate;", "permessage-deflate; ;", "permessage-deflate; =9",
        "; permessage-deflate", f'permessage-deflate; {CLIENT}="9',
        f"permessage-deflate; {CLIENT}=",
        "permessage-deflate x", "permessage deflate", 'permessage-deflate, "',
        "permessage-deflate\0", '"permessage-deflate"',
    ],
)  # fmt: skip
def test_everything_else_is_no_offer(header: str) -> None:
    assert agree_on_deflate(header.encode()) is None


BITS = st.integers(8, 15)
OFFERS = st.builds(
    ClientPerMessageDeflateFactory,
    server_no_context_takeover=st.booleans(),
    client_no_context_takeover=st.booleans(),
    server_max_window_bits=st.none() | BITS,
    client_max_window_bits=st.none() | st.just(True) | st.integers(9, 15),
)


@given(OFFERS)
def test_a_client_library_accepts_each_answer(factory: ClientPerMessageDeflateFactory) -> None:
    offer = build_extension([(factory.name, factory.get_request_params())])
    agreed = agree_on_deflate(offer.encode())
    most = factory.server_max_window_bits
    assert (agreed is None) == (most == 8)
    if agreed is None:
        return
    ((name, params),) = parse_extension(agreed.answer.decode())
    assert name == "permessage-deflate"
    extension = factory.process_response_params(params, [])
    assert extension.remote_no_context_takeover
    assert extension.local_no_context_takeover
    assert extension.remote_max_window_bits >= agreed.window_bits
    assert extension.local_max_window_bits <= agreed.client_window_bits
    if most is not None:
        assert agreed.window_bits <= most


def test_that_library_would_notice_a_wrong_answer() -> None:
    factory = ClientPerMessageDeflateFactory(server_max_window_bits=10)
    with pytest.raises(NegotiationError):
        factory.process_response_params([("server_max_window_bits", "12")], [])


@given(st.booleans(), st.booleans(), st.none() | st.integers(9, 15), st.none() | st.integers(9, 15))
def test_wsproto_accepts_each_answer(
    client_no: bool, server_no: bool, client_bits: int | None, server_bits: int | None
) -> None:
    client = PerMessageDeflate(client_no, client_bits, server_no, server_bits)
    offered = client.offer()
    offer = client.name + (f"; {offered}" if isinstance(offered, str) else "")
    agreed = agree_on_deflate(offer.encode())
    assert agreed is not None
    client.finalize(agreed.answer.decode())
    assert client.enabled()
    assert client.client_no_context_takeover
    assert client.server_no_context_takeover
    assert client.client_max_window_bits <= agreed.client_window_bits


PIECES = st.sampled_from(
    [b"permessage-deflate", b";", b",", b" ", b"=", b'"', b"\\", b"9", b"15", b"x", b"\t", b"\xff",
     b"client_max_window_bits", b"server_max_window_bits", b"server_no_context_takeover", b"\0"]
)  # fmt: skip


@given(st.lists(PIECES).map(b"".join))
def test_any_header_gives_an_answer_or_none(header: bytes) -> None:
    agreed = agree_on_deflate(header)
    assert agreed is None or agreed.answer.isascii()


@pytest.mark.parametrize("before", [b"a,", b"a;b=c,", b",", b"permessage-deflate; unknown,"])
def test_only_the_first_offers_are_looked_at(before: bytes) -> None:
    assert agree_on_deflate(before * 15 + b"permessage-deflate") is not None
    assert agree_on_deflate(before * 16 + b"permessage-deflate") is None
    assert agree_on_deflate(b"permessage-deflate," + before * 4000 + b'"') is not None


@pytest.mark.parametrize(
    "header",
    [
        b'"\\' * 8000, b'a;b="' + b'\\"' * 8000, b"a" * 16_000, b"a;b=c" * 3000, b"a;b " * 4000,
        b"a," * 8000, b" " * 16_000, b";" * 16_000, b'a;b="c' * 2500,
    ],
)  # fmt: skip
def test_no_header_keeps_the_parser_busy(header: bytes) -> None:
    """A matcher that tries each way to split them would not come back."""
    assert agree_on_deflate(header) is None
