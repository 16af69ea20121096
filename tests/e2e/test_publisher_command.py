"""`trio-odin publisher` against a publisher that is a process of its own, with and without NATS."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
from click.testing import CliRunner, Result

from tests.e2e.nats import free_port, running_nats
from tests.waiting import until
from trio_odin.cli.publisher import publisher_command

pytestmark = pytest.mark.e2e

_SECONDS = 20.0

Tell: TypeAlias = Callable[..., Result]


@contextmanager
def running_publisher(nats_url: str) -> Iterator[Tell]:
    """A publisher that waits to be told, and how to tell it."""
    url = f"http://127.0.0.1:{free_port()}"
    address = url.removeprefix("http://")
    arguments = ["publish", "--idle", "--addr", address, "--nats", nats_url]
    with subprocess.Popen(
        [sys.executable, "-m", "trio_odin", *arguments], stderr=subprocess.DEVNULL
    ) as process:
        try:
            until(lambda: tell(url, "stats").exit_code == 0, what="it answers")
            yield lambda *told: tell(url, *told)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(_SECONDS) == 0


def tell(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(publisher_command, [*arguments, "--url", url])


def test_a_market_is_started_turned_up_asked_and_stopped(tmp_path: Path) -> None:
    with running_nats(tmp_path) as nats, running_publisher(nats.url) as tell:
        until(lambda: "NATS:       connected" in tell("stats").output, what="it has NATS")
        started = tell("start", "--tokens", "200")
        assert started.exit_code == 0, started.output
        assert started.output == "Publishing 12 messages a second; published so far: 0\n"
        assert tell("configure", "--rate", "300").exit_code == 0
        until(lambda: published(tell) > 100, what="100 are published")
        stats = tell("stats").output
        assert "publishing: yes" in stats
        assert "rate:       300 a second" in stats
        assert "tokens:     200, BTC ETH" in stats
        assert tell("stop").exit_code == 0
        # While it publishes, what is on its way counts as an error.
        until(lambda: "errors:     0" in tell("stats").output, what="all are on their way")
        count = published(tell)
        assert "publishing: no" in tell("stats").output
        assert published(tell) == count


def published(tell: Tell) -> int:
    counted = re.search(r"published: +(\d+)", tell("stats").output)
    assert counted is not None
    return int(counted[1])


def test_without_nats_the_events_are_errors_and_the_page_says_so() -> None:
    with running_publisher("nats://127.0.0.1:9") as tell:
        assert tell("start", "--rate", "200").exit_code == 0
        until(lambda: re.search(r"errors: +[1-9]", tell("stats").output), what="errors")
        assert "NATS:       disconnected" in tell("stats").output
        assert published(tell) == 0


def test_it_ends_by_itself_after_the_duration_and_keeps_its_tokens() -> None:
    with running_publisher("nats://127.0.0.1:9") as tell:
        assert tell("configure", "--tokens", "BTC,ETH").exit_code == 0
        assert tell("start", "--duration", "0.3").exit_code == 0
        assert "tokens:     2, BTC ETH" in tell("stats").output
        until(lambda: "publishing: no" in tell("stats").output, what="its end")


def test_a_refusal_is_exit_code_1_with_the_publishers_own_reason() -> None:
    with running_publisher("nats://127.0.0.1:9") as tell:
        assert tell("start").exit_code == 0
        again = tell("start")
        assert again.exit_code == 1
        assert "does not start: Already publishing: stop first" in again.output


def test_silence_is_exit_code_2_with_the_address() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for command in ("start", "stop", "stats"):
        ended = tell(url, command)
        assert ended.exit_code == 2
        assert ended.output == f"trio-odin: the publisher at {url} does not answer\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["stop", "--url", "ftp://x"], "'ftp://x': allowed is an address like"),
        (["configure"], "nothing to configure: give --rate, --tokens or both"),
        (["start", "--rate", "0"], "'--rate'"),
        (["start", "--tokens", "B C"], "'B C'"),
        (["start", "--duration", "0"], "'--duration'"),
    ],
)
def test_bad_input_is_exit_code_2_and_asks_nobody(arguments: list[str], sentence: str) -> None:
    ended = CliRunner().invoke(publisher_command, arguments)
    assert ended.exit_code == 2
    assert sentence in ended.output
