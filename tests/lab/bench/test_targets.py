from __future__ import annotations

import os
import sys

import pytest

from trio_odin.lab.bench.interpreter import interpreter_at
from trio_odin.lab.bench.targets import TARGETS, Target, on_interpreter, ours, parse_peer
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
        "far=ws://a:1/ws#x",
        "far=ws://user:secret@a:1/ws",
        "far=ws://a:1/w s",
        "far=ws://a:1/\udcff",
        "[/far]=ws://a:1/ws",
        "f\udcff=ws://a:1/ws",
        f"{'f' * 41}=ws://a:1/ws",
    ],
)
def test_a_malformed_peer_is_refused_with_the_allowed_form(text: str) -> None:
    with pytest.raises(ValueError, match=r"^allowed is NAME=ws://HOST:PORT/PATH") as caught:
        parse_peer(text)
    assert str(caught.value).endswith(", perhaps with ,DIALECT and ,pid=N behind it")


def test_a_peer_on_this_machine_may_be_named_by_its_process() -> None:
    here = parse_peer(f"near=ws://a:1/ws,nats,pid={os.getpid()}")
    assert (here.dialect, here.pid) == ("nats", os.getpid())
    assert parse_peer(f"near=ws://a:1/ws,pid={os.getpid()}").dialect == "odin"


@pytest.mark.parametrize("pid", ["", "x", "-1", "0", "4194305", "1" * 5000])
def test_a_process_that_does_not_exist_is_refused(pid: str) -> None:
    with pytest.raises(ValueError, match=r"there is no such process on this machine"):
        parse_peer(f"near=ws://a:1/ws,pid={pid}")


@pytest.mark.parametrize("name", ["odin", "odin-go", "nats", "floor"])
def test_a_peer_may_not_have_the_name_of_a_target(name: str) -> None:
    with pytest.raises(ValueError, match="is the name of a target of the bench"):
        parse_peer(f"{name}=ws://a:1/ws")


@pytest.mark.parametrize("options", ["odin,nats", "pid=1,pid=1"])
def test_an_option_of_a_peer_may_come_once(options: str) -> None:
    with pytest.raises(ValueError, match="allowed is one dialect and one pid=N"):
        parse_peer(f"far=ws://a:1/ws,{options}")


def test_an_unknown_dialect_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="dialect") as caught:
        parse_peer("far=ws://a:1/ws,klingon")
    assert str(caught.value) == (
        "'klingon' is not a known dialect: allowed is one of odin, nats, centrifugo, and pid=N"
    )


def test_targets_have_unique_names_and_known_dialects() -> None:
    names = [target.name for target in TARGETS]
    assert len(names) == len(set(names))
    assert {target.dialect for target in TARGETS} <= DIALECTS.keys()


def test_our_target_is_named_by_its_workers() -> None:
    assert (ours(1).name, ours(1).title) == ("odin", "trio-odin, 1 worker")
    assert (ours(4).name, ours(4).title, ours(4).workers) == ("odin-4", "trio-odin, 4 workers", 4)


def test_our_target_can_run_on_another_python() -> None:
    interpreter = interpreter_at(sys.executable)
    number = ".".join(map(str, sys.version_info[:3]))
    assert number in interpreter.version
    other = on_interpreter(ours(2), interpreter)
    assert other.name == f"odin-2@{interpreter.version}"
    assert other.title == f"trio-odin, 2 workers, {interpreter.title}"
    assert other.command == ours(2).command


@pytest.mark.parametrize(
    ("path", "sentence"),
    [("/nowhere/python", "No such file"), ("/bin/false", "a Python with trio-odin")],
)
def test_what_is_no_python_with_trio_odin_is_refused(path: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        interpreter_at(path)
