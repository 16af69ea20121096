from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping

import pytest
import trio
from structlog.testing import capture_logs

from tests.server_rig import Rig
from trio_odin.server import Server, serve
from trio_odin.settings.reading import read_settings
from trio_odin.settings.reload import reload_settings
from trio_odin.settings.setting_field import SettingError
from trio_odin.settings.settings import Settings


@pytest.fixture(autouse=True)
def _level_as_it_was() -> Iterator[None]:
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


def fail(_: object = None) -> Mapping[str, str]:
    raise SettingError("WS_RELOAD_FILE='/x': allowed is …")


def refuse(_: Settings) -> None:
    raise SettingError("WS_JWT_KEYS='/keys': allowed is …")


def test_reloadable_settings_change_and_the_log_names_them() -> None:
    running, results = read_settings({}), Counter[str]()
    taken: list[Settings] = []
    wanted = {"WS_MAX_CONNECTIONS": "5", "WS_OUTBOX_CAPACITY": "9", "JS_STREAM_NAME": "OTHER"}
    with capture_logs() as lines:
        after = reload_settings(running, lambda: wanted, apply=[taken.append], results=results)
    assert after == read_settings({"WS_MAX_CONNECTIONS": "5"})
    assert taken == [after]
    later, done = lines
    assert later["reason"] == "takes effect at the next start: WS_OUTBOX_CAPACITY, JS_STREAM_NAME"
    assert (done["event"], done["changed"]) == ("reload.done", ["WS_MAX_CONNECTIONS"])
    assert results == {"ok": 1}


def test_a_reload_without_a_change_still_reloads_key_files() -> None:
    taken: list[Settings] = []
    running = read_settings({})
    after = reload_settings(running, dict, apply=[taken.append], results=Counter())
    assert taken == [after] == [running]


@pytest.mark.parametrize(
    ("read", "sentence"),
    [
        (fail, "WS_RELOAD_FILE='/x': allowed is …"),
        (lambda: {"WS_MAX_CONNECTIONS": "x"}, "WS_MAX_CONNECTIONS='x': allowed is a whole number"),
        (lambda: {"WS_OUTBOX_CAPACITY": "x"}, "WS_OUTBOX_CAPACITY='x': allowed is a whole number"),
    ],
)
def test_an_unreadable_file_changes_nothing_and_is_logged(read: object, sentence: str) -> None:
    running, results = read_settings({}), Counter[str]()
    taken: list[Settings] = []
    with capture_logs() as lines:
        after = reload_settings(running, read, apply=[taken.append], results=results)  # type: ignore[arg-type]
    assert after is running
    assert taken == []
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("reload.failed", "error")
    assert line["reason"].startswith(sentence)
    assert results == {"failed": 1}


def test_a_refusal_comes_before_any_part_is_changed() -> None:
    running, results = read_settings({}), Counter[str]()
    taken: list[Settings] = []
    with capture_logs() as lines:
        after = reload_settings(
            running,
            lambda: {"WS_MAX_CONNECTIONS": "5"},
            apply=[refuse, taken.append],
            results=results,
        )
    assert after is running
    assert taken == []
    assert lines[0]["reason"].startswith("WS_JWT_KEYS=")
    assert results == {"failed": 1}


async def test_a_running_server_keeps_its_limits_if_the_next_file_is_bad(
    nursery: trio.Nursery,
) -> None:
    settings = read_settings({"WS_ADDR": "127.0.0.1:0", "NATS_URL": "nats://127.0.0.1:1"})
    server: Server = await nursery.start(serve, settings)
    new = {
        "WS_MAX_CONNECTIONS": "1", "WS_CPU_REJECT_THRESHOLD": "33", "WS_MAX_CHANNELS": "3",
        "WS_COMMAND_BURST": "4", "WS_MAX_NATS_RATE": "7", "WS_MAX_BROADCAST_RATE": "8",
        "LOG_LEVEL": "error", "WS_DRAIN_SECONDS": "1s",
    }  # fmt: skip
    server.reload(lambda: new)
    server.reload(fail)
    server.reload(lambda: {"WS_MAX_CONNECTIONS": "x"})
    snapshot = server.snapshot()
    assert (snapshot.limits.max_connections, snapshot.limits.cpu_reject_percent) == (1, 33.0)
    assert (snapshot.limits.max_nats_rate, snapshot.limits.max_broadcast_rate) == (7.0, 8.0)
    assert server.load_monitor.admission.max_connections == 1
    assert server.load_monitor.admission.cpu_reject_percent == 33.0
    assert server.listener.session_limits.max_channels == 3
    assert server.listener.session_limits.command_burst == 4
    assert server._settings.drain_seconds == 30.0, "it takes effect at the next start"
    assert logging.getLogger().level == logging.ERROR
    assert snapshot.ledger.traffic.reloads == {"ok": 1, "failed": 2}


async def test_new_rates_apply_from_the_next_event_on(nursery: trio.Nursery) -> None:
    rig = Rig(nursery)
    await rig.subscribe("BTC.trade")
    rig.hub.reload(read_settings({"WS_MAX_BROADCAST_RATE": "0.001"}))
    for _ in range(3):
        rig.publish("BTC.trade")
    assert rig.ledger.publications.fanned_out == 1
    assert rig.ledger.publications.shed.total() == 2
    rig.hub.reload(read_settings({}))
    rig.publish("BTC.trade")
    assert rig.ledger.publications.fanned_out == 2
    rig.check_balance()


async def test_new_limits_apply_to_new_sessions(nursery: trio.Nursery) -> None:
    rig = Rig(nursery)
    await rig.subscribe("BTC.trade")
    rig.listener.reload(read_settings({"WS_MAX_CHANNELS": "2"}))
    await rig.subscribe("BTC.trade")
    limits = [connection.session._limits.max_channels for connection in rig.hub.members]
    assert limits == [256, 2]
