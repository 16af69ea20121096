"""The commands as a person runs them: processes, exit codes, sentences."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import termios
import urllib.request
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Timer

import click
import psutil
import pytest
import trio
from click.testing import CliRunner
from rich.console import Console
from websockets.exceptions import InvalidStatus
from websockets.trio.client import connect

from tests.e2e.conftest import ending_of, receive
from tests.e2e.nats import free_port, nats_client, running_nats
from tests.waiting import until_answer, wait_until
from trio_odin import __version__
from trio_odin.cli import main
from trio_odin.cli.common import run as run_under_trio
from trio_odin.demo.up import UpPlan
from trio_odin.net.address import Address

pytestmark = pytest.mark.e2e

COMMAND = [sys.executable, "-m", "trio_odin"]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def children_of(pid: int) -> set[int]:
    return {child.pid for child in psutil.Process(pid).children()}


def test_up_runs_and_ends_by_itself_with_everything_started() -> None:
    ended = run("up", "--addr", "127.0.0.1:0", "--duration", "2", "--rate", "20")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    addresses = re.findall(
        r"^  (\w+) +((?:http|ws|nats)://127\.0\.0\.1:\d+\S*)", ended.stdout, re.MULTILINE
    )
    assert [what for what, _ in addresses] == ["Page", "WebSocket", "Health", "Publisher", "NATS"]
    page, websocket = (where for _, where in addresses[:2])
    assert websocket == page.replace("http", "ws") + "ws"
    counted = re.search(r"Stopped in order after (\d+) messages in", ended.stdout)
    assert counted is not None
    assert 20 <= int(counted[1]) <= 40


def test_up_names_no_page_that_is_switched_off() -> None:
    ended = run("up", "--addr", "127.0.0.1:0", "--duration", "0.5", WS_PAGE="off")
    assert ended.returncode == 0, ended.stderr
    assert "WebSocket" in ended.stdout
    assert "Page" not in ended.stdout


@pytest.mark.parametrize(
    ("variables", "flags", "address"),
    [
        ({}, [], Address("127.0.0.1", 3002)),
        ({}, ["--addr", ":3002"], Address("", 3002)),
        ({"WS_ADDR": "10.0.0.1:1"}, [], Address("10.0.0.1", 1)),
        ({"WS_ADDR": ""}, [], Address("127.0.0.1", 3002)),
        ({"WS_ADDR": " "}, [], Address("127.0.0.1", 3002)),
        ({}, ["--addr", ""], Address("127.0.0.1", 3002)),
    ],
)
def test_up_listens_on_this_machine_alone_unless_it_is_asked_to(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], flags: list[str], address: Address
) -> None:
    plans: list[UpPlan] = []

    async def note(plan: UpPlan, _: Console) -> None:
        plans.append(plan)

    monkeypatch.setattr("trio_odin.cli.up.up", note)
    for of_the_process in ("start_logs", "raise_limit_of_files"):
        monkeypatch.setattr(f"trio_odin.cli.up.{of_the_process}", lambda _: None)
    ended = CliRunner().invoke(main, ["up", *flags], env=variables)
    assert ended.exit_code == 0, ended.output
    (plan,) = plans
    assert plan.settings_for("nats://127.0.0.1:1").address == address


@pytest.mark.parametrize(
    ("addr", "sentence"),
    [
        ("127.0.0.1:0", "this machine alone; with --addr :PORT also to others"),
        (
            ":0",
            "everybody who reaches this address; with --addr 127.0.0.1:PORT to this machine alone",
        ),
    ],
)
def test_up_says_who_can_connect(addr: str, sentence: str) -> None:
    ended = run("up", "--addr", addr, "--duration", "0.5", COLUMNS="120")
    assert ended.returncode == 0, ended.stderr
    assert re.search(rf"^  Open to +{sentence} *$", ended.stdout, re.MULTILINE), ended.stdout


def test_up_shows_commands_that_work_where_there_are_tokens(tmp_path: Path) -> None:
    folder = tmp_path / f"the operators' {40 * 'x'}"
    folder.mkdir()
    admin_token, secret = folder / "token", tmp_path / "secret"
    admin_token.write_text("the-token-of-this-test-0123")
    secret.write_text(64 * "a")
    ended = run(
        *("up", "--addr", "127.0.0.1:0", "--duration", "0.5"),
        WS_ADMIN_ADDR="127.0.0.1:0",
        WS_ADMIN_TOKEN_FILE=os.path.relpath(admin_token),
        WS_JWT_KEYS=str(secret),
        WS_JWT_ALGORITHMS="HS256",
    )
    assert ended.returncode == 0, ended.stderr
    commands = [line for line in ended.stdout.splitlines() if "trio-odin top" in line]
    (operators,) = commands
    _, _, *command = shlex.split(operators.partition("Operators")[2])
    _, option, shown = command
    assert (option, Path(shown).is_absolute()) == ("--token-file", True)
    assert admin_token.samefile(shown)
    watch = r"^  trio-odin watch BTC\.trade --url ws://\S+ --token-file FILE$"
    assert re.search(watch, ended.stdout, re.MULTILINE)
    assert "FILE has a token that WS_JWT_KEYS verifies" in ended.stdout


def test_up_ends_quietly_when_its_reader_has_gone() -> None:
    options = ["up", "--addr", "127.0.0.1:0", "--duration", "3"]
    with subprocess.Popen(
        [*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 1


@pytest.mark.parametrize("command", [["up"], ["serve"], ["publish"]])
def test_a_taken_port_gives_one_sentence_and_exit_code_2(
    command: list[str], tmp_path: Path
) -> None:
    with running_nats(tmp_path) as someone:
        address = f"127.0.0.1:{someone.port}"
        ended = run(*command, "--addr", address)
    assert ended.returncode == 2
    said = [line for line in ended.stderr.splitlines() if '"server.starting"' not in line]
    assert said == [f"trio-odin: cannot listen on {address}: another program is listening there"]


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        (["up"], {"WS_MEMORY_LIMIT": "7168"}, "WS_MEMORY_LIMIT='7168': allowed is 0"),
        (["up", "--addr", "1:2:3"], {}, "WS_ADDR='1:2:3'"),
        (["publish", "--addr", "x"], {}, "--addr 'x'"),
        (["publish", "--rate", "0"], {}, "'--rate'"),
        (["publish", "--rate", "nan"], {}, "'--rate': 'nan': allowed is a number"),
        (["up", "--duration", "nan"], {}, "'--duration': 'nan': allowed is a number"),
        (["publish", "--tokens", "B C"], {}, "'B C'"),
        (["publish", "--events", "trades"], {}, "'trades': allowed is all, or some of trade, "),
        (["up", "--shares", "fair"], {}, "'fair' is not one of 'even', 'zipf'"),
        (["watch", "BTC.trade", "--url", "http://x"], {}, "http://x"),
        (["watch", "BTC"], {}, "'BTC': a channel is SYMBOL.event_type"),
        (["watch", "btc"], {}, "letters, digits, _ and -; did you mean BTC.* ?"),
        (["watch", "B\nC.trade"], {}, "'B\\nC.trade': a channel is"),
        (
            ["watch", "BTC.trade", "--every", "often"],
            {},
            "'often': allowed is a whole number from 0 to",
        ),
        (["watch", "BTC.trade", "--every", "-1"], {}, "60,000, or pause"),
        (["watch", "BTC.trade", "--after", "5"], {}, "--after and --epoch: both are needed"),
        (["watch", "BTC.trade", "--token-file", "/nowhere"], {}, "--token-file '/nowhere': "),
        (
            ["watch", "BTC.trade", "--token-file", "/nowhere"],
            {"TRIO_ODIN_TOKEN": "x"},
            "only one of these is allowed",
        ),
    ],
)
def test_bad_input_gives_a_sentence_with_the_value_and_exit_code_2(
    arguments: list[str], variables: dict[str, str], sentence: str
) -> None:
    ended = run(*arguments, **variables)  # in this process it would change the tests' log
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        (["--addr", "no-such-host.invalid:1"], {}, "cannot listen on no-such-host."),
        ([], {"WS_ADMIN_ADDR": "nö-such-host.invalid:1"}, "cannot listen on nö-such-host"),
        ([], {"WS_MAX_CONNECTIONS": "many"}, "WS_MAX_CONNECTIONS='many'"),
        (["--addr", "nowhere"], {}, "WS_ADDR='nowhere'"),
        (["--addr", "a..b:1"], {}, "--addr: WS_ADDR='a..b:1': allowed is an address"),
        (["--addr", f"{'x' * 64}:1"], {}, ":1': allowed is an address"),
        (["--workers", "2"], {"WS_PING_INTERVAL": "8760h"}, "WS_PING_INTERVAL='8760h'"),
        ([], {"WS_REPLAY_CAPACITY": "1" + "0" * 20}, "from 0 to 1,000,000"),
        ([], {"WS_WORKERS": "1_0"}, "from 1 to 64, or auto"),
        ([], {"WS_MEMORY_LIMIT": "7168"}, "which this server takes without a client"),
        (
            ["--workers", "4"],
            {"WS_MEMORY_LIMIT": "100000000"},
            "WS_MEMORY_LIMIT='100000000'",
        ),
    ],
)
def test_a_server_that_cannot_start_gives_a_sentence_and_exit_code_2(
    arguments: list[str], variables: dict[str, str], sentence: str
) -> None:
    ended = run("serve", *arguments, **variables)
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


def test_no_number_of_any_command_may_be_nan() -> None:
    numbers = [
        option
        for command in main.commands.values()
        for part in (command, *getattr(command, "commands", {}).values())
        for option in part.params
        if isinstance(option.type, click.types.FloatParamType)
    ]
    assert len(numbers) > 15
    for option in numbers:
        with pytest.raises(click.BadParameter, match="allowed is a number"):
            option.type.convert("nan", option, None)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "trio-odin: out of memory: "),
        (RuntimeError("can't start new thread"), "trio-odin: no further thread: "),
    ],
)
def test_a_lack_of_the_machine_gives_a_sentence_and_exit_code_1(
    error: Exception, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise error

    with pytest.raises(SystemExit) as caught:
        run_under_trio(serve)
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith(sentence)


def test_a_fault_of_the_program_is_not_hidden() -> None:
    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise RuntimeError("a fault")

    with pytest.raises(ExceptionGroup):
        run_under_trio(serve)


def test_help_shows_examples() -> None:
    assert "trio-odin up" in run("--help").stdout
    for command in main.commands:
        shown = CliRunner().invoke(main, [command, "--help"])
        assert shown.exit_code == 0
        assert "--" in shown.output


def test_a_misspelt_command_gets_the_nearest_one() -> None:
    ended = run("serv")
    assert ended.returncode == 2
    assert "Did you mean 'serve'?" in ended.stderr


def test_the_command_loads_the_server_only_to_serve() -> None:
    program = (
        "import sys; from trio_odin.cli import main; main.commands['serve'];"
        "print('trio_odin.server' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert ended.stdout == b"False\n"


def test_a_memory_limit_below_what_a_server_takes_is_refused() -> None:
    program = (
        "from trio_odin.cli import main, serving; from trio_odin.overload import process;"
        "print(process.resident_bytes())"
    )
    server = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    limit = int(server.stdout) * 9 // 10
    ended = run("serve", "--check", WS_MEMORY_LIMIT=str(limit))
    assert ended.returncode == 2
    assert f"WS_MEMORY_LIMIT='{limit}': allowed is 0" in ended.stderr


def test_the_server_loads_no_part_of_the_lab() -> None:
    program = (
        "import sys; from trio_odin.cli import main, serving; main.commands['serve'];"
        "print(*(name for name in sys.modules if name.startswith('trio_odin.lab')))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert ended.stdout == b"\n"


async def start(*arguments: str, **variables: str) -> trio.Process:
    return await trio.lowlevel.open_process(
        [*COMMAND, *arguments],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def ended(process: trio.Process) -> tuple[int, str, str]:
    """Wait for the end; returns the exit code and the output."""
    printed = {"out": b"", "err": b""}

    async def collect(name: str, stream: trio.abc.ReceiveStream) -> None:
        async for chunk in stream:
            printed[name] += chunk

    assert process.stdout is not None
    assert process.stderr is not None
    with trio.fail_after(20):
        async with process.stdout, process.stderr, trio.open_nursery() as nursery:
            nursery.start_soon(collect, "out", process.stdout)
            nursery.start_soon(collect, "err", process.stderr)
        return await process.wait(), printed["out"].decode(), printed["err"].decode()


async def has_client(port: int) -> bool:
    """Whether a client is connected to the server on `port`."""

    def ask() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    return "\nws_connections_current 1.0\n" in await trio.to_thread.run_sync(ask)


async def ready(port: int) -> str:
    """Wait until the server on `port` accepts clients and has NATS; its WebSocket address."""

    def ask() -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status
        finally:
            connection.close()

    with trio.fail_after(30):
        while True:
            try:
                if await trio.to_thread.run_sync(ask) == 200:
                    return f"ws://127.0.0.1:{port}/ws"
            except OSError:
                pass
            await trio.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_the_server_and_it_exits_with_0(
    number: signal.Signals, tmp_path: Path
) -> None:
    port = free_port()
    with running_nats(tmp_path) as nats:
        server = await start("serve", "--addr", f"127.0.0.1:{port}", "--nats", nats.url)
        url = await ready(port)
        async with connect(url) as client, nats_client(nats.url) as publisher:
            await client.send('{"type":"subscribe","channels":["BTC.trade"]}')
            assert (await receive(client))["type"] == "subscription_ack"
            await publisher.publish("odin.token.BTC.trade", b"1")
            assert (await receive(client))["seq"] == 1
            server.send_signal(number)
            began = trio.current_time()
            ending = await ending_of(client)
        assert (ending.code, ending.text) == (1001, "Server is shutting down")
        assert ending.reconnect_in_ms == [0] or ending.reconnect_in_ms == [1]
        code, _, logged = await ended(server)
    assert code == 0
    assert trio.current_time() - began < 10, "one client is not made to wait"
    finished = next(line for line in logged.splitlines() if '"drain.finished"' in line)
    assert json.loads(finished).items() >= {"imbalance": 0, "matched": 1, "written": 1}.items()


async def test_up_leaves_nothing_behind_after_ctrl_c() -> None:
    port = free_port()
    process = await start("up", "--addr", f"127.0.0.1:{port}")
    await ready(port)
    children = children_of(process.pid)
    assert len(children) == 1  # nats-server
    process.send_signal(signal.SIGINT)
    code, out, err = await ended(process)
    assert (code, err) == (0, "")
    assert "Stopped in order" in out
    await wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


async def test_watch_prints_a_line_for_each_item_until_ctrl_c() -> None:
    port = free_port()
    up = await start("up", "--addr", f"127.0.0.1:{port}", "--duration", "20", "--rate", "50")
    url = await ready(port)
    await trio.sleep(1)
    watch = await start("watch", "*.trade", "--url", url)
    await until_answer(partial(has_client, port), what="it is connected")
    await trio.sleep(2)
    watch.send_signal(signal.SIGINT)
    code, out, err = await ended(watch)
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "trio-odin: interrupted\n")
    assert {"type": "state", "state": "live"}.items() <= next(
        line for line in lines if line["type"] == "state"
    ).items()
    events = [line for line in lines if line["type"] == "price:update"]
    assert len(events) > 10
    assert events[0]["snapshot"]
    assert "snapshot" not in events[-1]
    assert all(event["data"]["tokenId"] == event["channel"].split(".")[0] for event in events)
    up.send_signal(signal.SIGINT)
    await ended(up)


async def test_watch_ends_with_1_if_there_is_no_server() -> None:
    url = f"ws://127.0.0.1:{free_port()}/ws"
    code, out, err = await ended(await start("watch", "BTC.trade", "--url", url))
    assert (code, out) == (1, "")
    assert err == f"trio-odin: cannot connect to {url}: Connection refused\n"


def _on_a_terminal(
    number: int, *arguments: str, sign: bytes, seconds: float = 0
) -> tuple[int, bytes]:
    """Run a command on a terminal of 80 columns; its exit code and its output.

    It gets a signal so many seconds after it has written `sign`.
    """
    terminal, inner = os.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(
        [*COMMAND, *arguments], env=environment, stdin=inner, stdout=inner, stderr=inner
    )
    os.close(inner)
    timer = Timer(seconds, process.send_signal, [number])
    written = b""
    with process, suppress(OSError):  # which is how a terminal ends
        while True:
            written += os.read(terminal, 65536)
            if sign in written and not timer.ident:
                timer.start()
    if timer.ident:
        timer.join()
    os.close(terminal)
    return process.returncode, written


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("sign", [b"\x1b[?1049h", "● ".encode()], ids=["at once", "later"])
def test_watch_gives_the_terminal_back_at_any_signal(number: signal.Signals, sign: bytes) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"ws://127.0.0.1:{silent.getsockname()[1]}/ws"
        arguments = ["watch", "BTC.trade", "--url", url]
        code, written = _on_a_terminal(number, *arguments, sign=sign)
    assert code == 0
    assert written.count(b"\x1b[?1049h") == written.count(b"\x1b[?1049l") == 1
    assert written.count(b"\x1b[?25l") == written.count(b"\x1b[?25h") == 1
    word = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    assert written.endswith(f"trio-odin: {word}\r\n".encode())


def test_ctrl_c_before_a_command_has_begun_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trio_odin.cli.import_module", interrupted)
    ended = CliRunner().invoke(main, ["watch", "BTC.trade"])
    assert (ended.exit_code, ended.output) == (130, "trio-odin: interrupted\n")


async def test_watch_names_what_has_never_had_an_event() -> None:
    port = free_port()
    up = await start("up", "--addr", f"127.0.0.1:{port}", "--duration", "30", "--rate", "50")
    url = await ready(port)
    watch = await start("watch", "BTC.trade", "sol.none", "--url", url, "--count", "5")
    code, out, _ = await ended(watch)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    (silent,) = [line for line in lines if line["type"] == "no_event"]
    assert silent["channel"] == "sol.none"
    assert silent["hint"] == "SOL.none"
    up.send_signal(signal.SIGINT)
    await ended(up)


async def test_watch_is_a_table_on_a_terminal() -> None:
    port = free_port()
    up = await start("up", "--addr", f"127.0.0.1:{port}", "--duration", "20", "--rate", "50")
    url = await ready(port)
    arguments = ["watch", "*.trade", "SOL.none", "--url", url]
    live = "● live".encode()
    code, output = await trio.to_thread.run_sync(
        partial(_on_a_terminal, signal.SIGINT, *arguments, sign=live, seconds=3)
    )
    written = output.decode()
    assert code == 0
    enter, leave = "\x1b[?1049h", "\x1b[?1049l"
    assert written.count(enter) == written.count(leave) == 1, "the terminal is given back"
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.rpartition(leave)[2])
    shown = last.splitlines()
    assert shown[0].split() == ["channel", "price", "change", "age", "events/s", "gaps"]
    assert any(re.match(r"BTC\.trade +[\d,.]+ +[+-]\d+\.\d\d % 24h", line) for line in shown)
    assert any(re.match(r"SOL\.none +no event yet", line) for line in shown)
    assert any(line.startswith("● live · ") for line in shown)
    assert shown[-1] == "trio-odin: interrupted"
    up.send_signal(signal.SIGINT)
    await ended(up)


def test_a_misspelt_variable_gets_a_warning_with_the_nearest_one() -> None:
    port = free_port()
    process = subprocess.Popen(
        [*COMMAND, "serve", "--addr", f"127.0.0.1:{port}"],
        env={**os.environ, "WS_MAX_CONECTIONS": "5", "WS_WORKER_POOL_SIZE": "256"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process, process.stderr:
        lines = [process.stderr.readline() for _ in range(4)]  # up to the line that it serves
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(timeout=10) == 0
    assert "WS_MAX_CONECTIONS is unknown" in lines[0]
    assert "WS_MAX_CONNECTIONS" in lines[0]
    assert "WS_WORKER_POOL_SIZE has no effect" in lines[1]
    starting = json.loads(lines[2])
    assert starting["event"] == "server.starting"
    assert starting["version"] == __version__
    assert starting["settings"] == {"WS_ADDR": f"127.0.0.1:{port}"}


def test_the_settings_in_force_can_be_printed(tmp_path: Path) -> None:
    file = tmp_path / "settings"
    file.write_text("WS_MAX_CHANNELS=7\nNATS_URL=nats://user:hidden@a\n")
    variables = {"WS_RELOAD_FILE": str(file), "WS_ADDR": ":1", "WS_MAX_CHANNELS": "5"}
    lines = run("settings", **variables).stdout.splitlines()
    changed = run("settings", "--changed", **variables)
    assert "WS_MAX_CHANNELS=7" in lines
    assert "WS_OUTBOX_CAPACITY=512" in lines
    assert changed.stdout.splitlines() == [
        "WS_ADDR=:1",
        f"WS_RELOAD_FILE={file}",
        "NATS_URL=…@a",
        "WS_MAX_CHANNELS=7",
    ]
    assert changed.stderr == ""
    assert run("settings", WS_ADDR="x").returncode == 2


async def gets_a_pong(url: str) -> bool:
    """False while the server refuses one more client for lack of files."""
    try:
        async with connect(url) as client:
            await client.send('{"type":"heartbeat"}')
            return bool((await receive(client))["type"] == "pong")
    except InvalidStatus as refused:
        if refused.response.status_code != 503:
            raise
        return False


async def test_running_out_of_files_is_survived_without_a_flood_of_logs(
    tmp_path: Path,
) -> None:
    port = free_port()
    with running_nats(tmp_path) as nats:
        serve = f"serve --addr 127.0.0.1:{port} --nats {nats.url}"
        server = await trio.lowlevel.open_process(
            ["bash", "-c", f"ulimit -n 60 && exec {sys.executable} -m trio_odin {serve}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        url = await ready(port)
        async with connect(url) as early:
            many = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(100)]
            await trio.sleep(1)
            await early.send('{"type":"heartbeat"}')
            assert (await receive(early))["type"] == "pong"
            for stream in many:
                await stream.aclose()
        with trio.fail_after(15):
            while not await gets_a_pong(url):
                await trio.sleep(0.05)
        server.send_signal(signal.SIGTERM)
        code, _, logged = await ended(server)
    assert code == 0
    assert logged.count('"accept.failed"') == 1
    assert "Traceback" not in logged


def test_a_flag_replaces_a_bad_variable() -> None:
    ended = run("publish", "--addr", "x", "--log-format", "json", LOG_FORMAT="bogus")
    assert ended.returncode == 2
    assert ended.stderr.startswith("trio-odin: --addr 'x'")


async def test_without_proc_the_figures_that_need_it_are_left_out() -> None:
    """As in some sandboxes, and under hidepid: logged once, and all other figures exist."""
    hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    possible = await trio.run_process([*hide, "true"], check=False, capture_stderr=True)
    if possible.returncode:
        pytest.skip("this user may not hide /proc")
    port = free_port()
    server = await trio.lowlevel.open_process(
        [*hide, *COMMAND, "serve", "--addr", f"127.0.0.1:{port}", "--nats", "nats://127.0.0.1:1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )

    def page(path: str) -> str:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as page:
            return str(page.read().decode())
        return ""

    async def figures() -> str:
        return await trio.to_thread.run_sync(page, "/metrics")

    pages = [await until_answer(figures, what="/metrics") for _ in range(3)]
    server.terminate()
    code, _, logged = await ended(server)
    assert code == 0
    for metrics in pages:
        assert "process_open_fds" not in metrics
        for name in ("process_resident_memory_bytes", "process_max_fds", "ws_memory_usage_bytes"):
            assert re.search(rf"^{name} [1-9]", metrics, re.MULTILINE), name
    events = [json.loads(line)["event"] for line in logged.splitlines()]
    assert events.count("proc.missing") == 1
    assert "request.failed" not in events
