"""docs/logs.md against the source, and the way of a line to Loki as far as it can be run here."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.logs_page import (
    LABELS,
    LEVELS,
    Rows,
    of_haproxy,
    of_publisher,
    of_server,
    queries,
    unknown_in,
)
from tests.ops.composing import DEVELOPMENT, services
from tests.ops.conftest import OPS, ROOT
from tests.ops.logql import parsed
from tests.ops.shipper import JSON_LINE, Label, load_script
from trio_odin.demo.control import Control

SOURCE = ROOT / "trio_odin"
SHIPPER = OPS / "fluent-bit" / "fluent-bit.yaml"
MIB = 1024 * 1024


# By the names that modules give to their loggers; an event may be one of two texts.
_LOGGERS = ("_log", "log", "self._log", "structlog.get_logger(")
_CALLS = {"exception": "error"} | {name: name for name in LEVELS - {"unknown"}}
# What a call takes from a mapping is checked where its lines are: see `tests/server`.
_MORE = "fields of a mapping"


def logged(sources: Iterable[Path]) -> Rows:
    """The events of all calls in these files, with their levels and fields."""
    # The writer of lines makes a record by itself.
    rows: Rows = {"log.dropped": ({"error"}, {"count"})}
    for path in sources:
        for event, level, given in _logged_in(path):
            levels, fields = rows.setdefault(event, (set(), set()))
            levels.add(level)
            fields |= given
    return rows


@cache  # the publisher's files are among the server's
def _logged_in(path: Path) -> list[tuple[str, str, set[str]]]:
    """The event, the level and the fields of each call in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _CALLS
            and ast.unparse(node.func.value).startswith(_LOGGERS)
        ):
            events = re.findall(r"'([a-z_.]+)'", ast.unparse(node.args[0]))
            assert events, f"no event in {ast.unparse(node)}"
            # An exception has the same field with every event.
            fields = {word.arg or _MORE for word in node.keywords} - {"exc_info"}
            found += [(event, _CALLS[node.func.attr], fields) for event in events]
    return found


def logged_by_the_server() -> Rows:
    return logged(OF_SERVER)


def logged_by_the_publisher() -> Rows:
    return logged(OF_PUBLISHER) | {"setting.ignored": logged(OF_SERVER)["setting.ignored"]}


OF_DEMO = {*(SOURCE / "demo").rglob("*.py")}
OF_SERVER = {*SOURCE.rglob("*.py")} - {*(SOURCE / "lab").rglob("*.py")} - OF_DEMO
OF_PUBLISHER = OF_DEMO | {*SOURCE.rglob("nats_link.py")}


@pytest.mark.parametrize(
    ("on_the_page", "in_the_source"),
    [(of_server, logged_by_the_server), (of_publisher, logged_by_the_publisher)],
    ids=["server", "publisher"],
)
def test_the_page_lists_every_event_with_its_levels_and_fields(
    on_the_page: Callable[[], Rows], in_the_source: Callable[[], Rows]
) -> None:
    page, found = on_the_page(), in_the_source()
    assert page.keys() == found.keys()
    for event, (levels, fields) in found.items():
        documented_levels, documented = page[event]
        assert documented_levels == levels, event
        assert (documented > fields - {_MORE}) if _MORE in fields else documented == fields, event
        # Which the log takes for itself.
        assert not documented & {"level", "event", "timestamp", "logger"}


def test_the_page_has_what_the_publisher_says_of_its_commands_and_runs() -> None:
    control = Control(rate=12, tokens=("BTC",))
    answer = control.command(b'{"action": "stop"}', now=0, unix_ms=0)
    assert of_publisher()["control"][1] == {"body", *answer}
    assert of_publisher()["run.ended"][1] == {*control.stats.as_json()}


def pipeline() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(SHIPPER.read_text())["pipeline"]
    return found


def output() -> dict[str, Any]:
    (found,) = pipeline()["outputs"]
    assert isinstance(found, dict)
    return found


def test_the_shipper_gives_a_line_these_four_labels_and_no_others() -> None:
    given = dict(label.strip().split("=") for label in output()["labels"].split(","))
    assert given == {
        "job": "odin",
        "instance": "${INSTANCE_NAME}",
        "service": "$service",
        "level": "$level",
    }
    other_ways = {"label_keys", "label_map_path", "auto_kubernetes_labels", "structured_metadata"}
    assert not other_ways & set(output())


def test_loki_refuses_more_labels_and_adds_none() -> None:
    limits = yaml.safe_load((OPS / "loki" / "loki.yml").read_text())["limits_config"]
    assert limits["max_label_names_per_series"] == len(LABELS)
    assert limits["discover_service_name"] == []


def test_loki_takes_what_the_shipper_has_kept_and_forgets_it_in_time() -> None:
    config = yaml.safe_load((OPS / "loki" / "loki.yml").read_text())
    hours = {n: int(config["limits_config"][n].removesuffix("h")) for n in
             ("retention_period", "reject_old_samples_max_age", "max_query_length")}  # fmt: skip
    assert hours["reject_old_samples_max_age"] < hours["retention_period"]
    assert hours["max_query_length"] >= hours["retention_period"]
    assert config["compactor"]["retention_enabled"]
    assert config["compactor"]["delete_request_store"] == "filesystem"
    for folder in (config["common"]["path_prefix"], config["compactor"]["working_directory"]):
        assert Path(folder).is_relative_to("/loki")


def test_the_shipper_keeps_its_place_and_its_buffer_in_a_volume_and_within_bounds() -> None:
    service = yaml.safe_load(SHIPPER.read_text())["service"]
    (source,) = pipeline()["inputs"]
    mounts = {v["target"]: v["type"] for v in services(DEVELOPMENT)["fluent-bit"]["volumes"]}
    assert mounts["/var/lib/fluent-bit"] == "volume"
    for path in (service["storage.path"], source["db"]):
        assert Path(path).is_relative_to("/var/lib/fluent-bit")
    assert source["storage.type"] == "filesystem"
    assert source["storage.pause_on_chunks_overlimit"] is True
    assert output()["storage.total_limit_size"] == "128M"
    chunks = service["storage.max_chunks_up"] * 2 + int(service["storage.backlog.mem_limit"][:-1])
    memory = int(services(DEVELOPMENT)["fluent-bit"]["deploy"]["resources"]["limits"]["memory"])
    assert chunks <= memory / MIB / 2
    assert Path(source["path"]).is_relative_to("/var/lib/docker/containers")
    assert mounts["/var/lib/docker/containers"] == "bind"


def test_the_shipper_finds_its_script_and_sends_to_the_service_loki() -> None:
    (step,) = pipeline()["filters"]
    mounts = services(DEVELOPMENT)["fluent-bit"]["volumes"]
    (folder,) = (v["source"] for v in mounts if v["target"] == "/etc/fluent-bit")
    assert (Path(folder) / Path(step["script"]).name).is_file()
    assert f"function {step['call']}(" in (Path(folder) / Path(step["script"]).name).read_text()
    assert (output()["host"], output()["port"]) == ("loki", 3100)
    assert "loki" in services(DEVELOPMENT)


@pytest.fixture(scope="module")
def label() -> Label:
    return load_script()


def of(service: str) -> dict[str, str]:
    return {"com.docker.compose.service": service}


def test_a_line_goes_to_loki_as_it_was_written_with_its_service_and_level(label: Label) -> None:
    assert label(f"{JSON_LINE}\n", of("ws")) == {
        "log": JSON_LINE, "service": "ws", "level": "info",
    }  # fmt: skip


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_every_level_of_ours_is_a_label(label: Label, level: str) -> None:
    found = label(json.dumps({"event": "x", "level": level}), of("publisher"))
    assert found is not None
    assert found["level"] == level


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("[1] 2026/11/24 02:45:10.123456 [INF] Server is ready", "info"),
        ("[1] 2026/11/24 02:45:10.123456 [WRN] JetStream is nearly full", "warning"),
        ("[1] 2026/11/24 02:45:10.123456 [ERR] Slow Consumer", "error"),
        ("[1] 2026/11/24 02:45:10.123456 [FTL] no store", "error"),
        ("[1] 2026/11/24 02:45:10.123456 [DBG] [ERR]", "debug"),
    ],
)
def test_levels_of_nats_server_are_written_as_ours(label: Label, line: str, level: str) -> None:
    assert label(line, of("nats")) == {"log": line, "service": "nats", "level": level}


@pytest.mark.parametrize(
    ("line", "level", "shipped"),
    [
        ("<6>" + JSON_LINE, "info", JSON_LINE),
        ("<134>" + JSON_LINE.replace("info", "warning"), "warning", None),
        ("<1>Server ws/ws-1 is DOWN, reason: Layer4", "error", None),
        ("<5>Server ws/ws-1 is UP", "info", None),
        ("[NOTICE]   (1) : a worker forked", "info", "[NOTICE]   (1) : a worker forked"),
        ("[ALERT]    (1) : config : no file", "error", "[ALERT]    (1) : config : no file"),
        ("<x>y", "unknown", "<x>y"),
    ],
)
def test_lines_of_haproxy_lose_the_number_that_becomes_their_level(
    label: Label, line: str, level: str, shipped: str | None
) -> None:
    text = line.partition(">")[2] if shipped is None else shipped
    assert label(line, of("haproxy")) == {"log": text, "service": "haproxy", "level": level}
    other = label(line, of("ws"))
    assert other is not None
    assert other["log"] == line


def test_the_page_has_the_lines_that_haproxy_writes() -> None:
    text = (OPS / "haproxy" / "haproxy.cfg").read_text()
    formats = re.findall(r"(?m)^ +(?:error-)?log-format '(\{.*\})'$", text)
    found = {}
    for one in formats:
        names = re.findall(r'"(\w+)":', one)
        (event,) = re.findall(r'"event":"([a-z_.]+)"', one)
        found[event] = set(names) - {"event", "level", "timestamp"}
    assert {event: fields for event, (_, fields) in of_haproxy().items()} == found


@pytest.mark.parametrize(
    "line",
    [
        "Traceback (most recent call last):",
        "",
        '{"event": "x", "level": "4711"}',
        json.dumps({"event": 'told "level": "error" by a client'}),
        json.dumps({"level": "made up"}),
    ],
)
def test_a_level_that_is_not_one_makes_no_label_of_its_own(label: Label, line: str) -> None:
    found = label(line, of("ws"))
    assert found is not None
    assert found["level"] == "unknown"


@pytest.mark.parametrize("attributes", [{}, of("grafana"), {"other": "ws"}])
def test_lines_of_other_containers_are_not_shipped(
    label: Label, attributes: dict[str, str]
) -> None:
    assert label(JSON_LINE, attributes) is None


def test_the_queries_of_the_page_ask_for_what_there_is() -> None:
    assert len(queries()) >= 8
    assert {query: unknown_in(query) for query in queries()} == {
        query: set() for query in queries()
    }


@pytest.mark.parametrize(
    ("query", "unknown"),
    [
        ('{job="odin", machine="a"}', "machine"),
        ('{job="odin", level="grave"}', "grave"),
        ('{job="odin"} | json | colour="red"', "colour"),
        ('sum by (colour) (rate({job="odin"} | json [1m]))', "colour"),
        ('sum(sum_over_time({job="odin"} | json | unwrap colour [1m]))', "colour"),
        ('{job="odin"} | json | event=~"nats.(gap|lots)"', ""),
        ('{job="odin"} | json | event="nats.lots"', "nats.lots"),
    ],
)
def test_a_query_for_what_no_line_has_is_found(query: str, unknown: str) -> None:
    assert unknown_in(query) == {unknown} - {""}


@pytest.mark.ops
def test_the_queries_of_the_page_are_parsed_by_grafanas_grammar(tmp_path: Path) -> None:
    *found, control = parsed(tmp_path, [*queries(), "{job="])
    assert control.wrong, "the grammar takes anything"
    assert {
        query: one.wrong for query, one in zip(queries(), found, strict=True) if one.wrong
    } == {}
