"""`trio-odin top --once` against a real server."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from tests.e2e.conftest import StartServer, client_of, receive
from tests.e2e.nats import free_port
from trio_odin.cli import main
from trio_odin.net.address import Address
from trio_odin.top.source import Source, SourceError

pytestmark = pytest.mark.e2e

NOWHERE = "nats://127.0.0.1:9"
TOKEN = "the-token-of-this-test-0123"


async def top(*arguments: str) -> Result:
    command = partial(CliRunner().invoke, main, ["top", *arguments])
    return await trio.to_thread.run_sync(command)


def url_of(address: Address) -> str:
    return f"http://{address.connectable}"


async def test_once_prints_the_figures_for_people_and_scripts(
    start_server: StartServer, nats_url: str
) -> None:
    server = await start_server(NATS_URL=nats_url)
    url = url_of(server.admin_addresses[0])
    async with client_of(server, "BTC.trade"), client_of(server):
        for_people = await top(url, "--once")
        assert for_people.exit_code == 0, for_people.output
        assert "clients 2 of 10,000" in for_people.stdout
        assert "NATS connected" in for_people.stdout
        assert "BTC.trade" in for_people.stdout
        for_scripts = await top(url, "--once", "--json", "--filter", "channel=BTC.trade")
        shown = json.loads(for_scripts.stdout)
        assert (shown["connections"]["matching"], shown["overview"]["connections"]) == (1, 2)
        assert set(shown["rates"]) >= {"events", "deliveries", "dropped"}


async def test_a_token_comes_from_a_file(
    start_server: StartServer, nats_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    server = await start_server(NATS_URL=nats_url, WS_ADMIN_TOKEN_FILE=str(file))
    url = url_of(server.admin_addresses[0])
    refused = await top(url, "--once")
    assert refused.exit_code == 1
    assert "Send the token of WS_ADMIN_TOKEN_FILE" in refused.output
    allowed = await top(url, "--once", "--token-file", str(file))
    assert allowed.exit_code == 0, allowed.output


@pytest.mark.parametrize(
    ("arguments", "exit_code", "complaint"),
    [
        (["ftp://a", "--once"], 2, "URL 'ftp://a': allowed is a URL such as"),
        (["http://a..b:1", "--once"], 2, "URL 'http://a..b:1': allowed is a URL such as"),
        (["127.0.0.1:99999", "--once"], 2, "'127.0.0.1:99999': allowed is a port from 1 to 65535"),
        (["--once", "--filter", "user="], 2, "--filter: 'user=': allowed is a value after it"),
        (["--json"], 2, "allowed is --once --json"),
        (["--once", "--filter", "x=1"], 2, "--filter: 'x': allowed are address="),
        (["--once", "--token-file", "/nowhere/token"], 2, "--token-file '/nowhere/token': "),
        ([], 2, "standard output is not a terminal: use --once"),
    ],
)
async def test_mistakes(arguments: list[str], exit_code: int, complaint: str) -> None:
    result = await top(*arguments)
    assert result.exit_code == exit_code
    assert complaint in result.output


async def test_without_the_library_of_the_screen_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "textual", None)
    result = await top()
    assert result.exit_code == 2
    assert result.output == (
        "trio-odin: not installed: textual; pip install 'trio-odin[top]', or use --once\n"
    )


@pytest.mark.parametrize("content", ["", "first\nsecond", "two words"])
async def test_a_token_that_cannot_be_one_is_not_shown(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    result = await top("http://127.0.0.1:9", "--once", "--token-file", str(file))
    assert (result.exit_code, "Traceback" in result.output) == (2, False)
    assert "allowed is one line with a token" in result.output
    assert not content or content.split(maxsplit=1)[0] not in result.output


async def test_a_server_that_is_not_there_or_something_else(
    start_server: StartServer, nats_url: str
) -> None:
    nowhere = await top(f"http://127.0.0.1:{free_port()}", "--once")
    assert nowhere.exit_code == 1
    assert "cannot be reached: Connection refused" in nowhere.output
    server = await start_server(NATS_URL=nats_url)
    other_port = await top(url_of(server.addresses[0]), "--once")
    assert other_port.exit_code == 1
    assert "is there an admin API?" in other_port.output


async def test_the_source_follows_and_closes(start_server: StartServer, nats_url: str) -> None:
    server = await start_server(NATS_URL=nats_url)
    source = Source(url_of(server.admin_addresses[0]))
    in_thread = trio.to_thread.run_sync
    async with client_of(server, "BTC.trade") as client:
        (member,) = server.hub.members
        trace = await in_thread(source.trace, {"connection": member.number})
        lines = iter(trace)
        assert (await in_thread(next, lines))["type"] == "started"
        await client.send('{"type":"heartbeat"}')
        assert (await receive(client))["type"] == "pong"
        assert "pong" in (await in_thread(next, lines))["content"]
        await in_thread(trace.close)
        assert await in_thread(list, lines) == []
        await in_thread(source.close, str(member.number))
        with pytest.raises(SourceError, match="There is no such connection"):
            await in_thread(source.close, str(member.number))
