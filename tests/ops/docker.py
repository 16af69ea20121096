"""Docker for tests: a daemon of its own in a network namespace of its own, and stand-in images.

All that the daemon changes in networks and packet filters is within that namespace, so compose
files run there as they are: bridges, names, published ports. Two machines' addresses are in it too.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from tests.ops.composing import docker_compose
from tests.ops.tools import CommandFailed, missing, output
from trio_odin.demo.nats_server import find_nats_server

# As on the internal network of the plan: of odin-ws and of odin-backend.
WS_ADDRESS = "10.128.0.11"
BACKEND_ADDRESS = "10.128.0.12"
_START_SECONDS = 30.0
# Not by way of the proxy that the environment may name.
_GET = """\
import sys
from urllib.request import ProxyHandler, build_opener
print(build_opener(ProxyHandler({})).open(sys.argv[1], timeout=5).read().decode())
"""


def why_no_docker() -> str | None:
    """The reason why a Docker daemon cannot be started here, if there is one."""
    needed = ("dockerd", "containerd", "runc", "docker", "ip", "nsenter", "iptables")
    if (reason := missing(*needed)) is not None:
        return reason
    return None if os.geteuid() == 0 else "a Docker daemon is started as root here"


@attrs.frozen
class Docker:
    """A running daemon, made by `docker_here`. What it does can only be seen from `inside`."""

    namespace: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """In which docker and docker-compose use this daemon."""
        kept = {name: text for name, text in os.environ.items() if name in {"PATH", "HOME"}}
        return kept | {"DOCKER_HOST": f"unix://{self.folder}/docker.sock", "DOCKER_BUILDKIT": "0"}

    def run(self, *arguments: str, seconds: float = 120) -> str:
        """What a command of docker writes."""
        return output("docker", *arguments, environment=self.environment, seconds=seconds)

    def compose(self, folder: Path, *arguments: str, seconds: float = 180) -> str:
        """What a command of compose writes, in a folder with a compose.yml and perhaps a .env."""
        return output(
            docker_compose(),
            *arguments,
            environment=self.environment,
            seconds=seconds,
            folder=folder,
        )

    def inspect(self, container: str) -> dict[str, Any]:
        """All that the daemon knows of a container."""
        found: list[dict[str, Any]] = json.loads(self.run("inspect", container))
        return found[0]

    def health(self, container: str) -> str:
        """As the daemon's own health check has found it."""
        return str(self.inspect(container)["State"]["Health"]["Status"])

    def lines_on_disk(self, container: str) -> list[dict[str, Any]]:
        """What Docker has written of a container's log: what the shipper reads."""
        path = Path(self.inspect(container)["LogPath"])
        return [json.loads(line) for line in path.read_text().splitlines()]

    def inside(self, *command: str) -> list[str]:
        """A command in the daemon's network, such as a client's."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *command]

    def get(self, url: str) -> str:
        """A page, asked for from the daemon's network."""
        return output(*self.inside(sys.executable, "-c", _GET, url), seconds=20)

    def build(self, tag: str, dockerfile: str, files: Mapping[str, Path | str]) -> None:
        """An image of some files; of a text where one is given."""
        context = self.folder / "context"
        shutil.rmtree(context, ignore_errors=True)
        context.mkdir()
        for name, content in files.items():
            if isinstance(content, Path):
                shutil.copy(content, context / name)
            else:
                (context / name).write_text(content)
            (context / name).chmod(0o755)
        (context / "Dockerfile").write_text(textwrap.dedent(dockerfile))
        self.run("build", "--quiet", "--tag", tag, str(context))


@contextmanager
def docker_here(folder: Path) -> Iterator[Docker]:
    """A daemon with all it has in `folder`; nothing of it is left behind."""
    namespace = f"odin-docker-{os.getpid()}"
    output("ip", "netns", "add", namespace)
    try:
        for setup in (["link", "set", "lo", "up"], ["addr", "add", f"{WS_ADDRESS}/32", "dev", "lo"],
                      ["addr", "add", f"{BACKEND_ADDRESS}/32", "dev", "lo"]):  # fmt: skip
            output("ip", "-n", namespace, *setup)
        with _daemon(namespace, folder) as docker:
            yield docker
    finally:
        output("ip", "netns", "del", namespace)


@contextmanager
def _daemon(namespace: str, folder: Path) -> Iterator[Docker]:
    docker = Docker(namespace, folder)
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    command = docker.inside(
        "dockerd",
        f"--host=unix://{folder}/docker.sock",
        f"--data-root={folder}/data",
        f"--exec-root={folder}/exec",
        f"--pidfile={folder}/pid",
        f"--default-ulimit=nofile={files}:{files}",
    )
    with (folder / "dockerd.log").open("w") as log:
        # In a session of its own, so that a Ctrl-C lets us end it in order.
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(docker, process)
        yield docker
        if names := docker.run("ps", "--all", "--quiet").split():
            docker.run("rm", "--force", *names)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(docker: Docker, process: subprocess.Popen[bytes]) -> None:
    due = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < due:
        try:
            docker.run("version", seconds=5)
        except (CommandFailed, subprocess.TimeoutExpired):
            time.sleep(0.1)
        else:
            return
    raise CommandFailed((docker.folder / "dockerd.log").read_text()[-3000:])


# What `wget -q --spider http://HOST:PORT/PATH` does; Python would not start in time on 0.05 cores.
_WGET = """\
#!/bin/bash
IFS=/ read -r _ _ place path <<< "${@: -1}"
exec 3<> "/dev/tcp/${place%:*}/${place#*:}" && printf 'GET /%s HTTP/1.0\\r\\n\\r\\n' "$path" >&3
read -r _ status _ <&3
[ "$status" = 200 ]
"""
# Debian's Alertmanager has its templates in a file, the official one within.
_TEMPLATES = Path("/usr/share/prometheus/alertmanager")
_PROGRAMS = {"prometheus": "prometheus", "alertmanager": "prometheus-alertmanager"}
# What the official one does of itself.
_OPTIONS = {"prometheus": ["--enable-feature=expand-external-labels"]}
# Those of its libraries that the image of ours has, too.
_EVERYWHERE = ("linux-vdso", "ld-linux", "libc.so", "libm.so", "libdl.so", "libpthread.so")
# As the image's own: options alone are nats-server's.
_NATS_ENTRY = '#!/bin/sh\nexec nats-server "$@"\n'


def make_stand_ins(docker: Docker, ours: str, tags: Mapping[str, str]) -> None:
    """Images under the official names, of the programs of this machine and in the image of ours.

    They have what the compose files count on in the official ones: where programs and data are,
    who runs them, and a wget.
    """
    head = f"FROM {ours}\nUSER root\nHEALTHCHECK NONE\nENV PATH=/usr/local/bin:/usr/bin:/bin\n"
    wget = {"wget": _WGET}
    docker.build(
        tags["nats"],
        f"{head}COPY wget nats-server docker-entrypoint.sh /usr/local/bin/\nCMD []\n"
        'ENTRYPOINT ["docker-entrypoint.sh"]\n',
        wget | {"nats-server": Path(find_nats_server()), "docker-entrypoint.sh": _NATS_ENTRY},
    )
    templates = {file.name: file for file in _TEMPLATES.glob("*.tmpl")}
    for name, debians in _PROGRAMS.items():
        program = shutil.which(debians)
        assert program is not None
        docker.build(
            tags[name],
            f"{head}COPY wget {name} /bin/\nCOPY *.tmpl {_TEMPLATES}/\n"
            f"RUN mkdir /{name} && chown 65534:65534 /{name}\n"
            f"USER 65534:65534\nVOLUME /{name}\nWORKDIR /{name}\n"
            f"ENTRYPOINT {json.dumps([f'/bin/{name}', *_OPTIONS.get(name, [])])}\nCMD []\n",
            wget | templates | {name: Path(program)},
        )
    _make_haproxy(docker, head, tags["haproxy"])


def _make_haproxy(docker: Docker, head: str, tag: str) -> None:
    program = shutil.which("haproxy")
    assert program is not None
    found = re.findall(r"(\S+) => (/\S+)", output("ldd", program))
    libraries = {name: Path(path) for name, path in found if not name.startswith(_EVERYWHERE)}
    docker.build(
        tag,
        f"{head}ENV LD_LIBRARY_PATH=/usr/local/lib/haproxy\n"
        f"COPY {' '.join(libraries)} /usr/local/lib/haproxy/\nCOPY haproxy /usr/local/sbin/\n"
        "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/bin:/bin\nUSER 99:99\n"
        'STOPSIGNAL SIGUSR1\nENTRYPOINT []\nCMD ["haproxy"]\n',
        libraries | {"haproxy": Path(program)},
    )
