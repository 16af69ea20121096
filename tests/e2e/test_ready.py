"""`trio-odin ready`: the health check of a container, and its cost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

import trio_odin.cli.ready as module
from tests.certificates import make_certificates
from tests.e2e.conftest import StartServer, wait_for_nats
from tests.e2e.nats import free_port
from tests.e2e.test_cli import ended, start
from tests.waiting import until_answer
from trio_odin.cli import main
from trio_odin.demo.publisher import PublisherSettings, publish
from trio_odin.net.listening import Address
from trio_odin.settings.reading import read_settings

pytestmark = pytest.mark.e2e

NOWHERE = "nats://127.0.0.1:1"
NO_VARIABLES = {
    "WS_ADDR": None, "WS_ADMIN_ADDR": None, "WS_RELOAD_FILE": None, "WS_TLS_CERT": None
}  # fmt: skip


async def check(*arguments: str, **variables: str) -> Result:
    """Run the command in a thread, as the test's own loop serves meanwhile."""
    invoke = partial(
        CliRunner().invoke, main, ["ready", *arguments], env={**NO_VARIABLES, **variables}
    )
    return await trio.to_thread.run_sync(invoke)


def last_line(result: Result) -> str:
    """What the command printed: lines of the server's log may come before."""
    return result.stdout.splitlines()[-1]


@asynccontextmanager
async def answering(
    answer: Callable[[trio.SocketStream], Awaitable[None]],
) -> AsyncIterator[str]:
    """The URL of a port with an odd answer to every client."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_it_answers_yes_once_nats_was_reached(
    start_server: StartServer, nats_url: str
) -> None:
    server = await start_server(NATS_URL=nats_url)
    await wait_for_nats(server)
    address = str(server.addresses[0])
    result = await check(WS_ADDR=address)
    assert result.exit_code == 0
    # Lines of the server's log may come between: in a test they are on the same standard output.
    assert f"http://{address}/ready: ready" in result.stdout.splitlines()


async def test_it_answers_no_with_a_reason_before_that(start_server: StartServer) -> None:
    server = await start_server(NATS_URL=NOWHERE)
    address = str(server.addresses[0])
    result = await check(WS_ADDR=address)
    assert result.exit_code == 1
    # Lines of the server's log may come between: in a test it shares standard error.
    # The reason of the first failure is known once that attempt has ended.
    said = f"trio-odin: http://{address}/ready: 503 "
    reasons = (
        "NATS has not been reached yet",
        "NATS has not been reached yet: 127.0.0.1:1: connection refused",
    )
    either = {f'{said}{{"ready":false,"reasons":["{reason}"]}}' for reason in reasons}
    assert either & set(result.output.splitlines()), result.output


async def test_it_asks_with_tls_if_the_port_speaks_it(
    start_server: StartServer, nats_url: str, tmp_path: Path
) -> None:
    files = make_certificates(tmp_path, "prices.example")
    tls = {"WS_TLS_CERT": str(files.certificate), "WS_TLS_KEY": str(files.key)}
    server = await start_server(NATS_URL=nats_url, WS_ADMIN_ADDR="127.0.0.1:0", **tls)
    await wait_for_nats(server)
    address = str(server.addresses[0])
    result = await check(WS_ADDR=address, **tls)
    assert (result.exit_code, last_line(result)) == (0, f"https://{address}/ready: ready")
    admin = str(server.admin_addresses[0])
    result = await check(WS_ADDR=address, WS_ADMIN_ADDR=admin, **tls)
    assert (result.exit_code, last_line(result)) == (0, f"http://{admin}/ready: ready")
    # Another server's certificate has to be right.
    result = await check("--url", f"https://{address}/ready")
    assert result.exit_code == 1
    assert "certificate verify failed" in result.output


async def test_it_asks_at_the_metrics_address_if_there_is_one(
    start_server: StartServer,
) -> None:
    server = await start_server(NATS_URL=NOWHERE, WS_ADMIN_ADDR="127.0.0.1:0")
    port = server.admin_addresses[0].port
    result = await check(WS_ADDR="127.0.0.1:1", WS_ADMIN_ADDR=f":{port}")
    assert f"http://127.0.0.1:{port}/ready: 503" in result.output


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_it_asks_a_server_that_listens_at_the_any_address_of_ipv6(workers: str) -> None:
    port, admin_port = free_port(), free_port()
    addresses = {"WS_ADDR": f"[::]:{port}", "WS_ADMIN_ADDR": f"[::]:{admin_port}"}
    server = await start("serve", NATS_URL=NOWHERE, WS_WORKERS=workers, **addresses)
    try:
        for variables in (addresses, addresses | {"WS_ADMIN_ADDR": ""}):
            await until_answer(
                partial(_is_not_ready_yet, variables), what=f"an answer for {variables}"
            )
    finally:
        server.terminate()
        await ended(server)


async def _is_not_ready_yet(variables: dict[str, str]) -> bool:
    return "NATS has not been reached yet" in (await check(**variables)).output


async def test_the_file_of_settings_goes_before_the_environment(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(NATS_URL=NOWHERE)
    file = tmp_path / "settings"
    file.write_text(f"WS_ADDR={server.addresses[0]}\n")
    result = await check(WS_ADDR="127.0.0.1:1", WS_RELOAD_FILE=str(file))
    assert f"http://{server.addresses[0]}/ready: 503" in result.output


@pytest.mark.parametrize("content", [None, "what is this"])
async def test_a_bad_reload_file_does_not_matter(
    start_server: StartServer, tmp_path: Path, content: str | None
) -> None:
    server = await start_server(NATS_URL=NOWHERE)
    file = tmp_path / "settings.env"
    if content is not None:
        file.write_text(content)
    result = await check(WS_ADDR=str(server.addresses[0]), WS_RELOAD_FILE=str(file))
    assert f"http://{server.addresses[0]}/ready: 503" in result.output


async def test_it_also_asks_a_publisher(nursery: trio.Nursery) -> None:
    plan = PublisherSettings(address=Address("127.0.0.1", 0), nats_urls=[NOWHERE])
    publisher = await nursery.start(publish, plan)
    result = await check("--url", f"http://{publisher.address}/health")
    assert result.exit_code == 0
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        ([], {"WS_ADDR": "nowhere"}, "'nowhere': allowed is an address like :3002"),
        (["--url", "https://127.0.0.1/"], {}, "allowed is a URL like http://127.0.0.1:3002/ready"),
        (["--url", "http://127.0.0.1:99999/"], {}, "allowed is an address like"),
        (["--url", "http://a..b:80"], {}, "allowed is an address like"),
    ],
)
async def test_an_impossible_address_gives_a_sentence_and_exit_code_1(
    arguments: list[str], variables: dict[str, str], sentence: str
) -> None:
    result = await check(*arguments, **variables)
    assert result.exit_code == 1
    assert sentence in result.output


async def test_without_a_listener_the_answer_is_no() -> None:
    result = await check(WS_ADDR=f"127.0.0.1:{free_port()}")
    assert result.exit_code == 1
    assert "refused" in result.output


async def _say_nothing(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def _dribble(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n")
        await trio.sleep(0.02)


@pytest.mark.parametrize("answer", [_say_nothing, _dribble])
async def test_an_answer_that_does_not_end_in_time_is_a_no(
    answer: Callable[[trio.SocketStream], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_DEADLINE_SECONDS", 0.3)
    async with answering(answer) as url:
        with trio.fail_after(5):
            result = await check("--url", url)
    assert result.exit_code == 1
    assert "no answer within 0.3 s" in result.output


async def test_an_answer_that_is_not_http_is_a_no() -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"+OK 200\r\n\r\n")

    async with answering(answer) as url:
        result = await check("--url", url)
    assert result.exit_code == 1
    assert "does not speak HTTP" in result.output


def test_without_settings_it_asks_at_the_default_address() -> None:
    listens_at = read_settings({}).address
    assert module._url_of({"WS_ADDR": " "}) == f"http://{listens_at.connectable}/ready"


def test_it_loads_nothing_slow() -> None:
    script = "import sys, trio_odin.cli.ready; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {script}"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert "trio_odin.cli.ready" in loaded
    assert not loaded & {"trio", "asyncio", "attrs", "attr", "environ", "http.client", "structlog"}
