from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterable, Mapping

import pytest
import trio

from trio_odin.settings.reload import ReadEnvironment
from trio_odin.signals import leave_changes_to_parent, obey_signals, serve_signals

TERM, INT, HUP, ROLL = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2
USELESS = signal.SIGUSR1


class Server:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def drain(self) -> None:
        self.heard.append("drain")

    def roll(self) -> None:
        self.heard.append("roll")

    def reload(self, read: ReadEnvironment) -> None:
        self.heard.append(f"reload {read()}")


def read() -> Mapping[str, str]:
    return {"A": "1"}


async def coming(numbers: Iterable[int]) -> AsyncIterator[int]:
    for number in numbers:
        yield number


@pytest.mark.parametrize(
    ("numbers", "heard", "is_stopped"),
    [
        ([TERM], ["STOPPING=1", "drain"], False),
        ([INT, TERM], ["STOPPING=1", "drain"], True),
        ([USELESS, USELESS], [], False),
        ([HUP, HUP], ["reload {'A': '1'}"] * 2, False),
        ([ROLL, HUP, TERM], ["roll", "reload {'A': '1'}", "STOPPING=1", "drain"], False),
        ([TERM, HUP, ROLL], ["STOPPING=1", "drain", "reload {'A': '1'}", "roll"], False),
    ],
)
async def test_each_signal_has_its_meaning_and_a_second_one_stops(
    numbers: list[int], heard: list[str], is_stopped: bool
) -> None:
    server, stop = Server(), trio.CancelScope()
    await obey_signals(
        coming(numbers), server, read=read, stop=stop, hangup_ends=False, notify=server.heard.append
    )
    assert server.heard == heard
    assert stop.cancel_called == is_stopped


async def test_a_closed_terminal_ends_it_like_other_signals() -> None:
    server, stop = Server(), trio.CancelScope()
    await obey_signals(
        coming([HUP, HUP]),
        server,
        read=read,
        stop=stop,
        hangup_ends=True,
        notify=server.heard.append,
    )
    assert server.heard == ["STOPPING=1", "drain"]
    assert stop.cancel_called


@pytest.mark.parametrize("is_ignored", [False, True])
async def test_a_server_receives_its_signals_but_no_hangup_under_nohup(
    is_ignored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(HUP)
    signal.signal(HUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    try:
        with serve_signals() as received, trio.fail_after(5):
            if is_ignored:
                signal.raise_signal(HUP)
            expected = [USELESS, ROLL] if is_ignored else [HUP, USELESS, ROLL]
            for number in expected:
                signal.raise_signal(number)
                assert await anext(received) == number
    finally:
        signal.signal(HUP, before)


def test_a_worker_leaves_reloads_to_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: dict[int, object] = {}
    monkeypatch.setattr(signal, "signal", lambda n, what: set_to.update({n: what}))
    leave_changes_to_parent()
    assert set_to == dict.fromkeys((HUP, USELESS, ROLL), signal.SIG_IGN)
