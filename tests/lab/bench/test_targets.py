from __future__ import annotations

import pytest

from trio_odin.lab.bench.targets import TARGETS, Target, ours, parse_peer
from trio_odin.lab.fleet.dialects import DIALECTS


@pytest.mark.parametrize(
    ("text", "dialect", "url"),
    [
        ("far=ws://10.0.0.1:8000/ws", "odin", "ws://10.0.0.1:8000/ws"),
        ("far=ws://10.0.0.1:8000", "odin", "ws://10.0.0.1:8000"),
        ("far=ws://a.b:1/c/d,centrifugo", "centrifugo", "ws://a.b:1/c/d"),
        ("far=ws://a.b:65535/,nats", "nats", "ws://a.b:65535/"),
        ("far=ws://a:1/x,", "odin", "ws://a:1/x"),
    ],
)
def test_a_peer_has_a_name_an_address_and_an_optional_dialect(
    text: str, dialect: str, url: str
) -> None:
    assert parse_peer(text) == Target(name="far", title="far", dialect=dialect, url=url)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "far",
        "ws://a:1/ws",
        "=ws://a:1/ws",
        "far=",
        "far=http://a:1/ws",
        "far=wss://a:1/ws",
        "far=ws://a/ws",
        "far=ws://:1/ws",
        "far=a:1",
        "far=ws://a:65536/ws",
        "far=ws://a:x/ws",
        "far=ws://a:-1/ws",
        "far=ws://a:1/ws?x=1",
    ],
)
def test_a_malformed_peer_is_refused_with_the_allowed_form(text: str) -> None:
    with pytest.raises(ValueError, match=r"^allowed is NAME=ws://HOST:PORT/PATH") as caught:
        parse_peer(text)
    assert str(caught.value).endswith(", perhaps with ,DIALECT behind it")


@pytest.mark.parametrize("name", ["odin", "odin-go", "nats", "floor"])
def test_a_peer_may_not_have_the_name_of_a_target(name: str) -> None:
    with pytest.raises(ValueError, match="is the name of a target of the bench"):
        parse_peer(f"{name}=ws://a:1/ws")


def test_an_unknown_dialect_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="dialect") as caught:
        parse_peer("far=ws://a:1/ws,klingon")
    assert str(caught.value) == (
        "'klingon' is no dialect: allowed is one of odin, nats, centrifugo"
    )


def test_targets_have_unique_names_and_known_dialects() -> None:
    names = [target.name for target in TARGETS]
    assert len(names) == len(set(names))
    assert {target.dialect for target in TARGETS} <= DIALECTS.keys()


def test_our_target_is_named_by_its_workers() -> None:
    assert (ours(1).name, ours(1).title) == ("odin", "trio-odin, 1 worker")
    assert (ours(4).name, ours(4).title, ours(4).workers) == ("odin-4", "trio-odin, 4 workers", 4)
