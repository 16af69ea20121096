"""The image, built and run: `nox -s ops`. Without podman, or a base image, it is skipped."""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest
import trio
from websockets.exceptions import InvalidStatus
from websockets.trio.client import ClientConnection, connect

from tests.e2e.conftest import Ending, ending_of, receive
from tests.e2e.nats import NatsServer, free_port, nats_client, running_nats
from tests.ops.conftest import ROOT
from tests.ops.containers import (
    Container,
    NoBaseImage,
    Podman,
    base_name,
    podman_here,
    why_no_containers,
)
from tests.signing import rsa_signer, write_key_set
from trio_odin.lab.load.result import LoadResult

pytestmark = pytest.mark.ops

# A tag for each working copy, so that two of them can be tested at once.
TAG = f"localhost/trio-odin-test:{zlib.crc32(bytes(ROOT)):08x}"
# So that two builds can be compared: no time of a file is in them.
OPTIONS = ("--timestamp=0", "--build-arg=VERSION=1.2.3", "--build-arg=REVISION=abcdef")
LOCKED_DOWN = (
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
)
STOP_SECONDS = 40  # as in ops/compose.yml, and more than WS_DRAIN_SECONDS
OWN_LAYERS_MAX_BYTES = 64 * 1024 * 1024

_numbers = itertools.count()

Start: TypeAlias = Callable[..., Awaitable[Container]]


@pytest.fixture(scope="module")
def podman(request: pytest.FixtureRequest) -> Podman:
    """Podman, with the image built; skips where there is none."""
    reason = why_no_containers()
    if reason is not None:
        pytest.skip(reason)
    podman = podman_here()
    try:
        base = trio.run(podman.base_image, base_name(ROOT / "Dockerfile"))
    except NoBaseImage as error:
        pytest.skip(str(error))
    # Not of what other builds have left: buildah takes that for the same, whatever the options.
    trio.run(podman.build, TAG, *OPTIONS, "--no-cache")
    _say(request, f"the base image: {base}")
    return podman


def _say(request: pytest.FixtureRequest, sentence: str) -> None:
    """Write it between the results, as nobody looks at the output of a test that passes."""
    plugins = request.config.pluginmanager
    reporter, capture = plugins.getplugin("terminalreporter"), plugins.getplugin("capturemanager")
    if reporter is not None and capture is not None:
        with capture.global_and_fixture_disabled():
            reporter.write_line(f"\n{sentence}")


@pytest.fixture
async def start(podman: Podman) -> AsyncIterator[Start]:
    """Start a locked-down container with some variables set; it is gone after the test."""
    async with AsyncExitStack() as stack:

        async def start(
            *command: str, options: tuple[str, ...] = (), **variables: str
        ) -> Container:
            given = [f"--env={name}={text}" for name, text in variables.items()]
            running = podman.container(
                TAG,
                *command,
                name=f"odin-test-{os.getpid()}-{next(_numbers)}",
                options=[*LOCKED_DOWN, *given, *options],
            )
            return await stack.enter_async_context(running)

        yield start


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    with running_nats(tmp_path) as server:
        yield server


@pytest.fixture
def port() -> int:
    return free_port()


async def wait_until_healthy(container: Container, seconds: float = 30) -> None:
    with trio.move_on_after(seconds):
        while not await container.is_healthy():
            await trio.sleep(0.2)
        return
    raise AssertionError(f"not healthy after {seconds} s: {await container.logs()}")


@asynccontextmanager
async def clients(port: int, count: int, *channels: str) -> AsyncIterator[list[ClientConnection]]:
    async with AsyncExitStack() as stack:
        connected = []
        for _ in range(count):
            client = await stack.enter_async_context(connect(f"ws://127.0.0.1:{port}/ws"))
            await client.send(json.dumps({"type": "subscribe", "channels": channels}))
            assert (await receive(client))["type"] == "subscription_ack"
            connected.append(client)
        yield connected


# --- what it is made of


async def test_a_second_build_makes_the_same_layers(podman: Podman) -> None:
    again = f"{TAG}-again"
    try:
        await podman.build(again, *OPTIONS, "--no-cache")
        layers = [
            json.loads(
                await podman.run("image", "inspect", "--format", "{{json .RootFS.Layers}}", tag)
            )
            for tag in (TAG, again)
        ]
    finally:
        await podman.run("rmi", "--force", again)
    assert len(layers[0]) > 2
    assert layers[0] == layers[1]


async def test_its_own_layers_are_small(podman: Podman, request: pytest.FixtureRequest) -> None:
    sizes = [
        int(await podman.run("image", "inspect", "--format", "{{.Size}}", image))
        for image in (TAG, base_name(ROOT / "Dockerfile"))
    ]
    own = sizes[0] - sizes[1]
    _say(request, f"the image: {own / 1e6:.0f} MB and its base, {sizes[1] / 1e6:.0f} MB")
    assert 10_000_000 < own < OWN_LAYERS_MAX_BYTES


async def test_it_says_what_it_is(podman: Podman) -> None:
    (image,) = json.loads(await podman.run("image", "inspect", TAG))
    labels = image["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == "1.2.3"
    assert labels["org.opencontainers.image.revision"] == "abcdef"
    assert image["Config"]["StopSignal"] == "SIGTERM"
    assert image["Config"]["User"] == "65532:65532"


async def test_nothing_in_it_installs_packages_and_all_that_it_loads_is_compiled(
    podman: Podman,
) -> None:
    script = """
import importlib.util, os, sys
import trio_odin.cli.serving, trio_odin.cli.publish, trio_odin.cli.load, trio_odin.cli.ready
print([name for name in ("pip", "ensurepip") if importlib.util.find_spec(name)])
specs = [getattr(module, "__spec__", None) for module in sys.modules.values()]
files = {spec.cached for spec in specs if spec and spec.cached}
print(len(files) > 300, [file for file in files if not os.path.exists(file)])
"""
    out = await podman.run(
        *("run", "--rm", "--no-healthcheck", "--entrypoint", "python", TAG, "-c", script)
    )
    assert out.splitlines() == ["[]", "True []"]


# --- how it runs


async def test_it_runs_without_rights_on_a_root_that_cannot_be_written(
    start: Start, port: int
) -> None:
    server = await start(WS_ADDR=f"127.0.0.1:{port}", NATS_URL="nats://127.0.0.1:1")
    script = """
import os, pathlib
written = []
for folder in ("/", "/tmp", "/run", "/var/tmp", "/opt/trio-odin", "/dev"):
    try:
        pathlib.Path(folder, "x").touch()
    except OSError:
        continue
    written.append(folder)
status = dict(line.split(":\\t", 1) for line in open("/proc/1/status").read().splitlines())
names = "Uid", "Gid", "CapEff", "CapBnd", "NoNewPrivs"
print(os.getuid(), written, [status[name].split()[0] for name in names])
"""
    out = await server.execute("python", "-c", script)
    nothing = "0" * 16
    assert out.strip() == f"65532 [] ['65532', '65532', '{nothing}', '{nothing}', '1']"


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_it_turns_healthy_once_nats_is_there_and_a_client_gets_an_event(
    start: Start, nats: NatsServer, port: int, workers: str
) -> None:
    nats.stop()
    server = await start(WS_ADDR=f"127.0.0.1:{port}", NATS_URL=nats.url, WS_WORKERS=workers)
    with trio.fail_after(30):
        while "server.listening" not in await server.logs():
            await trio.sleep(0.1)
    assert not await server.is_healthy()
    nats.start()
    await wait_until_healthy(server)
    async with clients(port, 1, "BTC.trade") as (client,), nats_client(nats.url) as publisher:
        await publisher.publish("odin.token.BTC.trade", b'{"price":1}')
        assert (await receive(client))["data"]["price"] == 1


async def test_the_signal_to_stop_drains_200_clients_within_the_stop_time(
    start: Start, nats: NatsServer, port: int
) -> None:
    server = await start(WS_ADDR=f"127.0.0.1:{port}", NATS_URL=nats.url)
    await wait_until_healthy(server)
    endings: list[Ending] = []
    codes: list[int] = []

    async def note_ending(client: ClientConnection) -> None:
        endings.append(await ending_of(client))

    async def stop() -> None:
        codes.append(await server.stop(STOP_SECONDS))

    async with clients(port, 200, "BTC.trade") as connected:
        with trio.fail_after(STOP_SECONDS):
            async with trio.open_nursery() as nursery:
                for client in connected:
                    nursery.start_soon(note_ending, client)
                nursery.start_soon(stop)
    assert [ending.code for ending in endings] == [1001] * 200
    assert all(ending.reconnect_in_ms for ending in endings)
    assert codes == [0]
    assert '"imbalance": 0' in await server.logs()


async def test_publisher_and_load_runner_are_in_it_too(
    podman: Podman, start: Start, nats: NatsServer, port: int, tmp_path: Path
) -> None:
    server = await start(WS_ADDR=f"127.0.0.1:{port}", NATS_URL=nats.url)
    await wait_until_healthy(server)
    control = free_port()
    publisher = await start(
        *("publish", "--addr", f"127.0.0.1:{control}", "--nats", nats.url, "--rate", "20"),
        options=(
            f'--health-cmd=["trio-odin","ready","--url","http://127.0.0.1:{control}/health"]',
        ),
    )
    await wait_until_healthy(publisher)
    results = tmp_path / "results"
    results.mkdir()
    results.chmod(0o777)  # for the user of the image
    await podman.run(
        *("run", "--rm", "--no-healthcheck", "--network=host", *LOCKED_DOWN),
        *(f"--volume={results}:/results", TAG),
        *("load", f"ws://127.0.0.1:{port}/ws", "--connections", "50", "--hold", "3"),
        *("--expect-success", "1.0", "--json", "/results/load.json"),
    )
    result = msgspec.json.decode((results / "load.json").read_bytes(), type=LoadResult)
    assert (result.connected, result.lost, result.gaps) == (50, 0, 0)
    assert result.received


async def test_it_asks_for_tokens_where_a_file_of_keys_is_mounted(
    start: Start, nats: NatsServer, port: int, tmp_path: Path
) -> None:
    signer = rsa_signer("one")
    keys = write_key_set(tmp_path / "keys.json", signer)
    keys.chmod(0o444)
    server = await start(
        WS_ADDR=f"127.0.0.1:{port}",
        NATS_URL=nats.url,
        WS_JWT_KEYS="/keys.json",
        options=(f"--volume={keys}:/keys.json:ro",),
    )
    await wait_until_healthy(server)
    url = f"ws://127.0.0.1:{port}/ws"
    with pytest.raises(InvalidStatus, match="401"):
        async with connect(url):
            pass
    header = {"Authorization": f"Bearer {signer.token(sub='someone')}"}
    async with connect(url, additional_headers=header) as client:
        await client.send(json.dumps({"type": "heartbeat"}))
        assert (await receive(client))["type"] == "pong"
