from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from tests.e2e.conftest import StartServer, url_of, wait_for_nats
from tests.e2e.conftest import start_server as start_server  # noqa: PLC0414 - a fixture
from tests.e2e.nats import free_port, nats_client, running_nats
from tests.lab.capacity.wire import FakeServer, Message, Peer, is_wanted
from trio_odin.lab.capacity import checks as program
from trio_odin.lab.capacity import judgement as judge
from trio_odin.lab.capacity.checks import STEP_SECONDS, check_wire, run_checks
from trio_odin.lab.capacity.judgement import QUESTIONS, Event, Question, Received, read_message
from trio_odin.lab.load.criteria import Check

pytestmark = pytest.mark.e2e

_NEED_EVENTS = {*QUESTIONS} - {judge.SUBSCRIBE, judge.HEARTBEAT}


def unmet(checks: Iterable[Check]) -> set[str]:
    return {check.what for check in checks if not check.is_met}


def whats(questions: Iterable[Question]) -> set[str]:
    return {question.what for question in questions}


async def found_at(
    url: str,
    publish: Callable[[str, bytes], Any],
    *,
    seed: int = 0,
    step_seconds: float = 3 * STEP_SECONDS,
) -> dict[Question, Check]:
    """By default so patient that a busy machine is no fault of the server."""
    found: dict[Question, Check] = {}
    with trio.fail_after(90):
        await check_wire(url, publish, found, seed=seed, step_seconds=step_seconds)
    assert found.keys() == {*QUESTIONS}
    return found


async def test_the_real_server_meets_all_checks_while_others_publish(
    start_server: StartServer, nats_url: str, nursery: trio.Nursery
) -> None:
    server = await start_server(NATS_URL=nats_url)
    await wait_for_nats(server)

    async def others() -> None:
        async with nats_client(nats_url) as publisher:
            while True:
                for channel in ("BTC.trade", "SOL.trade", "BTC.liquidity"):
                    await publisher.publish(f"odin.token.{channel}", b"1")
                await trio.sleep(0.01)

    nursery.start_soon(others)
    checks = await run_checks(url_of(server), nats_url, seed=1)
    assert unmet(checks) == set()
    assert [check.what for check in checks] == [question.what for question in QUESTIONS]
    assert {check.source for check in checks} == {"plan", "ours"}
    nursery.cancel_scope.cancel(reason="checked")


async def test_without_jetstream_they_are_met_too(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path, jetstream=False) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        assert unmet(await run_checks(url_of(server), nats.url, seed=2)) == set()


async def test_without_filtering_what_is_foreign_is_found(
    start_server: StartServer, nats_url: str
) -> None:
    server = await start_server(NATS_URL=nats_url, ENABLE_SUBSCRIPTION_FILTERING="false")
    await wait_for_nats(server)
    checks = await run_checks(url_of(server), nats_url, seed=1)
    foreign = [judge.SOL_TRADE, judge.BTC_LIQUIDITY, judge.AFTERWARDS, judge.CROWD]
    assert unmet(checks) == whats(foreign)
    measured = {check.what: check.measured for check in checks}
    assert measured[judge.SOL_TRADE.what] == "received"
    assert measured[judge.CROWD.what].startswith("0 of 100; client 0: 0 lost, ")


async def test_without_nats_what_needs_no_event_is_found_all_the_same(
    start_server: StartServer,
) -> None:
    nats_url = f"nats://someone:secret@127.0.0.1:{free_port()}"
    server = await start_server(NATS_URL=nats_url)
    checks = await run_checks(url_of(server), nats_url, seed=1)
    assert unmet(checks) == whats(_NEED_EVENTS)
    failed = [check.measured for check in checks if not check.is_met]
    assert all(sentence.startswith("cannot connect to NATS at 127.0.0.1:") for sentence in failed)
    assert "secret" not in str(failed)


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trio_odin.lab.capacity.checks", *arguments],
        capture_output=True,
        text=True,
        timeout=70,
        check=False,
    )


def test_without_a_server_every_check_is_a_sentence_and_the_exit_code_is_1(tmp_path: Path) -> None:
    with running_nats(tmp_path) as nats:
        ended = run_program(f"ws://127.0.0.1:{free_port()}/ws", nats.url)
    assert (ended.returncode, ended.stderr) == (1, "")
    checks = json.loads(ended.stdout)
    assert len(checks) == len(QUESTIONS)
    assert not any(check["is_met"] for check in checks)
    assert all("cannot connect to ws://127.0.0.1:" in check["measured"] for check in checks)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "ws://", "nonsense", "ws://127.0.0.1:x/"])
def test_a_url_that_is_none_is_a_sentence(url: str) -> None:
    ended = run_program(url, "nats://127.0.0.1:1")
    assert (ended.returncode, ended.stderr) == (1, "")
    assert not any(check["is_met"] for check in json.loads(ended.stdout))


async def test_the_program_prints_json_and_exits_with_0_if_all_are_met(
    start_server: StartServer, nats_url: str
) -> None:
    server = await start_server(NATS_URL=nats_url)
    await wait_for_nats(server)
    ended = await trio.to_thread.run_sync(
        run_program, url_of(server), nats_url, "--seed", "3", abandon_on_cancel=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    found = msgspec.json.decode(ended.stdout, type=list[Check])
    assert len(found) == len(QUESTIONS)
    assert all(check.is_met for check in found)


async def test_a_server_that_says_nothing_is_a_sentence(nursery: trio.Nursery) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/ws"

    async def publish(_: str, __: bytes) -> None: ...

    found = await found_at(url, publish, step_seconds=0.1)
    assert unmet(found.values()) == whats(QUESTIONS)
    assert "timed out" in found[judge.HEARTBEAT].measured
    await listener.aclose()


async def test_all_of_it_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "DEADLINE_SECONDS", 0.5)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/ws"
    checks = await run_checks(url, f"nats://127.0.0.1:{free_port()}", seed=0)
    assert {check.measured for check in checks} == {"not reached within 0.5 s"}
    assert unmet(checks) == whats(QUESTIONS)
    await listener.aclose()


# ---- Each check against a server that deserves it


async def test_a_server_without_a_fault_meets_all_checks(nursery: trio.Nursery) -> None:
    server = FakeServer()
    url = await server.start(nursery)
    found = await found_at(url, server.publish, seed=5)
    assert unmet(found.values()) == set()
    again = await found_at(url, server.publish, seed=5)
    other = await found_at(url, server.publish, seed=6)
    assert found[judge.CROWD] == again[judge.CROWD] != other[judge.CROWD]
    nursery.cancel_scope.cancel(reason="checked")


def changed(kind: str, **changes: Any) -> Callable[[Message], Message | None]:
    """Change the messages of a type; a key that becomes None is left out."""

    def spoil(message: Message) -> Message | None:
        if message["type"] != kind:
            return message
        return {k: v for k, v in {**message, **changes}.items() if v is not None}

    return spoil


def lost(kind: str) -> Callable[[Message], Message | None]:
    return lambda message: None if message["type"] == kind else message


def lost_event(symbol: str, number: int) -> Callable[[Message], Message | None]:
    def spoil(message: Message) -> Message | None:
        is_it = message.get("seq") == number and message["channel"].startswith(f"{symbol}-")
        return None if is_it else message

    return spoil


def skipping(message: Message) -> Message:
    return {**message, "seq": message["seq"] + 1} if message.get("seq", 0) > 2 else message


def dear(message: Message) -> Message:
    is_event = "data" in message
    return {**message, "data": {**message["data"], "price": 64123.0}} if is_event else message


def also(symbol: str) -> Callable[[Peer, str], bool]:
    return lambda peer, channel: is_wanted(peer, channel) or channel.startswith(f"{symbol}-")


def never(symbol: str) -> Callable[[Peer, str], bool]:
    return lambda peer, channel: is_wanted(peer, channel) and not channel.startswith(f"{symbol}-")


def by_symbol(peer: Peer, channel: str) -> bool:
    return any(name.startswith(channel.partition(".")[0] + ".") for name in peer.channels)


def renumbered(envelopes: Iterable[Message]) -> Iterable[Message]:
    return [{**envelope, "seq": envelope["seq"] - 1} for envelope in envelopes]


def at_another_time(envelopes: Iterable[Message]) -> Iterable[Message]:
    return [{**envelope, "ts": envelope["ts"] + 1} for envelope in envelopes]


EVENT = "price:update"
STOPPED = {*QUESTIONS[5:9]}  # what the first scenario has not reached when ETH.trade does not come


@pytest.mark.parametrize(
    ("server", "questions"),
    [
        (FakeServer(changed("subscription_ack", count=3)), {judge.SUBSCRIBE}),
        (FakeServer(changed("subscription_ack", subscribed=[])), {judge.SUBSCRIBE}),
        (FakeServer(wants=never("BTC")), {judge.BTC_TRADE}),
        (FakeServer(wants=also("SOL")), {judge.SOL_TRADE}),
        (FakeServer(wants=by_symbol), {judge.BTC_LIQUIDITY, judge.CROWD}),
        (FakeServer(changed("unsubscription_ack", count=2)), {judge.UNSUBSCRIBE}),
        (FakeServer(forgets=False), {judge.AFTERWARDS}),
        (FakeServer(skipping), {judge.NUMBERS, judge.CROWD, judge.REPLAY}),
        (FakeServer(changed(EVENT, ts=None)), {judge.ENVELOPES}),
        (FakeServer(changed(EVENT, ts=1759027038)), {judge.ENVELOPES}),
        (FakeServer(changed(EVENT, priority=2)), {judge.ENVELOPES}),
        (FakeServer(changed(EVENT, type="trade")), {judge.ENVELOPES}),
        (FakeServer(dear), {judge.ENVELOPES}),
        (FakeServer(lost_event("C3", 20)), {judge.CROWD}),
        (FakeServer(wants=also("C3")), {judge.CROWD}),
        (FakeServer(wants=never("C3")), {judge.CROWD}),
        (FakeServer(spoil_replay=renumbered), {judge.REPLAY}),
        (FakeServer(spoil_replay=at_another_time), {judge.REPLAY}),
        (FakeServer(spoil_replay=lambda _: []), {judge.REPLAY}),
        (FakeServer(changed("error", code="INVALID_JSON")), {judge.BAD_COMMANDS}),
        (FakeServer(on_bad_command=lambda peer: peer.history.clear()), {judge.UNDISTURBED}),
        (FakeServer(changed("pong", ts=None)), {judge.HEARTBEAT}),
    ],
)
async def test_a_fault_is_found_by_the_checks_that_are_about_it(
    server: FakeServer, questions: set[Question], nursery: trio.Nursery
) -> None:
    found = await found_at(await server.start(nursery), server.publish)
    assert unmet(found.values()) == whats(questions)
    nursery.cancel_scope.cancel(reason="checked")


@pytest.mark.parametrize(
    ("server", "questions"),
    [
        (FakeServer(lost("subscription_ack")), {*QUESTIONS} - {judge.HEARTBEAT}),
        (
            FakeServer(wants=never("ETH")),
            {judge.ETH_TRADE, judge.SOL_TRADE, judge.BTC_LIQUIDITY, *STOPPED},
        ),
        (FakeServer(lost("unsubscription_ack")), {judge.UNSUBSCRIBE}),
        (FakeServer(lost("error")), {judge.BAD_COMMANDS}),
        (FakeServer(on_bad_command=lambda peer: peer.channels.clear()), {judge.UNDISTURBED}),
        (FakeServer(lost("pong")), {judge.HEARTBEAT}),
    ],
)
async def test_what_does_not_come_is_found_by_the_checks_that_wait_for_it(
    server: FakeServer, questions: set[Question], nursery: trio.Nursery
) -> None:
    found = await found_at(await server.start(nursery), server.publish, step_seconds=2)
    assert unmet(found.values()) == whats(questions)
    nursery.cancel_scope.cancel(reason="checked")


async def test_a_connection_that_ends_is_a_sentence(nursery: trio.Nursery) -> None:
    server = FakeServer()
    url = await server.start(nursery)

    async def close_instead(_: str, __: bytes) -> None:
        for peer in [*server.peers]:
            await peer.connection.aclose(1011, "Internal error")

    found = await found_at(url, close_instead)
    assert unmet(found.values()) == whats(_NEED_EVENTS)
    assert found[judge.BTC_TRADE].measured == "the server closed with 1011 Internal error"
    assert "the server closed with 1011" in found[judge.CROWD].measured
    nursery.cancel_scope.cancel(reason="checked")


async def test_nats_that_goes_away_is_a_sentence(nursery: trio.Nursery) -> None:
    server = FakeServer()

    async def fail(_: str, __: bytes) -> None:
        raise ConnectionResetError("the wire is cut")

    found = await found_at(await server.start(nursery), fail)
    assert unmet(found.values()) == whats(_NEED_EVENTS)
    assert "the wire is cut" in found[judge.CROWD].measured
    nursery.cancel_scope.cancel(reason="checked")


# ---- The judgements, where a server would be hard to make wrong enough

A, B, C = (Event("BTC.trade", name) for name in "abc")


def envelope(event: Event, seq: int) -> Message:
    return {"seq": seq, "ts": 1759027038365, "type": EVENT, "priority": 1, "data": event.data}


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ([A, B, C], ""),
        ([A, C, B], "not in order"),
        ([A, B], "1 lost"),
        ([A, B, B, C], "1 foreign or doubled"),
        ([A, Event("ETH.trade", "x"), B, C], "1 foreign or doubled"),
        ([], "3 lost"),
    ],
)
def test_a_client_of_the_crowd_gets_its_own_in_order(names: list[Event], why: str) -> None:
    got = Received([envelope(event, seq) for seq, event in enumerate(names, 1)])
    check = judge.each_got_its_own(judge.CROWD, [(got, [A, B, C])] * 2)
    assert check.is_met == (not why)
    assert why in check.measured
    assert check.measured.startswith("0 of 2" if why else "2 of 2, 6 envelopes")


def test_a_crowd_whose_numbers_have_a_gap_has_lost_something() -> None:
    got = Received([envelope(A, 1), envelope(B, 3)])
    assert not judge.each_got_its_own(judge.CROWD, [(got, [A, B])]).is_met


def test_nothing_is_no_proof() -> None:
    nothing = Received([], "no event within 5 s")
    kept_away = judge.kept_away(judge.SOL_TRADE, nothing, A, B)
    assert (kept_away.is_met, kept_away.measured) == (False, "undecided: no event within 5 s")
    assert not judge.numbered(judge.NUMBERS, []).is_met
    assert not judge.well_formed(judge.ENVELOPES, [], [A]).is_met
    assert not judge.each_got_its_own(judge.CROWD, []).is_met
    assert not judge.same_again(judge.REPLAY, [], Received([]), 2, 4).is_met


def test_what_comes_with_the_marker_is_seen_though_it_is_not_what_was_feared() -> None:
    got = Received([envelope(C, 1), envelope(B, 2)])
    check = judge.kept_away(judge.SOL_TRADE, got, A, B)
    assert (check.is_met, check.measured) == (False, "not received, but something else was")


@pytest.mark.parametrize("text", [b'{"seq":1}', "", "{", "[]", "1", '"seq"', "[" * 100_000])
def test_what_is_no_json_object_in_a_text_frame_counts_as_a_malformed_envelope(
    text: str | bytes,
) -> None:
    messages = [read_message(text)]
    assert not judge.well_formed(judge.ENVELOPES, messages, [A]).is_met
    assert not judge.numbered(judge.NUMBERS, messages).is_met


@pytest.mark.parametrize("key", ["seq", "ts", "type", "priority", "data"])
def test_every_key_of_an_envelope_is_needed(key: str) -> None:
    message = envelope(A, 1)
    assert judge.well_formed(judge.ENVELOPES, [message], [A]).is_met
    wrong = {**message, key: json.dumps(message[key])}
    assert not judge.well_formed(judge.ENVELOPES, [wrong], [A]).is_met
    del message[key]
    assert not judge.well_formed(judge.ENVELOPES, [message], [A]).is_met
