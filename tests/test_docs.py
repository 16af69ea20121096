"""Tests of prose that can become outdated."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from unittest import mock

import attrs
import click
import msgspec
import pytest
import trio
from hypothesis import given
from trio.testing import MockClock
from wsproto.connection import Connection, ConnectionType
from wsproto.events import TextMessage

from tests.connection.client import as_sent
from tests.scripts import load_script
from tests.telemetry.snapshots import balanced
from trio_odin.auth.grants import Grant
from trio_odin.cli import main
from trio_odin.connection.session import Session, SessionLimits
from trio_odin.fanout.batch import Batch
from trio_odin.fanout.feed import Feed
from trio_odin.fanout.notices import Notices
from trio_odin.fanout.outbound import Outbound
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.rates import Rates
from trio_odin.fanout.registry import Registry
from trio_odin.fanout.replay_buffer import ReplayBuffer
from trio_odin.fanout.resume_buffer import ResumeBuffer
from trio_odin.fanout.ticks import Ticks
from trio_odin.fanout.traces import Traces
from trio_odin.lab.load.criteria import FIGURES, Check
from trio_odin.lab.load.pages import parse_metrics
from trio_odin.lab.model.tables import write_costs
from trio_odin.lab.provenance import Provenance
from trio_odin.ledger.counters import Publications, TraceCounters, Traffic
from trio_odin.ledger.reasons import CloseReason, GapReason
from trio_odin.ledger.snapshot import Snapshot
from trio_odin.settings.reading import read_settings, variables
from trio_odin.telemetry.exposition import render
from trio_odin.telemetry.metrics import BUILD_NAME, HISTOGRAMS, SERIES, SUBSCRIPTIONS_NAME
from trio_odin.upstream.gaps import Gap, Mark
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.upstream.status import NatsStatus
from trio_odin.wire.commands import ErrorCode
from trio_odin.wire.compression import Z1
from trio_odin.wire.dictionary import built_in
from trio_odin.wire.trace_context import parse_traceparent

ROOT = Path(__file__).parent.parent
UNIX_MS = 1759027038365


@cache
def _generate() -> ModuleType:
    return load_script(ROOT / "docs" / "generate.py")


def python_in(page: str) -> str:
    """The one program in Python on a page."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return str(code)


@pytest.mark.parametrize(
    "page",
    [
        "benchmarks.md",
        "capacity.md",
        "clients/faults.md",
        "configuration.md",
        "conformance.md",
        "metrics.md",
        "reliability.md",
        "scale.md",
        "runbooks/incidents.md",
        "runbooks/migration.md",
        "runbooks/rollback.md",
    ],
)
def test_generated_pages_are_current(page: str) -> None:
    pages: dict[str, Callable[[], str]] = _generate().PAGES
    assert (ROOT / "docs" / page).read_text() == pages[page](), "run: python docs/generate.py"


@pytest.mark.parametrize(
    ("record", "page"),
    [
        ("benchmarks.json", "docs/benchmarks.md"),
        ("benchmarks-rates.json", "docs/benchmarks.md"),
        ("benchmarks-scale-100000.json", "docs/benchmarks.md"),
        ("benchmarks-scale-18000.json", "docs/benchmarks.md"),
        ("benchmarks-scale-bridge.json", "docs/benchmarks.md"),
        ("benchmarks.json", "README.md"),
        ("capacity/verdict.json", "docs/capacity.md"),
        ("capacity/verdict.json", "README.md"),
        ("capacity/verdict.json", "docs/runbooks/migration.md"),
        ("clients/faults.json", "docs/clients/faults.md"),
        ("clients/random-faults.json", "docs/clients/faults.md"),
        ("conformance.json", "docs/conformance.md"),
        ("incidents.json", "docs/runbooks/incidents.md"),
        ("rehearsals.json", "docs/runbooks/migration.md"),
        ("rehearsals.json", "docs/runbooks/rollback.md"),
        ("reliability.json", "docs/reliability.md"),
    ],
)
def test_a_page_names_the_measured_code_and_whether_it_changed(record: str, page: str) -> None:
    origin: Provenance = _generate().origins()[record]
    text = " ".join((ROOT / page).read_text().split())
    assert origin.short() in text, "run: python docs/generate.py"
    assert ("has changed since" in origin.short()) == origin.is_outdated


@given(balanced())
def test_the_balances_of_the_metrics_page_hold_for_any_counts(state: Snapshot) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    equations = re.findall(r"^    (ws_\w+)\n +=(.*?)(?:\n\n|\Z)", page, re.DOTALL | re.MULTILINE)
    assert len(equations) == 2
    scraped = parse_metrics(render(state).decode())
    for whole, parts in equations:
        names = re.findall(r"ws_\w+", parts)
        assert parts.count("+") == len(names) - 1
        assert scraped[whole] == sum(scraped[name] for name in names)


def test_the_drawing_of_the_layers_is_what_is_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one["type"] == "layers")
    drawn = (ROOT / "docs" / "architecture.md").read_text().split("```\ncli\n")[1].split("```")[0]
    assert [set(line.split()) for line in f"cli\n{drawn}".splitlines()] == [
        {name.strip().removeprefix("trio_odin.") for name in layer.split("|")} for layer in layers
    ]


def test_a_developer_installs_what_the_tests_import() -> None:
    everything = re.search(
        r'^EVERYTHING = "(.+)"$', (ROOT / "noxfile.py").read_text(), re.MULTILINE
    )
    assert everything is not None
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    assert f'--editable "{everything[1]}"' in guide
    assert set(re.findall(r"--group (\w+)", guide)) == {"tests", "lint", "imports", "types", "site"}


def test_the_lab_report_is_that_of_the_committed_record() -> None:
    generate = _generate()

    def without_drawings(page: str) -> str:
        # Each version of matplotlib draws a line in its own way.
        return re.sub(r"<svg.*?</svg>", "<svg>", page, flags=re.DOTALL)

    kept = generate.REPORT.read_text()
    assert kept.count("<svg") == 10
    assert without_drawings(kept) == without_drawings(generate.report()), (
        "run: python docs/generate.py"
    )


@pytest.mark.parametrize(
    ("what", "source", "is_quoted"),
    [("cores", "ours", True), ("cores", "plan", False), ("lost", "ours", False)],
)
def test_a_stage_is_quoted_unless_it_misses_more_than_our_bound_on_its_cost(
    what: str, source: str, *, is_quoted: bool
) -> None:
    generate = _generate()
    missed = Check(
        what=FIGURES[what].title, wanted="at most 1", measured="2", is_met=False, source=source
    )
    stage = attrs.evolve(generate.lab().stage(6), checks=[missed])
    if is_quoted:
        assert generate.quoted(stage) == (stage.load, [missed])
    else:
        with pytest.raises(ValueError, match="stage 6: "):
            generate.quoted(stage)
    for unknown in (None, attrs.evolve(stage, checks=[]), attrs.evolve(stage, failure="It ended.")):
        with pytest.raises(ValueError, match="not run to its end"):
            generate.quoted(unknown)


def test_the_record_of_the_lab_is_small() -> None:
    folder = ROOT / "docs" / "capacity"
    names = ("report.html", "verdict.json", "series/stage-06.csv", "series/stage-06-host.csv")
    assert sum((folder / name).stat().st_size for name in names) < 420_000  # of 15 stages


def test_the_figures_in_the_readme_are_current() -> None:
    readme: Callable[[], str] = _generate().readme
    assert (ROOT / "README.md").read_text() == readme(), "run: python docs/generate.py"


def test_the_costs_of_the_model_are_those_of_the_lab(tmp_path: Path) -> None:
    generate = _generate()
    write_costs(tmp_path / "costs.toml", generate.costs())
    assert generate.COSTS.read_text() == (tmp_path / "costs.toml").read_text(), (
        "run: python docs/generate.py"
    )


def test_the_examples_of_the_protocol_page_are_true() -> None:
    lines = example_lines(ROOT / "docs" / "protocol.md")
    ticks = Ticks()
    me = _Me()
    registry: Registry[_Me] = Registry(cast("Rates[_Me]", ticks.rates))
    feed = Feed(max_age_seconds=30.0, channels_max=100, max_bytes=10**6)
    feed.note(Mark("63fc2bd2a9d40", 0))
    session = _new_session(me, registry, feed)
    wire = Connection(ConnectionType.CLIENT)
    offset = 0
    pending: list[str] = []
    for kind, text in lines:
        if kind == "<":
            assert pending, f"nothing was sent where the page says {text}"
            assert msgspec.json.decode(pending.pop(0)) == msgspec.json.decode(text)
            continue
        assert not pending, f"the page does not show {pending}"
        if kind == "!":
            registry.remove(me)
            if "a loss" in text:
                feed.note(Mark("63fc2bd2a9d40", offset, gaps=(Gap(GapReason.WINDOW),)))
            session = _new_session(me, registry, feed, has_nats="NATS is gone" not in text)
            continue
        if kind == ">":
            frames = as_sent(session.receive(text, now=0, unix_ms=UNIX_MS), session.replay_buffer)
        elif kind == "~":
            _let_a_second_pass(ticks)
            frames = [batch.frame(session.replay_buffer.append(batch)) for batch in me.batches]
            me.batches.clear()
        else:
            offset += 1
            frames = _publish(me, registry, feed, session, text, offset)
        pending += _texts(wire, frames)
    assert not pending
    assert len(lines) > 45


def example_lines(page: Path) -> list[tuple[str, str]]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    return [(line[0], line[2:]) for line in lines]


class _Me:
    """The client of the page."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def take_batch(self, batch: Batch, _: dict[Any, bytes]) -> bool:
        self.batches.append(batch)
        return True


def _let_a_second_pass(ticks: Ticks) -> None:
    registry: Registry[Outbound] = Registry()
    no_notices = Notices(Publications(), registry, ResumeBuffer(max_age_seconds=1), NatsStatus())

    async def main() -> None:
        with trio.move_on_after(1.001):
            await ticks.run(no_notices)

    trio.run(main, clock=MockClock(autojump_threshold=0))


def _new_session(
    me: _Me, registry: Registry[_Me], feed: Feed, *, has_nats: bool = True
) -> Session[_Me]:
    nats_status = NatsStatus(is_connected=has_nats, mode="jetstream")
    nats_status.heard_event(-1.9)
    nats_status.heard(-0.4)
    return Session(
        me,
        registry,
        replay_buffer=ReplayBuffer(100),
        resume_buffer=feed.resume_buffer,
        newest_events=feed.newest_events,
        limits=SessionLimits(verify=lambda _: Grant(1759030638.0, "k", frozenset({"BTC.*"}))),
        traffic=Traffic(),
        nats_status=nats_status,
        now=0,
    )


def _publish(
    me: _Me, registry: Registry[_Me], feed: Feed, session: Session[_Me], text: str, offset: int
) -> list[bytes]:
    subject, payload = text.split(" ", 1)
    message = NatsMessage(subject, payload.encode(), offset, 0.0, UNIX_MS)
    if payload.startswith("traceparent:"):
        message = _traced(message)
    taken = feed.add(message)
    assert taken.channel is not None
    assert taken.resumable is not None
    if registry.rates.wants(taken.channel):
        registry.rates.add(taken.channel, message, taken.prev)
    if me not in registry.subscribers_from(taken.channel, offset):
        return []
    publication = taken.resumable.publication()
    if message.trace is not None:
        publication = Publication(
            taken.channel,
            message.payload,
            offset=offset,
            unix_ms=UNIX_MS,
            prev=taken.prev,
            trace=message.trace,
        )
    return [publication.frame(session.replay_buffer.append(publication))]


def _traced(message: NatsMessage) -> NatsMessage:
    """The message without the header that the page puts before its payload, in its fan-out."""
    header, payload = message.payload.decode().split(" ", 1)
    parent = parse_traceparent(header.removeprefix("traceparent:"))
    assert parent is not None
    traces = Traces(lambda _: None, TraceCounters(), read_settings({}), now=0.0)
    with mock.patch("trio_odin.fanout.traces._new_id", return_value="b9c7c989f97918e1"):
        event = traces.begin(message._replace(payload=payload.encode(), trace=parent), now=0.0)
    assert event is not None
    return event.message


def _texts(wire: Connection, frames: list[bytes]) -> list[str]:
    for frame in frames:
        wire.receive_data(frame)
    return [event.data for event in wire.events() if isinstance(event, TextMessage)]


def test_every_error_code_and_close_text_is_on_the_protocol_page() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text()
    for code in ErrorCode:
        assert f"`{code.value}`" in page
    for reason in CloseReason:
        assert reason.code is None or f"| {reason.code} | `{reason.text}` |" in page


def test_codes_say_whether_to_come_back_as_the_page_does() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text()
    codes = {reason.code for reason in CloseReason if reason.code is not None}
    for code in codes:
        assert code in {1001, 1008, 1011} or 4000 <= code <= 4999
        answers = re.findall(rf"^\| {code} \|.*\| ([^|]*) \|$", page, re.MULTILINE)
        assert answers
        for answer in answers:
            assert answer.startswith("no" if code >= 4500 else "yes"), code


_LINK = re.compile(r"\]\(([^)#:]+)[^):]*\)")
_VARIABLE = re.compile(r"`((?:WS|JS)_[A-Z_]+[A-Z])`")
_METRIC = re.compile(r"`(ws_[a-z_]+)[`{]")
_COMMAND = re.compile(r"trio-odin ([a-z]+)([^\n`]*)")


def _pages() -> list[Path]:
    at_the_top = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")]
    return [*at_the_top, *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("pattern", [_LINK, _VARIABLE, _METRIC, _COMMAND])
def test_there_are_links_names_and_commands_to_check(pattern: re.Pattern[str]) -> None:
    assert sum(len(pattern.findall(page.read_text())) for page in _pages()) > 20


@pytest.mark.parametrize("page", [ROOT / "CHANGELOG.md", *_pages()], ids=lambda page: page.name)
def test_every_internal_link_leads_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", _pages(), ids=lambda page: page.name)
def test_every_variable_and_metric_that_a_page_names_exists(page: Path) -> None:
    known = {v.name for v in variables()} | {"WS_WORKER_POOL_SIZE", "JS_CONSUMER_NAME"}
    # Those of the machines, which the server does not see.
    for file in ("cloud/instances.sh", "services.yml"):
        known |= set(re.findall(r"\$\{(WS_\w+):", (ROOT / "ops" / file).read_text()))
    text = page.read_text()
    for name in _VARIABLE.findall(text):
        assert name in known
    series = {s.name for s in SERIES} | {s.alias for s in SERIES}
    for name in _METRIC.findall(text):
        assert name in series | {BUILD_NAME, SUBSCRIPTIONS_NAME} | {h.name for h in HISTOGRAMS}


@pytest.mark.parametrize("page", _pages(), ids=lambda page: page.name)
def test_every_command_that_a_page_shows_exists_with_its_options(page: Path) -> None:
    for name, rest in _COMMAND.findall(page.read_text()):
        if name not in main.commands:
            pytest.fail(f"trio-odin {name} does not exist")
        command: click.Command = main.commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        for option in re.findall(r"--[a-z-]+", rest.split("#")[0].split("&&")[0]):
            assert option in options | {"--help"}


def test_the_client_of_few_bytes_on_the_protocol_page_works() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text()
    dictionary = built_in()
    announcement = dictionary.announcement().decode()
    assert f"`{announcement}`" in page
    assert f"`trio-odin.z1.{dictionary.id}`" in page
    code: dict[str, Any] = {}
    exec(python_in(page), code)
    encoding = Z1(dictionary.content)
    one = Publication("BTC.trade", b'{"price":64123.5}', offset=1, unix_ms=UNIX_MS)
    for seq in (1, 127, 128, 2**40):
        for skipped in (0, 3):
            frame = b"".join(one.pieces(seq, skipped, encoding=encoding))
            plain = b"".join(one.pieces(seq, skipped))
            found = code["read"](frame[2:], dictionary.content)
            assert list(found.items()) == list(json.loads(plain[plain.index(b'{"') :]).items())
