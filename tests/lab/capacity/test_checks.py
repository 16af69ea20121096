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
from trio_odin.lab.capacity.checks import (
    QUESTIONS,
    STEP_SECONDS,
    check_envelope,
    check_numbers,
    check_own,
    check_wire,
    data_of,
    run_checks,
)
from trio_odin.lab.capacity.client import Unmet, envelopes_of, read_message
from trio_odin.lab.load.criteria import Check

pytestmark = pytest.mark.e2e

_NEED_EVENTS = {*QUESTIONS} - {program.SUBSCRIBE, program.HEARTBEAT}


def unmet(checks: Iterable[Check]) -> set[str]:
    return {check.what for check in checks if not check.is_met}


def whats(questions: Iterable[Check]) -> set[str]:
    return {question.what for question in questions}


async def found_at(
    url: str,
    publish: Callable[[str, bytes], Any],
    *,
    seed: int = 0,
    step_seconds: float = 3 * STEP_SECONDS,
) -> dict[Check, Check]:
    """Check the server at `url`, with a patience that allows for a busy machine."""
    found: dict[Check, Check] = {}
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


async def test_without_jetstream_the_server_meets_all_checks_too(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path, jetstream=False) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        assert unmet(await run_checks(url_of(server), nats.url, seed=2)) == set()


async def test_without_filtering_the_foreign_events_are_found(
    start_server: StartServer, nats_url: str
) -> None:
    server = await start_server(NATS_URL=nats_url, ENABLE_SUBSCRIPTION_FILTERING="false")
    await wait_for_nats(server)
    checks = await run_checks(url_of(server), nats_url, seed=1)
    foreign = [program.SOL_TRADE, program.LIQUIDITY, program.AFTERWARDS, program.CROWD]
    assert unmet(checks) == whats(foreign)
    measured = {check.what: check.measured for check in checks}
    assert measured[program.SOL_TRADE.what] == "received"
    assert measured[program.CROWD.what].startswith("0 of 100; client 0: 0 lost, ")


async def test_without_nats_the_checks_without_events_still_run(
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


def test_without_a_server_every_check_fails_with_a_sentence(tmp_path: Path) -> None:
    with running_nats(tmp_path) as nats:
        ended = run_program(f"ws://127.0.0.1:{free_port()}/ws", nats.url)
    assert (ended.returncode, ended.stderr) == (1, "")
    checks = json.loads(ended.stdout)
    assert len(checks) == len(QUESTIONS)
    assert not any(check["is_met"] for check in checks)
    assert all("cannot connect to ws://127.0.0.1:" in check["measured"] for check in checks)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "ws://", "nonsense", "ws://127.0.0.1:x/"])
def test_a_malformed_url_gives_a_sentence(url: str) -> None:
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


async def test_a_silent_server_gives_a_sentence(nursery: trio.Nursery) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/ws"

    async def publish(_: str, __: bytes) -> None: ...

    found = await found_at(url, publish, step_seconds=0.1)
    assert unmet(found.values()) == whats(QUESTIONS)
    assert "timed out" in found[program.HEARTBEAT].measured
    await listener.aclose()


async def test_the_checks_have_a_deadline_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "DEADLINE_SECONDS", 0.5)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/ws"
    checks = await run_checks(url, f"nats://127.0.0.1:{free_port()}", seed=0)
    assert {check.measured for check in checks} == {"not reached within 0.5 s"}
    assert unmet(checks) == whats(QUESTIONS)
    await listener.aclose()


# ---- each check against a server with that fault


@pytest.fixture
def small_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the crowd finds the same faults, sooner."""
    monkeypatch.setattr(program, "_CROWD", 20)


@pytest.mark.usefixtures("small_crowd")
async def test_a_server_without_a_fault_meets_all_checks(nursery: trio.Nursery) -> None:
    server = FakeServer()
    url = await server.start(nursery)
    found = await found_at(url, server.publish, seed=5)
    assert unmet(found.values()) == set()
    again = await found_at(url, server.publish, seed=5)
    other = await found_at(url, server.publish, seed=6)
    assert found[program.CROWD] == again[program.CROWD] != other[program.CROWD]
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


@pytest.mark.usefixtures("small_crowd")
@pytest.mark.parametrize(
    ("server", "questions"),
    [
        (FakeServer(changed("subscription_ack", count=3)), {program.SUBSCRIBE}),
        (FakeServer(changed("subscription_ack", subscribed=[])), {program.SUBSCRIBE}),
        (FakeServer(wants=never("BTC")), {program.BTC_TRADE}),
        (FakeServer(wants=also("SOL")), {program.SOL_TRADE}),
        (FakeServer(wants=by_symbol), {program.LIQUIDITY, program.CROWD}),
        (FakeServer(changed("unsubscription_ack", count=2)), {program.UNSUBSCRIBE}),
        (FakeServer(forgets=False), {program.AFTERWARDS}),
        (FakeServer(skipping), {program.NUMBERS, program.CROWD, program.REPLAY}),
        (FakeServer(changed(EVENT, ts=None)), {program.ENVELOPES}),
        (FakeServer(changed(EVENT, ts=1759027038)), {program.ENVELOPES}),
        (FakeServer(changed(EVENT, priority=2)), {program.ENVELOPES}),
        (FakeServer(changed(EVENT, type="trade")), {program.ENVELOPES}),
        (FakeServer(dear), {program.ENVELOPES}),
        (FakeServer(lost_event("C3", 20)), {program.CROWD}),
        (FakeServer(wants=also("C3")), {program.CROWD}),
        (FakeServer(wants=never("C3")), {program.CROWD}),
        (FakeServer(spoil_replay=renumbered), {program.REPLAY}),
        (FakeServer(spoil_replay=at_another_time), {program.REPLAY}),
        (FakeServer(spoil_replay=lambda _: []), {program.REPLAY}),
        (FakeServer(changed("error", code="INVALID_JSON")), {program.BAD_COMMANDS}),
        (FakeServer(on_bad_command=lambda peer: peer.history.clear()), {program.UNDISTURBED}),
        (FakeServer(changed("pong", ts=None)), {program.HEARTBEAT}),
    ],
)
async def test_a_fault_is_found_by_the_checks_for_it(
    server: FakeServer, questions: set[Check], nursery: trio.Nursery
) -> None:
    found = await found_at(await server.start(nursery), server.publish)
    assert unmet(found.values()) == whats(questions)
    nursery.cancel_scope.cancel(reason="checked")


@pytest.mark.usefixtures("small_crowd")
@pytest.mark.parametrize(
    ("server", "questions"),
    [
        (
            FakeServer(lost("subscription_ack")),
            {
                program.SUBSCRIBE,
                program.CROWD,
                program.REPLAY,
                program.BAD_COMMANDS,
                program.UNDISTURBED,
            },
        ),
        (
            FakeServer(wants=never("ETH")),
            {program.ETH_TRADE, program.SOL_TRADE, program.LIQUIDITY, program.AFTERWARDS},
        ),
        (FakeServer(lost("unsubscription_ack")), {program.UNSUBSCRIBE}),
        (FakeServer(lost("error")), {program.BAD_COMMANDS}),
        (FakeServer(on_bad_command=lambda peer: peer.channels.clear()), {program.UNDISTURBED}),
        (FakeServer(lost("pong")), {program.HEARTBEAT, program.REPLAY}),
    ],
)
async def test_a_missing_event_is_found_by_the_checks_that_wait_for_it(
    server: FakeServer, questions: set[Check], nursery: trio.Nursery
) -> None:
    found = await found_at(await server.start(nursery), server.publish, step_seconds=2)
    assert unmet(found.values()) == whats(questions)
    nursery.cancel_scope.cancel(reason="checked")


async def test_a_connection_that_ends_gives_a_sentence(nursery: trio.Nursery) -> None:
    server = FakeServer()
    url = await server.start(nursery)

    async def close_instead(_: str, __: bytes) -> None:
        for peer in [*server.peers]:
            await peer.connection.aclose(1011, "Internal error")

    found = await found_at(url, close_instead)
    assert unmet(found.values()) == whats(_NEED_EVENTS)
    assert found[program.ETH_TRADE].measured == "the server closed with 1011 Internal error"
    assert "the server closed with 1011" in found[program.CROWD].measured
    nursery.cancel_scope.cancel(reason="checked")


async def test_a_lost_nats_gives_a_sentence(nursery: trio.Nursery) -> None:
    server = FakeServer()

    async def fail(_: str, __: bytes) -> None:
        raise ConnectionResetError("the wire is cut")

    found = await found_at(await server.start(nursery), fail)
    assert unmet(found.values()) == whats(_NEED_EVENTS)
    assert "the wire is cut" in found[program.CROWD].measured
    nursery.cancel_scope.cancel(reason="checked")


# ---- faults that a server can hardly be made to have


def envelope(name: str, seq: int) -> Message:
    return {"seq": seq, "ts": 1759027038365, "type": EVENT, "priority": 1, "data": data_of(name)}


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ("acb", "not in order"),
        ("ab", "1 lost"),
        ("abbc", "1 foreign or doubled"),
        ("axbc", "1 foreign or doubled"),
        ("", "3 lost"),
    ],
)
def test_a_client_of_the_crowd_gets_its_own_events_in_order(names: str, why: str) -> None:
    check_own([envelope(name, seq) for seq, name in enumerate("abc", 1)], [*"abc"])
    with pytest.raises(Unmet, match=why):
        check_own([envelope(name, seq) for seq, name in enumerate(names, 1)], [*"abc"])


def test_a_gap_in_the_numbers_of_a_crowd_is_a_loss() -> None:
    with pytest.raises(Unmet, match="seq 1, 3"):
        check_own([envelope("a", 1), envelope("b", 3)], [*"ab"])


@pytest.mark.parametrize("text", [b'{"seq":1}', "", "{", "[]", "1", '"seq"', "[" * 100_000])
def test_a_frame_that_is_not_a_json_object_is_a_malformed_envelope(
    text: str | bytes,
) -> None:
    (message,) = envelopes_of([read_message(text)])
    with pytest.raises(Unmet):
        check_envelope(message)
    with pytest.raises(Unmet):
        check_numbers([message])


@pytest.mark.parametrize("key", ["seq", "ts", "type", "priority", "data"])
def test_every_key_of_an_envelope_is_needed(key: str) -> None:
    message = envelope("a", 1)
    check_envelope(message)
    with pytest.raises(Unmet, match=f"^{key} of "):
        check_envelope({**message, key: json.dumps(message[key])})
    del message[key]
    with pytest.raises(Unmet, match=f"^{key} of "):
        check_envelope(message)
