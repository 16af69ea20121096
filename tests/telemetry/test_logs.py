from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

import trio_odin
from trio_odin.telemetry.logs import configure_logs, set_log_level


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def lines_of(style: str, level: str = "info") -> list[str]:
    """The lines of a few events, ours and a library's."""
    file = io.StringIO()
    configure_logs(level, style, file=file)
    log = structlog.get_logger("test")
    log.debug("too.fine")
    log.info("server.listening", port=3002)
    logging.getLogger("some.library").warning("careful: %s", "hot")
    try:
        raise ValueError("a bug")
    except ValueError:
        log.exception("it.failed")
    return written(file)


def written(file: io.StringIO) -> list[str]:
    for handler in logging.getLogger().handlers:
        handler.flush()
    return file.getvalue().splitlines()


def test_json_is_one_object_a_line_with_level_event_and_time() -> None:
    objects = [json.loads(line) for line in lines_of("json")]
    assert [o["event"] for o in objects] == ["server.listening", "careful: hot", "it.failed"]
    assert [o["level"] for o in objects] == ["info", "warning", "error"]
    assert objects[0]["port"] == 3002
    assert objects[0]["timestamp"].endswith("Z")
    assert objects[1]["logger"] == "some.library"
    assert objects[2]["exception"][0]["exc_value"] == "a bug"


def test_every_line_of_a_worker_even_a_librarys_has_its_number() -> None:
    file = io.StringIO()
    configure_logs("info", "json", worker=3, file=file)
    structlog.get_logger("test").info("server.listening")
    logging.getLogger("some.library").warning("careful")
    assert [json.loads(line)["worker"] for line in written(file)] == [3, 3]


def test_the_level_can_change_for_existing_loggers() -> None:
    file = io.StringIO()
    configure_logs("info", "json", file=file)
    log = structlog.get_logger("test")
    for level, said in (("info", 2), ("error", 1), ("debug", 3), ("warning", 1)):
        file.truncate(0)
        set_log_level(level)
        log.debug("fine")
        log.info("news")
        log.error("trouble")
        assert len(written(file)) == said, level


def test_text_is_key_and_value() -> None:
    line = lines_of("text")[0]
    assert "level=info event=server.listening" in line
    assert "port=3002" in line


def test_pretty_is_for_people() -> None:
    shown = "\n".join(lines_of("pretty"))
    assert "server.listening" in shown
    assert "ValueError" in shown


def test_the_level_is_respected_and_chatty_libraries_are_muted() -> None:
    assert any("too.fine" in line for line in lines_of("json", "debug"))
    assert not any("server.listening" in line for line in lines_of("json", "error"))
    assert not logging.getLogger("trio-websocket").isEnabledFor(logging.DEBUG)


def test_none_of_our_loggers_is_muted() -> None:
    sources = Path(trio_odin.__file__).parent.rglob("*.py")
    names = {name for s in sources for name in re.findall(r'get_logger\("(\w+)"\)', s.read_text())}
    configure_logs("info", "json", file=io.StringIO())
    assert len(names) > 5
    assert [name for name in names if not logging.getLogger(name).isEnabledFor(logging.INFO)] == []
