"""The lives of a fleet's connections: ramp, loss, cut, churn, end."""

from __future__ import annotations

import socket
import time

import pytest
from wsproto.events import CloseConnection

from tests.lab.fleet.rig import (
    ACK,
    BTC,
    ETH,
    SOON,
    UPGRADED,
    Rig,
    envelope,
    is_reset,
    reset,
    rig_of,
    sent_by,
)
from trio_odin.lab.fleet.client import _Client
from trio_odin.lab.fleet.plan import Progress
from trio_odin.wire.frames import close_frame

# --- all of them


def test_concurrent_connects_are_limited_by_the_plan() -> None:
    with rig_of(connections=5, in_flight=2) as rig:
        rig.fleet.obey("connect")
        far, _ = rig.accept(), rig.accept()
        assert len(rig.fleet._clients) == 2
        far.sendall(UPGRADED + ACK)
        rig.until(lambda: len(rig.fleet._clients) == 3)
        assert rig.progress == Progress(connections=1, pending=4, received=0)


def test_nothing_is_begun_before_the_command(rig: Rig) -> None:
    rig.turn()
    assert rig.fleet._clients == {}
    assert rig.progress == Progress(connections=0, pending=0, received=0)


def test_a_ramp_begins_the_planned_connects_a_second() -> None:
    with rig_of(connections=20, ramp_per_second=10.0) as rig:
        rig.fleet.obey("connect")
        started = rig.fleet._started
        begun = []
        for seconds in (0.0, 0.05, 0.15, 1.0, 1.04, 5.0):
            rig.fleet.tick(started + seconds)
            begun.append(len(rig.fleet._clients))
        assert begun == [1, 1, 2, 11, 11, 20]


def test_a_connection_that_does_not_read_is_still_subscribed() -> None:
    with rig_of(is_reading=False) as rig:
        rig.fleet.obey("connect")
        far = rig.subscribe()
        far.sendall(envelope(1, 1) * 3)
        for _ in range(20):
            rig.turn()
        assert rig.progress == Progress(connections=1, pending=0, received=0)
        reset(far)
        rig.until(lambda: not rig.connections)
        assert rig.collect().disconnects == {"1006": 1}


def test_it_connects_from_the_address_of_the_plan() -> None:
    with rig_of(source="127.0.0.7") as rig:
        rig.fleet.obey("connect")
        assert rig.accept().getpeername()[0] == "127.0.0.7"


# --- coming back


def test_a_lost_connection_returns_with_new_numbers_in_the_old_order() -> None:
    with rig_of(reconnect_seconds=SOON) as rig:
        rig.fleet.obey("connect")
        far = rig.subscribe()
        far.sendall(envelope(1, 1) + envelope(2, 2))
        rig.until(lambda: rig.progress.received == 2)
        far.close()
        far = rig.subscribe()
        far.sendall(envelope(1, 2) + envelope(2, 3))
        rig.until(lambda: rig.progress.received == 4)
        found = rig.collect()
        assert found.disconnects == {"1006": 1}
        assert (found.received.gaps, found.received.repeated) == (0, 1)
        summary = rig.summary()
        assert (summary.connected, summary.subscribers) == (1, {BTC: 1, ETH: 1})
        assert sum(summary.connect_buckets.values()) == 1
        assert (summary.lost, summary.back, sum(summary.back_buckets.values())) == (1, 1, 1)
        assert 0 < summary.first_lost <= summary.last_back <= time.monotonic()


def test_a_connection_without_reconnects_stays_away(rig: Rig) -> None:
    rig.fleet.obey("connect")
    rig.subscribe().close()
    rig.until(lambda: not rig.connections)
    assert rig.progress.pending == 0
    assert (rig.summary().lost, rig.summary().first_lost) == (0, 0.0)


def waits_of(rig: Rig, client: _Client, count: int, wait_seconds: float = 0.0) -> list[float]:
    """The waits before each of its next attempts."""
    waits = []
    for _ in range(count):
        now = time.monotonic()
        rig.fleet._retry(client, wait_seconds)
        waits.append(rig.fleet._returning.pop()[0] - now)
    return waits


def test_the_wait_before_an_attempt_doubles_at_random_up_to_a_limit() -> None:
    with rig_of(reconnect_seconds=2.0) as rig:
        by_try = list(zip(*(waits_of(rig, _Client([BTC]), 8) for _ in range(300)), strict=True))
    for number, waits in enumerate(by_try):
        most = min(30.0, 2.0 * 2**number)
        assert 0 <= min(waits) < most / 10
        assert most * 0.9 < max(waits) < most + 0.1
        assert most * 0.35 < sum(waits) / len(waits) < most * 0.65


def test_a_subscription_resets_the_wait() -> None:
    with rig_of(reconnect_seconds=SOON) as rig:
        rig.fleet.obey("connect")
        reset(rig.accept())
        reset(rig.accept())
        far = rig.subscribe()
        (client,) = rig.fleet._clients.values()
        assert client.attempts == 0
        assert rig.summary().failures == {"Connection reset by peer": 2}
        assert rig.summary().lost == 0  # it was never subscribed
        far.close()


@pytest.mark.parametrize(
    ("header", "wait_seconds"),
    [("Retry-After: 7", 7), ("retry-after:9 ", 9), ("Retry-After: 3600", 30),
     ("Retry-After: soon", 0), ("Retry-After: ²", 0), ("Retry-After: -1", 0), ("X: 7", 0)],
)  # fmt: skip
def test_a_rejected_connection_waits_as_long_as_the_server_asks(
    header: str, wait_seconds: float
) -> None:
    with rig_of(reconnect_seconds=SOON) as rig:
        client, far = rig.client(step="upgrade")
        now = time.monotonic()
        rig.read(client, far, f"HTTP/1.1 503 Busy\r\n{header}\r\n\r\n".encode())
        ((when, _, who),) = rig.fleet._returning
        assert who is client
        assert wait_seconds <= when - now < wait_seconds + 0.5
        assert rig.progress.pending == 1


def test_a_cut_resets_all_connections_and_all_return() -> None:
    with rig_of(connections=4, reconnect_seconds=SOON) as rig:
        rig.fleet.obey("connect")
        cut = [rig.subscribe() for _ in range(4)]
        assert rig.obey("cut", Progress) == Progress(connections=0, pending=4, received=0)
        assert all(is_reset(far) for far in cut)
        for _ in range(4):
            rig.subscribe()
        assert rig.progress == Progress(connections=4, pending=0, received=0)
        summary = rig.summary()
        assert (summary.lost, summary.back, sum(summary.back_buckets.values())) == (4, 4, 4)
        assert 0 < summary.first_lost <= summary.last_back
        assert rig.collect().disconnects == {}  # the server ended none
        assert rig.summary().connected == 4


# --- churn


def test_churn_ends_and_replaces_the_last_connections() -> None:
    with rig_of(connections=3, in_flight=1, churners=2, churn_per_second=1000.0) as rig:
        rig.fleet.obey("connect")
        stays, *churned = (rig.subscribe() for _ in range(3))
        assert rig.summary().subscribers == {BTC: 1, ETH: 1}  # only counted ones
        rig.fleet.obey("churn")
        rig.until(lambda: rig.fleet._churn_done >= 2)
        rig.fleet._churn_from = None  # enough
        in_order, without_a_word = churned
        (close,) = sent_by(in_order, 1)
        assert isinstance(close, CloseConnection)
        assert close.code == 1000
        in_order.sendall(close_frame(1000, ""))
        in_order.close()
        assert without_a_word.recv(100) == b""
        without_a_word.close()
        anew = [rig.subscribe(), rig.subscribe()]
        assert rig.progress == Progress(connections=3, pending=0, received=0)
        for far in (stays, *anew):
            far.sendall(envelope(1, 1) + envelope(3, 2))
        rig.until(lambda: rig.progress.received == 6)
        found = rig.collect()
        assert (found.churned, found.disconnects, found.received.gaps) == (2, {}, 3)
        assert [entry.times for entry in found.received.deliveries] == [1, 1]
        assert (rig.summary().lost, rig.summary().connected) == (0, 3)


def test_churn_rotates_its_connections_at_the_planned_rate() -> None:
    with rig_of(connections=2, churners=2, churn_per_second=10.0) as rig:
        rig.fleet.obey("connect")
        fars = [rig.subscribe(), rig.subscribe()]
        leaving = []
        for seconds in (0.0, 0.09, 0.1, 0.15, 0.25, 9.0):
            rig.fleet._churn(seconds)
            leaving.append(sum(client.is_leaving for client in rig.fleet._churners))
        assert leaving == [0, 0, 1, 1, 2, 2]
        # Each has left once: one in order, one without a close.
        assert (len(sent_by(fars[0], 1)), fars[1].recv(100)) == (1, b"")


def test_churn_ends_connections_in_every_possible_way() -> None:
    with rig_of(connections=6, churners=5, churn_per_second=1000.0) as rig:
        rig.fleet.obey("connect")
        fars = [rig.subscribe() for _ in range(6)][1:]
        rig.fleet._churn(0.005)
        in_order, without_a_word, broken, reset, within = (all_of(far) for far in fars)
        assert in_order[0][:1] == b"\x88"
        assert without_a_word == (b"", "end")
        assert broken[0][:1] == b"\x83"
        assert reset == (b"", "reset")
        assert within[0][:1] in {b"", b"\x81"}  # a reset may undo what was sent
        assert within[1] == "reset"


def all_of(far: socket.socket) -> tuple[bytes, str]:
    """The received bytes, and the kind of end; silence for a while is an end, too."""
    received = b""
    far.settimeout(0.2)
    try:
        while chunk := far.recv(100):
            received += chunk
    except TimeoutError:
        return received, "open"
    except ConnectionResetError:
        return received, "reset"
    return received, "end"


# --- the end


def test_a_close_is_in_order_and_nothing_reconnects() -> None:
    with rig_of(connections=3, in_flight=1, reconnect_seconds=SOON) as rig:
        rig.fleet.obey("connect")
        answers, says_nothing = rig.subscribe(), rig.subscribe()
        half = rig.accept()
        assert rig.obey("close", Progress) == Progress(connections=2, pending=0, received=0)
        rig.fleet.obey("close")  # once is enough
        for far in (answers, says_nothing):
            (close,) = sent_by(far, 1)
            assert isinstance(close, CloseConnection)
            assert close.code == 1000
            far.settimeout(0.02)
            with pytest.raises(TimeoutError):
                far.recv(1)
        assert half.recv(1) == b""
        answers.sendall(close_frame(1000, ""))
        answers.close()
        says_nothing.close()
        rig.until(lambda: not rig.connections)
        for _ in range(20):
            rig.turn()
        assert rig.progress == Progress(connections=0, pending=0, received=0)
        assert rig.summary().closed_cleanly == 1
        assert (rig.summary().lost, rig.collect().disconnects) == (0, {})


def test_clients_that_do_not_read_are_closed_without_an_answer() -> None:
    with rig_of(is_reading=False) as rig:
        rig.fleet.obey("connect")
        rig.subscribe()
        assert rig.obey("close", Progress).connections == 0


def test_a_connection_without_events_stays_silent_after_the_close() -> None:
    with rig_of(connections=2, reconnect_seconds=SOON) as rig:
        rig.fleet.obey("connect")
        one, two = rig.subscribe(), rig.subscribe()
        assert rig.summary().silent == 2
        one.sendall(envelope(1, 1))
        two.sendall(envelope(0, 1))  # of a server without numbers
        rig.until(lambda: rig.progress.received == 2)
        assert rig.summary().silent == 0
        one.close()
        rig.subscribe()
        assert rig.summary().silent == 1
        rig.fleet.obey("close")
        two.close()
        rig.until(lambda: rig.connections == 1)
        assert rig.summary().silent == 1
