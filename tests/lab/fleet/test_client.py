"""The loop of a fleet: frames, answers, the way to a subscription."""

from __future__ import annotations

import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.events import CloseConnection, Message, Pong

from tests.e2e.nats import free_port
from tests.lab.fleet.rig import (
    ACK,
    BTC,
    CUTS,
    ERROR,
    ETH,
    SOL,
    UPGRADED,
    Rig,
    envelope,
    expected,
    few_examples,
    figures,
    reset,
    rig_of,
    sent_by,
    split,
)
from trio_odin.lab.fleet import client as client_module
from trio_odin.lab.fleet.events import Event, payload_of
from trio_odin.lab.fleet.latency import LAST_BUCKET, step_of_bucket
from trio_odin.lab.fleet.plan import Progress
from trio_odin.lab.fleet.workload import Workload
from trio_odin.wire.frames import PING, close_frame, text_frame

# --- frames and reads


@pytest.mark.parametrize("size", [60, 125, 126, 300, 65_535, 65_536, 100_000])
def test_frames_of_any_length_are_split(size: int, rig: Rig) -> None:
    client, _ = rig.client()
    rig.take(client, envelope(1, 1, size=size) + envelope(2, 2, size=size))
    assert figures(rig) == expected(received=2, deliveries={1: 1, 2: 1})


ENVELOPES = st.lists(
    st.builds(
        envelope,
        st.integers(0, 9),
        st.integers(1, 9),
        st.sampled_from([BTC, ETH, SOL]),
        st.sampled_from([0, 90, 200, 70_000]),
    ),
    max_size=8,
)


@few_examples
@given(ENVELOPES, CUTS)
def test_the_figures_do_not_depend_on_how_a_stream_is_cut(
    envelopes: list[bytes], cuts: list[int]
) -> None:
    with rig_of() as rig, rig_of() as uncut:
        client, _ = rig.client()
        rig.take(client, *split(b"".join(envelopes), cuts))
        rest = client.rest
        other, _ = uncut.client()
        uncut.take(other, *envelopes)
        found = figures(rig)
        assert found == figures(uncut)
        assert (found["received"], rest) == (len(envelopes), b"")


def test_a_stream_may_come_byte_by_byte(rig: Rig) -> None:
    client, far = rig.client(step="subscribe")
    stream = ACK + PING + envelope(1, 1) + envelope(2, 2, size=300)
    rig.take(client, *(bytes((byte,)) for byte in stream))
    assert figures(rig) == expected(received=2, deliveries={1: 1, 2: 1})
    (pong,) = sent_by(far, 1)
    assert isinstance(pong, Pong)


NUMBERED = st.lists(st.integers(1, 9), max_size=6)


@few_examples
@given(NUMBERED, CUTS, CUTS)
def test_nats_messages_are_whole_however_frames_and_reads_cut_them(
    numbers: list[int], frame_cuts: list[int], read_cuts: list[int]
) -> None:
    """nats-server fills its frames arbitrarily."""
    payloads = [payload_of(Event(number, 1000, BTC), 70) for number in numbers]
    lines = b"".join(
        b"MSG odin.token.%b %b %d\r\n%b\r\n" % (BTC.encode(), BTC.encode(), len(p), p)
        for p in payloads
    )
    frames = b"".join(
        b"\x82" + text_frame(piece)[1:] for piece in split(b"+OK\r\n" + lines, frame_cuts)
    )
    with rig_of(dialect="nats") as rig:
        client, _ = rig.client()
        rig.take(client, *split(frames, read_cuts))
        found = figures(rig)
        assert (client.rest, client.partial) == (b"", b"")
    assert found["received"] == len(numbers)
    in_order = [n for place, n in enumerate(numbers) if n > max(numbers[:place], default=0)]
    assert found["deliveries"] == dict.fromkeys(numbers, 0) | dict.fromkeys(in_order, 1)
    assert found["repeated"] == len(numbers) - len(in_order)


def test_several_frames_in_one_read_are_one_read(rig: Rig) -> None:
    client, far = rig.client()
    fd = client.socket.fileno()
    far.sendall(envelope(1, 1) + envelope(2, 2) + envelope(3, 3)[:10])
    rig.fleet.advance(fd)
    assert figures(rig) == expected(received=2, reads=1, deliveries={1: 1, 2: 1})
    far.sendall(envelope(3, 3)[10:])
    rig.fleet.advance(fd)
    rig.fleet.advance(fd)  # with nothing to read
    assert figures(rig) == expected(received=1, reads=1, deliveries={3: 1})


def test_the_latencies_of_each_connection_are_known_after_its_end(rig: Rig) -> None:
    """The summary of a load is asked for when all connections are closed."""
    client, far = rig.client()
    far.sendall(envelope(1, 1))
    rig.fleet.advance(client.socket.fileno())
    rig.fleet.obey("watch")
    far.sendall(envelope(2, 2) + envelope(3, 3))
    rig.fleet.advance(client.socket.fileno())
    assert rig.summary().p99_steps == [step_of_bucket()[LAST_BUCKET]], "it was due long ago"
    rig.fleet.obey("close")
    far.close()
    rig.until(lambda: not rig.connections)
    assert rig.summary().p99_steps == [step_of_bucket()[LAST_BUCKET]]


# --- how connections end


def test_a_connection_that_ends_without_a_close_is_a_1006(rig: Rig) -> None:
    client, far = rig.client()
    fd = client.socket.fileno()
    far.close()
    rig.fleet.advance(fd)
    assert figures(rig) == expected(disconnects={"1006": 1})
    assert client.socket.fileno() == -1
    assert fd not in rig.fleet._clients
    assert rig.connections == 0


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (close_frame(1001, "leaving"), "1001 leaving"),
        (close_frame(4008, "slow consumer"), "4008 slow consumer"),
        (b"\x88\x02\x03\xe8", "1000"),
        (b"\x88\x00", "1005"),
        (b"\x88\x04\x03\xe8\xff\xfe", "1000 \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_a_disconnect_is_counted_by_its_code_and_text(frame: bytes, reason: str, rig: Rig) -> None:
    for _ in range(2):
        client, far = rig.client()
        rig.read(client, far, frame)
        far.shutdown(socket.SHUT_WR)
        rig.fleet.advance(client.socket.fileno())
    assert figures(rig) == expected(reads=2, disconnects={reason: 2})
    assert figures(rig)["disconnects"] == {}


def test_new_reasons_each_time_do_not_fill_the_report(rig: Rig) -> None:
    for number in range(50):
        client, far = rig.client()
        far.sendall(close_frame(4000, f"you are number {number}"))
        far.shutdown(socket.SHUT_WR)
        rig.fleet.advance(client.socket.fileno())
        rig.fleet.advance(client.socket.fileno())
    disconnects = rig.collect().disconnects
    assert len(disconnects) == 21
    assert disconnects["other"] == 30


# --- answers


def test_a_ping_gets_its_pong_and_a_close_its_close(rig: Rig) -> None:
    client, far = rig.client()
    rig.take(client, b"\x89\x02hi" + envelope(1, 1) + PING + close_frame(1001, "leaving"))
    first, second, close = sent_by(far, 3)
    assert first == Pong(b"hi")
    assert isinstance(second, Pong)
    assert isinstance(close, CloseConnection)
    assert close.code == 1001
    assert figures(rig)["received"] == 1


@pytest.mark.parametrize(
    ("dialect", "ping", "pong"),
    [("nats", b"PING\r\n", b"PONG\r\n"), ("centrifugo", b"{}", "{}")],
)
def test_a_ping_of_the_dialect_gets_the_pong_of_the_dialect(
    dialect: str, ping: bytes, pong: str | bytes
) -> None:
    with rig_of(dialect=dialect) as rig:
        client, far = rig.client()
        rig.take(client, text_frame(ping))
        (answer,) = sent_by(far, 1)
        assert isinstance(answer, Message)
        assert answer.data == pong


def test_error_replies_and_unreadable_frames_are_counted(rig: Rig) -> None:
    client, far = rig.client()
    frames = [ERROR, b"hello", b"{", b'{"seq":x}', b'{"seq":1,"ts":"?"}', b'{"type":"pong","ts":1}']
    rig.read(client, far, ERROR, *(text_frame(frame) for frame in frames[1:]))
    assert figures(rig) == expected(reads=6, error_replies=1, unreadable=4)
    assert client.step is None


# --- the way to a subscription


def test_events_may_follow_directly_after_the_acknowledgement(rig: Rig) -> None:
    client, far = rig.client(step="subscribe")
    rig.read(client, far, ACK + envelope(1, 1))
    assert client.step is None
    assert rig.progress == Progress(connections=1, pending=1 - 1 + 0, received=1)
    connects = rig.summary()
    assert connects.subscribers == {BTC: 1, ETH: 1}
    assert sum(connects.connect_buckets.values()) == connects.connected == 1
    assert figures(rig)["received"] == 1


@few_examples
@given(CUTS)
def test_the_upgrade_answer_may_come_in_pieces_with_frames_after_it(
    cuts: list[int],
) -> None:
    with rig_of() as rig:
        client, far = rig.client(step="upgrade")
        rig.read(client, far, *split(UPGRADED + b"\x89\x00", cuts))
        assert client.step == "subscribe"
        subscribe, pong = sent_by(far, 2)
        assert isinstance(subscribe, Message)
        assert json.loads(bytes(subscribe.data, "utf-8"))["channels"] == [BTC, ETH]
        assert pong == Pong(b"")


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        ('{"type":"subscription_ack","subscribed":["BTC.trade"],"count":1}',
         "subscribed to 1 of 2 channels"),
        ('{"type":"subscription_ack","subscribed":["BTC.trade"]}', "subscribed to 1 of 2 channels"),
        ('{"type":"subscription_ack","subscribed":[],"count":0}', "subscribed to 0 of 2 channels"),
        ('{"type":"error","code":"INVALID_COMMAND"}', "the subscription was refused"),
    ],
)  # fmt: skip
def test_a_subscription_to_too_few_channels_is_a_failure(
    answer: str, failure: str, rig: Rig
) -> None:
    client, far = rig.client(step="subscribe")
    rig.read(client, far, text_frame(answer.encode()) + ERROR + ACK)
    connects = rig.summary()
    assert (connects.connected, connects.failures) == (0, {failure: 1})
    assert connects.subscribers == {}
    assert client.socket.fileno() == -1
    assert rig.progress == Progress(connections=0, pending=0, received=0)


def test_a_refused_upgrade_is_a_rejection_by_its_status(rig: Rig) -> None:
    for text in ("503 Server at capacity", "503 Server at capacity", "404 Not Found", "5" * 900):
        client, far = rig.client(step="upgrade")
        rig.read(client, far, f"HTTP/1.1 {text}\r\nRetry-After: 5\r\n\r\n".encode())
        assert client.socket.fileno() == -1
    rejections = {"503 Server at capacity": 2, "404 Not Found": 1, "5" * 80: 1}
    assert rig.summary().rejections == rejections
    assert rig.summary().failures == {}
    assert rig.progress.pending == 0


@pytest.mark.parametrize(
    ("frame", "failure"),
    [
        (b"", "closed by the server during the handshake"),
        (close_frame(1013, "later"), "closed by the server during the handshake: 1013 later"),
    ],
)
def test_an_end_during_the_handshake_is_a_failure(frame: bytes, failure: str, rig: Rig) -> None:
    client, far = rig.client(step="subscribe")
    if frame:
        rig.read(client, far, frame)
    far.shutdown(socket.SHUT_WR)
    rig.fleet.advance(client.socket.fileno())
    assert rig.summary().failures == {failure: 1}
    assert rig.progress.pending == 0


def test_a_reset_during_the_handshake_is_a_failure(rig: Rig) -> None:
    rig.fleet.obey("connect")
    reset(rig.accept())
    rig.until(lambda: rig.summary().failures)
    assert rig.summary().failures == {"Connection reset by peer": 1}
    assert rig.progress.pending == 0


def test_a_refused_port_is_a_failure_for_each_connection() -> None:
    with rig_of(connections=3, port=free_port()) as rig:
        rig.fleet.obey("connect")
        rig.until(lambda: not rig.progress.pending)
        assert rig.summary().failures == {"Connection refused": 3}


def test_an_unreachable_address_is_a_failure_at_once() -> None:
    with rig_of(source="192.0.2.1") as rig:
        rig.fleet.obey("connect")
        rig.until(lambda: not rig.progress.pending)
        assert rig.summary().failures == {"Cannot assign requested address": 1}


def test_a_silent_server_is_given_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_LATE_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(client_module, "_CONNECT_SECONDS", 0.05)
    rig.fleet.obey("connect")
    rig.accept()
    rig.until(lambda: not rig.progress.pending)
    assert rig.summary().failures == {"not subscribed within 0 s": 1}


def test_connects_not_accepted_in_time_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_STORM_SECONDS", 0.0)
    with rig_of(connections=5, in_flight=2) as rig:
        rig.fleet.obey("connect")
        rig.until(lambda: rig.summary().failures)
        assert rig.summary().failures == {"not begun in time": 3}
        assert rig.progress.pending == 2


def test_without_a_filter_everybody_gets_everything() -> None:
    workload = Workload(channels=[BTC, ETH, SOL], is_filtered=False)
    with rig_of(workload=workload) as rig:
        client, far = rig.client(BTC, ETH, SOL, step="upgrade")
        rig.read(client, far, UPGRADED + envelope(1, 1, SOL) + b"\x89\x00")
        assert sent_by(far, 1) == [Pong(b"")]
        assert rig.summary().subscribers == {BTC: 1, ETH: 1, SOL: 1}
        assert figures(rig) == expected(received=1, deliveries={1: 1})
