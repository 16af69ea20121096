"""The sessions of nox that stand for the plan's tasks: each is a command that exists."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner

from tests.lab.load.made_up import load_result
from tests.ops.conftest import ROOT
from tests.scripts import load_script
from trio_odin.cli import load, main
from trio_odin.demo.control import Control, Run
from trio_odin.lab.load.plan import LoadPlan


@pytest.fixture(scope="module")
def noxfile() -> ModuleType:
    return load_script(ROOT / "noxfile.py")


class Session:
    """What a session of nox is asked for."""

    def __init__(self, *posargs: str, answer: str = "") -> None:
        self.posargs = list(posargs)
        self.ran: list[tuple[str, ...]] = []
        self._answer = answer

    def install(self, *_: str) -> None:
        """Nothing: all is here."""

    def run(self, *arguments: str, **_: Any) -> str:
        self.ran.append(arguments)
        return self._answer

    def log(self, text: str) -> None:
        """Nothing: nobody reads it."""

    def error(self, text: str) -> NoReturn:
        raise SessionFailed(text)


class SessionFailed(Exception):
    """What a session of nox ends with after an error."""


# The field of another object is not the answer's own.
DONE = json.dumps({"success": True, "before": {"success": False}})


def ran(noxfile: ModuleType, name: str, *posargs: str) -> tuple[str, ...]:
    session = Session(*posargs, answer=DONE)
    getattr(noxfile, name)(session)
    (command,) = session.ran
    return command


@pytest.mark.parametrize(("action", "rate"), [("start", 12), ("start:high", 30)])
def test_the_publisher_is_started_at_the_plans_rates_and_stopped(
    noxfile: ModuleType, action: str, rate: int
) -> None:
    control = Control(rate=1, tokens=("BTC",))

    def told(action: str) -> bool:
        *_, body, url = ran(noxfile, "publisher", action, "--url", "http://10.0.0.3:3003")
        assert url == "http://10.0.0.3:3003/control"
        answer = control.command(body.encode(), now=0, unix_ms=0)
        return bool(answer["success"])

    assert told(action)
    assert control.run == Run(rate, ("BTC",))
    assert told("stop")
    assert control.run is None


def test_a_publisher_that_refuses_is_an_error(noxfile: ModuleType) -> None:
    control = Control(rate=1, tokens=("BTC",))
    body = ran(noxfile, "publisher", "start:high")[-2].encode()
    first, second = (json.dumps(control.command(body, now=0, unix_ms=0)) for _ in range(2))
    noxfile.publisher(Session("start:high", answer=first))
    with pytest.raises(
        SessionFailed, match="the publisher has done nothing: Already publishing: stop first"
    ):
        noxfile.publisher(Session("start:high", answer=second))
    with pytest.raises(SessionFailed, match="the publisher has done nothing"):
        noxfile.publisher(Session("stop", answer='{"success"\n:\tfalse}'))


@pytest.mark.parametrize(
    "answer", ["", "ok", "<html>", "[]", "null", "{}", '{"success": "yes"}', '{"status": "ok"}']
)
@pytest.mark.parametrize("action", ["start", "stop", "stats"])
def test_what_is_not_a_publisher_is_an_error(noxfile: ModuleType, action: str, answer: str) -> None:
    with pytest.raises(
        SessionFailed, match=r"http://10\.0\.0\.3:3003/\w+ does not answer as a publisher does"
    ):
        noxfile.publisher(Session(action, "--url", "http://10.0.0.3:3003/", answer=answer))


def test_a_publisher_is_asked_what_it_has_published(noxfile: ModuleType) -> None:
    assert ran(noxfile, "publisher")[-1] == "http://127.0.0.1:3003/stats"
    noxfile.publisher(Session(answer=json.dumps(Control(rate=1, tokens=("BTC",)).report())))


def test_a_capacity_test_is_a_load_with_the_plans_figures(
    noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried: list[LoadPlan] = []

    async def carry(plan: LoadPlan, _: Any) -> Any:
        carried.append(plan)
        return load_result()

    monkeypatch.setattr(load, "run_load", carry)
    for posargs in (["5k", "--url", "ws://10.0.0.2:3004/ws", "--hold", "7"], ["10k"], []):
        command = ran(noxfile, "capacity", *posargs)
        assert command[:2] == ("trio-odin", "load")
        assert CliRunner().invoke(main, command[1:]).exit_code == 0
    first, *others = carried
    assert (first.url, first.connections) == ("ws://10.0.0.2:3004/ws", 5_000)
    assert first.hold_seconds == 7
    assert [plan.connections for plan in others] == [10_000, 10_000]


def test_the_machines_are_made_by_the_script(noxfile: ModuleType) -> None:
    command = ran(noxfile, "instances", "create", "ws", "--dry-run")
    assert command == ("ops/cloud/instances.sh", "create", "ws", "--dry-run")
    assert (ROOT / command[0]).is_file()
