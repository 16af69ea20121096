"""A fleet with rates and compressed frames, one turn at a time, before made-up far ends."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from wsproto.events import Message

from tests.lab.fleet.rig import BTC, ETH, Rig, envelope, expected, figures, rig_of, sent_by
from tests.lab.fleet.wire import (
    DICTIONARY,
    Sent,
    batch,
    batch_tail,
    deflate_payload,
    deflated,
    framed,
    z1_payload,
)
from trio_odin.lab.fleet.batches import Tally
from trio_odin.lab.fleet.dictionary import DictionaryUnavailable, fetch
from trio_odin.lab.fleet.plan import FleetPlan
from trio_odin.lab.fleet.workload import Workload
from trio_odin.wire.frames import text_frame

RATED = Workload(channels=[BTC, ETH], channels_per_connection=2, every_ms=250)
GRANTED = text_frame(
    b'{"type":"subscription_ack","subscribed":["BTC.trade","ETH.trade"],"count":2,"every_ms":500}'
)
NOT_GRANTED = text_frame(
    b'{"type":"subscription_ack","subscribed":["BTC.trade","ETH.trade"],"count":2}'
)
UPGRADED_TO_Z1 = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Protocol: trio-odin.z1\r\n\r\n"
UPGRADED_TO_DEFLATE = (
    b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Extensions: permessage-deflate; "
    b"server_no_context_takeover; client_no_context_takeover\r\n\r\n"
)
ID = sha256(DICTIONARY).hexdigest()[:16]
TICK = (Sent(1, BTC), Sent(4, ETH, 3, 2))


@contextmanager
def pages(bodies: dict[str, bytes], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a server with a dictionary at each of these names."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = bodies.get(self.path.rpartition("/")[2])
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def plan(port: int) -> FleetPlan:
    return FleetPlan(host="127.0.0.1", port=port, workload=RATED, connections=1)


def test_a_rate_is_asked_for_and_the_granted_one_is_reported() -> None:
    with rig_of(workload=RATED, connections=1) as rig:
        rig.obey("connect", object)
        far = rig.accept()
        far.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + GRANTED)
        rig.until(lambda: rig.connections == 1)
        (greeting,) = sent_by(far, 1)
        assert isinstance(greeting, Message)
        assert json.loads(greeting.data) == {
            "type": "subscribe", "channels": [BTC, ETH], "every_ms": 250,
        }  # fmt: skip
        assert rig.summary().granted_ms == {500: 1}


def test_a_server_without_rates_is_not_measured_as_one_with_rates() -> None:
    with rig_of(workload=RATED, connections=1) as rig:
        rig.obey("connect", object)
        rig.accept().sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + NOT_GRANTED)
        rig.until(lambda: rig.summary().failures)
        assert rig.summary().failures == {"the server grants no rate": 1}


def test_ticks_are_accounted_for_by_channel() -> None:
    with rig_of(workload=RATED, connections=2) as rig:
        (one, _), (two, _) = rig.client(), rig.client()
        for client in (one, two):
            rig.take(client, text_frame(batch(1, *TICK)), text_frame(batch(2, Sent(5, BTC, 1))))
        rig.take(one, text_frame(batch(3, Sent(7, BTC, 6, 1))))
        assert rig.progress.skipped == 5
        assert figures(rig) == expected(received=7, skipped=5, deliveries={1: 2, 4: 2, 5: 2, 7: 1})
        assert sorted(rig.summary().tallies) == [
            Tally(BTC, 2, 0, 1), Tally(BTC, 3, 1, 1), Tally(ETH, 1, 2, 2),
        ]  # fmt: skip


def test_connections_that_were_replaced_account_for_nothing() -> None:
    with rig_of(workload=RATED, connections=1) as rig:
        client, _ = rig.client()
        rig.take(client, text_frame(batch(1, *TICK)))
        client.was_subscribed = True
        client.begin(client.socket)
        client.step = None
        assert rig.summary().tallies == []


def test_bytes_and_segments_of_reads_are_counted(rig: Rig) -> None:
    client, far = rig.client()
    long = envelope(2, 2, size=2000)
    rig.read(client, far, envelope(1, 1), long)
    collected = rig.collect()
    assert collected.bytes == len(envelope(1, 1)) + len(long)
    assert (collected.reads, collected.packets, collected.received.frames) == (2, 1 + 2, 2)


# --- compressed


def connected(rig: Rig, answer: bytes) -> None:
    rig.obey("connect", object)
    rig.accept().sendall(answer + GRANTED)


def test_a_dictionary_is_fetched_once_and_binary_messages_are_read() -> None:
    with (
        pages({ID: DICTIONARY}) as port,
        rig_of(encoding="z1", connections=2, workload=RATED) as rig,
    ):
        told = text_frame(
            b'{"type":"dictionary","id":"%b","bytes":81,"url":"/dictionary/%b"}'
            % (ID.encode(), ID.encode())
        )
        rig.fleet._plan = FleetPlan(
            host="127.0.0.1", port=port, encoding="z1", connections=1, workload=RATED
        )
        (one, _), (two, _) = rig.client(step="subscribe"), rig.client(step="subscribe")
        rig.take(one, told, GRANTED)
        port_of_no_server = FleetPlan(
            host="127.0.0.1", port=1, encoding="z1", connections=1, workload=RATED
        )
        rig.fleet._plan = port_of_no_server
        rig.take(two, told, GRANTED)
        for seq, client in ((1, one), (300, two)):
            rig.take(client, framed(0x82, z1_payload(seq, batch_tail(TICK))))
        assert figures(rig) == expected(received=4, skipped=4, gaps=299, deliveries={1: 2, 4: 2})


def test_another_dictionary_or_none_is_refused() -> None:
    with pages({"known": b"another", ID: DICTIONARY}) as port:
        assert fetch(plan(port), f"/dictionary/{ID}", ID) == DICTIONARY
        with pytest.raises(DictionaryUnavailable, match="not the announced one"):
            fetch(plan(port), "/dictionary/known", ID)
        with pytest.raises(DictionaryUnavailable, match="answers 404"):
            fetch(plan(port), "/dictionary/unknown", ID)
    with pytest.raises(DictionaryUnavailable, match="Connection refused"):
        fetch(plan(port), f"/dictionary/{ID}", ID)


@pytest.mark.parametrize("encoding", ["z1", "deflate"])
def test_a_server_that_does_not_accept_the_encoding_is_not_measured(encoding: str) -> None:
    with rig_of(encoding=encoding, connections=1, workload=RATED) as rig:
        connected(rig, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")
        rig.until(lambda: rig.summary().failures)
        assert rig.summary().failures == {f"the server does not speak {encoding}": 1}


def test_permessage_deflate_is_read_in_both_forms() -> None:
    with rig_of(encoding="deflate", connections=1, workload=RATED) as rig:
        rig.obey("connect", object)
        far = rig.accept()
        ack = framed(0xC1, deflated(GRANTED[4:] if GRANTED[1] == 126 else GRANTED[2:]))
        far.sendall(UPGRADED_TO_DEFLATE + ack)
        rig.until(lambda: rig.connections == 1)
        far.sendall(framed(0xC1, deflate_payload(1, batch_tail(TICK))))
        far.sendall(framed(0xC1, deflated(batch(2, Sent(9, BTC, 8, 3)))))
        rig.until(lambda: rig.progress.received == 3)
        assert figures(rig) | {"reads": 0} == expected(
            received=3, skipped=5, deliveries={1: 1, 4: 1, 9: 1}
        )


@pytest.mark.parametrize(
    ("encoding", "frame"),
    [("z1", framed(0x82, b"\x01nonsense")), ("deflate", framed(0xC1, b"\xff\xffnonsense"))],
)
def test_a_frame_that_cannot_be_inflated_is_unreadable(encoding: str, frame: bytes) -> None:
    with closing(Rig(encoding=encoding, workload=RATED)) as rig:
        client, _ = rig.client()
        rig.take(client, frame)
        assert figures(rig) == expected(unreadable=1)


def test_a_binary_frame_is_accepted_for_the_subprotocol_only() -> None:
    with rig_of(encoding="z1", connections=1, workload=RATED) as rig:
        connected(rig, UPGRADED_TO_Z1)
        rig.until(lambda: rig.connections == 1)
