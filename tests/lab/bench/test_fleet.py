from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import attrs
import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Message, Pong
from wsproto.events import Event as WsprotoEvent

from tests.e2e.conftest import StartServer, check_balance, start_server, wait_for_nats, wait_until
from tests.e2e.nats import nats_client
from trio_odin.core.frame import PING, close_frame, text_frame
from trio_odin.lab.bench.dialects import Event, payload_of
from trio_odin.lab.bench.fleet import Collected, Connected, Fleet, FleetPlan, _Client

__all__ = ["start_server"]  # a fixture

BTC, ETH, SOL = "BTC.trade", "ETH.trade", "SOL.trade"
ACK = text_frame(b'{"type":"subscription_ack","subscribed":["BTC.trade","ETH.trade"]}')


# Each example has sockets and a buffer to make.
few_examples = settings(max_examples=40, deadline=None)


class Rig:
    """A fleet whose connections are one end of a pair of sockets each."""

    def __init__(self, dialect: str = "odin") -> None:
        plan = FleetPlan(
            host="127.0.0.1",
            port=1,
            dialect=dialect,
            connections=2,
            channels=[BTC, ETH],
            channels_per_connection=2,
        )
        self.fleet = Fleet(plan)
        self._sockets: list[socket.socket] = []

    def client(self, *channels: str, step: str | None = None) -> tuple[_Client, socket.socket]:
        """A connection of the fleet, subscribed unless `step` is another, and its far end."""
        near, far = socket.socketpair()
        self._sockets += near, far
        near.setblocking(False)
        far.settimeout(5)
        client = _Client(near, list(channels or (BTC, ETH)))
        client.step = step
        self.fleet._clients[near.fileno()] = client
        self.fleet._epoll.register(near.fileno())
        return client, far

    def take(self, client: _Client, *pieces: bytes) -> None:
        for piece in pieces:
            self.fleet._take(client.socket.fileno(), client, piece)

    def close(self) -> None:
        self.fleet._epoll.close()
        for one in self._sockets:
            one.close()


@contextmanager
def rig_of(dialect: str = "odin") -> Iterator[Rig]:
    rig = Rig(dialect)
    try:
        yield rig
    finally:
        rig.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    with rig_of() as one:
        yield one


def envelope(seq: int, number: int, channel: str = BTC, size: int = 60) -> bytes:
    """A frame of trio_odin's wire; without `seq` if that is 0."""
    number_of_it = b'"seq":%d,' % seq if seq else b""
    payload = payload_of(Event(number, 1000, channel), size)
    return text_frame(b'{%b"channel":"%b","data":%b}' % (number_of_it, channel.encode(), payload))


def figures(rig: Rig) -> dict[str, Any]:
    """What was collected, but for what depends on the clock."""
    collected = attrs.asdict(rig.fleet._collect())
    buckets = collected.pop("buckets")
    assert collected.pop("cpu_seconds") >= 0
    assert sum(buckets.values()) == sum(collected["deliveries"].values())
    return collected


def expected(**changes: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = {
        "received": 0,
        "reads": 0,
        "deliveries": {},
        "gaps": 0,
        "repeated": 0,
        "foreign": 0,
        "disconnects": 0,
    }
    return nothing | changes


def sent_by(far: socket.socket, number: int) -> list[WsprotoEvent]:
    """The next frames that the fleet has sent, as a server reads them."""
    server = Connection(ConnectionType.SERVER)
    events: list[WsprotoEvent] = []
    while len(events) < number:
        data = far.recv(4096)
        assert data, "the fleet has closed the socket"
        server.receive_data(data)
        events += server.events()
    return events


# --- counting


def test_what_is_in_order_is_received_and_nothing_else(rig: Rig) -> None:
    client, _ = rig.client()
    rig.take(client, *(envelope(n, n, (BTC, ETH)[n % 2]) for n in (1, 2, 3)))
    assert figures(rig) == expected(received=3, deliveries={1: 1, 2: 1, 3: 1})


def test_a_jump_of_the_number_is_a_gap_as_long_as_the_jump(rig: Rig) -> None:
    client, _ = rig.client()
    rig.take(client, envelope(2, 1), envelope(3, 2), envelope(7, 3))
    assert figures(rig)["gaps"] == 1 + 3


def test_what_has_no_number_has_no_gaps(rig: Rig) -> None:
    client, _ = rig.client()
    rig.take(client, envelope(0, 5), envelope(0, 9))
    assert figures(rig) == expected(received=2, deliveries={5: 1, 9: 1})


def test_an_event_that_comes_again_or_late_is_repeated(rig: Rig) -> None:
    client, _ = rig.client()
    rig.take(client, envelope(1, 4), envelope(2, 4), envelope(3, 3), envelope(4, 5))
    assert figures(rig) == expected(received=4, repeated=2, deliveries={3: 0, 4: 1, 5: 1})


def test_an_event_of_a_channel_that_was_not_subscribed_to_is_foreign(rig: Rig) -> None:
    client, _ = rig.client(BTC)
    rig.take(client, envelope(1, 1, BTC), envelope(2, 2, SOL), envelope(3, 3, ETH))
    assert figures(rig) == expected(received=3, foreign=2, deliveries={1: 1, 2: 0, 3: 0})


def test_each_connection_has_its_own_order_and_all_count_for_an_event(rig: Rig) -> None:
    one, _ = rig.client()
    two, _ = rig.client()
    rig.take(one, envelope(1, 1), envelope(2, 2))
    rig.take(two, envelope(1, 1), envelope(3, 2))
    assert figures(rig) == expected(received=4, gaps=1, deliveries={1: 2, 2: 2})


def test_the_figures_start_anew_after_they_were_collected_but_not_the_order(rig: Rig) -> None:
    client, _ = rig.client()
    rig.take(client, envelope(1, 1), envelope(3, 2))
    figures(rig)
    assert figures(rig) == expected()
    rig.take(client, envelope(4, 2), envelope(5, 3))
    assert figures(rig) == expected(received=2, repeated=1, deliveries={2: 0, 3: 1})


def test_a_latency_is_counted_from_the_moment_that_was_planned(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = rig.client()
    for number, now_ns in enumerate((1_000, 101_000, 100_999, 50_001_000), start=1):
        with monkeypatch.context() as clock:
            clock.setattr(time, "monotonic_ns", lambda now_ns=now_ns: now_ns)
            rig.take(client, envelope(number, number))
    assert rig.fleet._collect().buckets == {0: 2, 1: 1, 500: 1}


# --- frames and reads


@pytest.mark.parametrize("size", [60, 125, 126, 300, 65_535, 65_536, 100_000])
def test_frames_of_any_length_are_taken_apart(size: int, rig: Rig) -> None:
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
CUTS = st.lists(st.integers(0, 10**6), max_size=8)


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    """`stream` in pieces, none of them empty."""
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[a:b] for a, b in pairwise(places)]


@few_examples
@given(ENVELOPES, CUTS)
def test_wherever_a_stream_is_cut_the_figures_are_the_same(
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
    rig.fleet._in_flight = 1
    stream = ACK + PING + envelope(1, 1) + envelope(2, 2, size=300)
    rig.take(client, *(bytes((byte,)) for byte in stream))
    assert figures(rig) == expected(received=2, deliveries={1: 1, 2: 1})
    (pong,) = sent_by(far, 1)
    assert isinstance(pong, Pong)


NUMBERED = st.lists(st.integers(1, 9), max_size=6)


@few_examples
@given(NUMBERED, CUTS, CUTS)
def test_messages_of_nats_are_whole_however_frames_and_reads_cut_them(
    numbers: list[int], frame_cuts: list[int], read_cuts: list[int]
) -> None:
    """nats-server fills its frames as it likes."""
    payloads = [payload_of(Event(number, 1000, BTC), 70) for number in numbers]
    lines = b"".join(
        b"MSG odin.token.%b %b %d\r\n%b\r\n" % (BTC.encode(), BTC.encode(), len(p), p)
        for p in payloads
    )
    frames = b"".join(
        b"\x82" + text_frame(piece)[1:] for piece in split(b"+OK\r\n" + lines, frame_cuts)
    )
    with rig_of("nats") as rig:
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
    rig.fleet._readable(fd)
    assert figures(rig) == expected(received=2, reads=1, deliveries={1: 1, 2: 1})
    far.sendall(envelope(3, 3)[10:])
    rig.fleet._readable(fd)
    rig.fleet._readable(fd)  # with nothing to read
    assert figures(rig) == expected(received=1, reads=1, deliveries={3: 1})


def test_a_connection_that_the_server_ends_is_a_disconnect(rig: Rig) -> None:
    client, far = rig.client()
    fd = client.socket.fileno()
    far.close()
    rig.fleet._readable(fd)
    assert figures(rig) == expected(disconnects=1)
    assert client.socket.fileno() == -1
    assert fd not in rig.fleet._clients


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
    with rig_of(dialect) as rig:
        client, far = rig.client()
        rig.take(client, text_frame(ping))
        (answer,) = sent_by(far, 1)
        assert isinstance(answer, Message)
        assert answer.data == pong


def test_the_acknowledgement_completes_a_connect_and_events_may_follow_at_once(rig: Rig) -> None:
    client, _ = rig.client(step="subscribe")
    rig.fleet._in_flight = 1
    rig.take(client, ACK + envelope(1, 1))
    assert client.step is None
    assert rig.fleet._in_flight == 0
    assert rig.fleet._subscribers == {BTC: 1, ETH: 1}
    assert len(rig.fleet._connect_ms) == 1
    assert figures(rig)["received"] == 1


@few_examples
@given(CUTS)
def test_the_answer_to_the_upgrade_may_come_in_pieces_and_with_frames_behind_it(
    cuts: list[int],
) -> None:
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
    with rig_of() as rig:
        client, far = rig.client(step="upgrade")
        rig.fleet._in_flight = 1
        for piece in split(head + b"\x89\x00", cuts):
            far.sendall(piece)
            rig.fleet._advance(client.socket.fileno())
        assert client.step == "subscribe"
        subscribe, pong = sent_by(far, 2)
        assert isinstance(subscribe, Message)
        assert json.loads(bytes(subscribe.data, "utf-8"))["channels"] == [BTC, ETH]
        assert pong == Pong(b"")


def test_a_refused_upgrade_is_a_failure_by_its_status(rig: Rig) -> None:
    client, far = rig.client(step="upgrade")
    rig.fleet._in_flight = 1
    far.sendall(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n\r\n")
    rig.fleet._advance(client.socket.fileno())
    assert rig.fleet._failures == {"HTTP/1.1 503 Service Unavailable": 1}
    assert rig.fleet._in_flight == 0
    assert client.socket.fileno() == -1


def test_an_end_during_the_handshake_is_a_failure(rig: Rig) -> None:
    client, far = rig.client(step="upgrade")
    rig.fleet._in_flight = 1
    far.close()
    rig.fleet._advance(client.socket.fileno())
    assert rig.fleet._failures == {"closed by the server during the handshake": 1}


# --- the plan


def test_the_same_seed_gives_the_same_samples() -> None:
    plan = FleetPlan(
        host="a", port=1, connections=50, channels=list("abcdef"), channels_per_connection=3
    )
    samples = list(plan.samples())
    assert samples == list(plan.samples())
    assert samples != list(attrs.evolve(plan, seed=1).samples())
    assert len(samples) == 50
    assert all(len(set(sample)) == 3 and set(sample) <= set("abcdef") for sample in samples)


# --- the process

CHANNELS = [BTC, ETH, SOL, "DOGE.trade"]


class Process:
    """A fleet, spoken to as the bench does."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._received = b""

    async def ask(self, command: str, kind: type[Any]) -> Any:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(f"{command}\n".encode())
        with trio.fail_after(20):
            while True:
                line = await self._line()
                with suppress(msgspec.ValidationError):  # a line of progress
                    return msgspec.json.decode(line, type=kind)

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._received:
            chunk = await self._process.stdout.receive_some()
            assert chunk, "the fleet has ended"
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line

    async def end(self, last_words: bytes) -> int:
        """Say `last_words`, end the input, and wait for the end."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(last_words)
        await self._process.stdin.aclose()
        with trio.fail_after(20):
            return await self._process.wait()


async def start_fleet(plan: FleetPlan, nursery: trio.Nursery) -> Process:
    command = [sys.executable, "-m", "trio_odin.lab.bench.fleet"]

    async def run(*, task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED) -> None:
        await trio.run_process(
            [*command, msgspec.json.encode(plan).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            check=False,
            task_status=task_status,
        )

    return Process(await nursery.start(run))


@pytest.mark.e2e
@pytest.mark.parametrize("last_words", [b"", b"quit\n"])
async def test_a_fleet_counts_exactly_what_a_real_server_delivers(
    last_words: bytes, start_server: StartServer, nats_url: str, nursery: trio.Nursery
) -> None:
    server = await start_server(NATS_URL=nats_url)
    await wait_for_nats(server)
    plan = FleetPlan(
        host="127.0.0.1",
        port=server.addresses[0].port,
        connections=20,
        channels=CHANNELS,
        channels_per_connection=2,
    )
    fleet = await start_fleet(plan, nursery)
    connected: Connected = await fleet.ask("connect", Connected)
    subscribers = Counter(channel for sample in plan.samples() for channel in sample)
    assert (connected.connected, connected.failures) == (20, {})
    assert len(connected.ms) == 20
    assert connected.subscribers == subscribers
    assert server.connections == 20

    published = [(number, CHANNELS[number % 4]) for number in range(1, 31)]
    async with nats_client(nats_url) as broker:
        for number, channel in published:
            payload = payload_of(Event(number, time.monotonic_ns(), channel), 100 * number)
            await broker.publish(f"odin.token.{channel}", payload)
        await broker.flush()
    deliveries = {number: subscribers[channel] for number, channel in published}
    received = sum(deliveries.values())
    with trio.fail_after(20):
        while (await fleet.ask("count", dict[str, int]))["received"] < received:
            await trio.sleep(0.01)
    collected: Collected = await fleet.ask("collect", Collected)
    assert collected.received == received == server.ledger.deliveries.written
    assert collected.deliveries == deliveries
    assert (collected.gaps, collected.repeated, collected.foreign) == (0, 0, 0)
    assert collected.disconnects == 0
    assert sum(collected.buckets.values()) == received
    assert 1 <= collected.reads <= received
    assert (await fleet.ask("collect", Collected)).received == 0

    assert await fleet.end(last_words) == 0
    await wait_until(lambda: server.connections == 0)
    check_balance(server)
