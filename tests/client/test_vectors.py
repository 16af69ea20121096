"""The core does what tests/client/vectors say, as the one in TypeScript does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trio_odin.client.core import Core
from trio_odin.client.items import (
    AskToken,
    Deliver,
    Dial,
    Drop,
    Event,
    Gap,
    Options,
    Output,
    Refused,
    Send,
    State,
)

FOLDER = Path(__file__).parent / "vectors"
SCENARIOS = [
    pytest.param(scenario, id=f"{path.stem}: {scenario['title']}")
    for path in sorted(FOLDER.glob("*.json"))
    for scenario in json.loads(path.read_text())
]


def snake(name: str) -> str:
    return re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name)


def as_event(event: Event) -> dict[str, Any]:
    """The keys that say something."""
    optional = {
        "offset": event.offset,
        "prev": event.prev,
        "snapshot": event.is_snapshot or None,
        "epoch": event.epoch,
        "trace": event.trace,
    }
    found = {"channel": event.channel, "data": event.data, "ts": event.unix_ms}
    found |= {key: value for key, value in optional.items() if value is not None}
    return found if event.skipped == 0 else found | {"skipped": event.skipped}


def as_list(output: Output) -> list[Any]:
    match output:
        case Dial(conn, url, token):
            return ["dial", conn, url, token]
        case Send(conn, message):
            return ["send", conn, message]
        case Drop(conn, code):
            return ["drop", conn, code]
        case AskToken():
            return ["askToken"]
        case Deliver(numbers, Event() as event):
            return ["event", list(numbers), as_event(event)]
        case Deliver(numbers, Gap() as gap):
            return ["gap", list(numbers), list(gap.channels), gap.missed, gap.reason]
        case Deliver(numbers, Refused() as refused):
            return ["refused", list(numbers), refused.channel, refused.code]
        case State() as state:
            retry_at = [] if state.retry_at is None else [state.retry_at]
            return ["state", state.name, state.cause, *retry_at]
        case _:
            raise AssertionError(output)


def put(core: Core, now: float, name: str, *args: Any) -> None:
    """Give one input to the core."""
    if name == "hide":
        core.hide(now, is_hidden=args[0])
    elif name == "subscribe":
        number, names, *rest = args
        every_ms = rest[0] if rest else 0
        core.subscribe(now, number, names, every_ms, with_snapshot=rest[1:] != [False])
    else:
        getattr(core, snake(name))(now, *args)


def steps(scenario: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    options = {snake(name): value for name, value in scenario.get("options", {}).items()}
    core = Core(
        scenario.get("urls", ["wss://a/ws"]),
        needs_token=scenario.get("needsToken", False),
        options=Options(**options),
        random=lambda: float(scenario.get("random", 0.5)),
    )
    for step in scenario["steps"]:
        if "deadline" in step:
            yield step, [core.deadline()]
        else:
            put(core, step["at"], *step["do"])
            yield step, [as_list(output) for output in core.take()]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_core_gives_the_outputs(scenario: dict[str, Any]) -> None:
    for number, (step, outputs) in enumerate(steps(scenario)):
        expected = [step["deadline"]] if "deadline" in step else step.get("then", [])
        assert outputs == expected, f"step {number}: {step.get('do', 'deadline')}"


def test_there_are_scenarios_of_every_subject() -> None:
    assert len(SCENARIOS) >= 40
    titles = [param.id for param in SCENARIOS]
    assert len(set(titles)) == len(titles)
