"""Containers for tests: podman with a store of its own, and a base image from the hub or made here.

The store and the base image stay in the temporary folder, so that only the first run takes its
time. Nothing gets into the machine's own store: an image made here has an official one's name.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from tests.ops.conftest import ROOT
from tests.ops.tools import CommandFailed, missing, output

FOLDER = Path(tempfile.gettempdir()) / "trio-odin-containers"

_PULL_SECONDS = 20.0
_MAKE_SECONDS = 400.0
_BUILD_SECONDS = 400.0
# More than a container's open files or processes may be here, and podman would ask for it.
_LIMIT = 20_000
# What the official slim image has, and CPython's own modules are linked to.
_DEBIAN_PACKAGES = (
    "ca-certificates,libbz2-1.0,libffi8,liblzma5,libncursesw6,libreadline8,libsqlite3-0,libssl3,"
    "libuuid1,netbase,tzdata,zlib1g"
)
# What the official image leaves out of CPython as well, and what was installed into this one.
_NOT_OF_BASE = shutil.ignore_patterns("test", "tests", "idle_test", "*.pyc", "*.a", "site-packages")
# What of pip's configuration means the same inside of a container.
_PIP_OPTIONS = ("index-url", "extra-index-url", "proxy", "trusted-host")
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


# The label of an image that was made here: the version of its CPython.
_MADE_OF = "trio-odin.made-of"


class NoBaseImage(Exception):
    """The base image is not to be had here; the text says why."""


@attrs.frozen
class Container:
    """One that was started by `Podman.container`."""

    podman: Podman
    name: str

    async def inspect(self) -> dict[str, Any]:
        """All that podman knows of it."""
        found: list[dict[str, Any]] = json.loads(await self.podman.run("inspect", self.name))
        return found[0]

    async def logs(self) -> str:
        """What it wrote, to both of its outputs."""
        return await self.podman.run("logs", self.name, with_errors=True)

    async def execute(self, *command: str) -> str:
        """What a command inside of it writes."""
        return await self.podman.run("exec", self.name, *command)

    async def is_healthy(self) -> bool:
        """Whether its health check passes, which is run now: there is no timer without systemd."""
        code, _, _ = await self.podman.attempt("healthcheck", "run", self.name)
        return code == 0

    async def stop(self, seconds: int) -> int:
        """End it by its signal, or after `seconds` by SIGKILL; its exit code."""
        await self.podman.run("stop", "--time", str(seconds), self.name, seconds=seconds + 30)
        state = (await self.inspect())["State"]
        return int(state["ExitCode"])


@attrs.frozen
class Podman:
    """Podman with the test's own store. Made by `podman_here`.

    Attributes:
        environment: in which podman, buildah and podman-compose use that store.
    """

    environment: Mapping[str, str]

    async def attempt(self, *arguments: str, seconds: float = 60.0) -> tuple[int, str, str]:
        """Run a command of podman; its exit code and what it wrote."""
        command = ["podman", "--log-level=error", *arguments]
        with trio.fail_after(seconds):
            done = await trio.run_process(
                command,
                env=self.environment,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    async def run(self, *arguments: str, seconds: float = 60.0, with_errors: bool = False) -> str:
        """What a command of podman writes.

        Raises:
            CommandFailed: it failed.
        """
        code, out, err = await self.attempt(*arguments, seconds=seconds)
        if code:
            raise CommandFailed(f"podman {' '.join(arguments)}: {code}\n{out[-3000:]}{err[-3000:]}")
        return out + err if with_errors else out

    async def has(self, image: str) -> bool:
        """Whether the store has this image."""
        code, _, _ = await self.attempt("image", "exists", image)
        return code == 0

    async def build(
        self, tag: str, *options: str, context: Path = ROOT, seconds: float = _BUILD_SECONDS
    ) -> str:
        """Build the image of a folder's Dockerfile, after its base was found; what was written."""
        await self.base_image(base_name(context / "Dockerfile"))
        return await self.run(
            # Docker's format: the other one has no health check.
            *("build", "--format=docker", "--network=host", "--pull=never", "--tag", tag),
            *options,
            str(context),
            seconds=seconds,
            with_errors=True,
        )

    async def base_image(self, name: str) -> str:
        """Have the base image `name`: from the store, from its registry, or made here; which."""
        async with _locked():
            if not await self.has(name) and not await self._pull(name):
                archive = await trio.to_thread.run_sync(local_base, name)
                await self.run("import", *import_options(archive), str(archive), name, seconds=120)
        labels = await self.run("image", "inspect", "--format", "{{json .Config.Labels}}", name)
        made_of = (json.loads(labels) or {}).get(_MADE_OF)
        return f"made here of Debian and CPython {made_of}" if made_of else "the official image"

    async def _pull(self, name: str) -> bool:
        with trio.move_on_after(_PULL_SECONDS):
            code, _, _ = await self.attempt("pull", "--quiet", name, seconds=_PULL_SECONDS * 2)
            return code == 0
        return False

    @asynccontextmanager
    async def container(
        self, image: str, *command: str, name: str, options: Sequence[str] = ()
    ) -> AsyncIterator[Container]:
        """Start a container on the machine's own network; it is removed at the end."""
        try:
            await self.run(
                "run", "--detach", "--network=host", "--name", name, *options, image, *command
            )
            yield Container(self, name)
        finally:
            with trio.CancelScope(shield=True):
                await self.attempt("rm", "--force", "--time", "1", name)


def why_no_containers() -> str | None:
    """The reason why containers cannot be started on this machine, if there is one."""
    if (reason := missing("podman", "runc")) is not None:
        return reason
    return None if os.geteuid() == 0 else "containers are started as root here"


def podman_here() -> Podman:
    """Podman with the store of all tests, which is made if it is not there."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    if FOLDER.stat().st_uid != os.geteuid():
        raise CommandFailed(f"{FOLDER} is somebody else's")
    limits = [f"{what}={_limit(number)}:{_limit(number)}" for what, number in _LIMITED.items()]
    configuration = FOLDER / "containers.conf"
    configuration.write_text(
        "[containers]\n"
        f"default_ulimits = {json.dumps(limits)}\n"
        # Another one would edit the machine's packet filter.
        'netns = "host"\n'
        'log_driver = "k8s-file"\n'
        "[engine]\n"
        'runtime = "runc"\n'
        # There may be no systemd to ask.
        'cgroup_manager = "cgroupfs"\n'
        'events_logger = "file"\n'
    )
    storage = FOLDER / "storage.conf"
    storage.write_text(
        "[storage]\n"
        f'driver = "{_driver()}"\n'
        f'graphroot = "{FOLDER}/store"\n'
        f'runroot = "{FOLDER}/run"\n'
    )
    own = {"CONTAINERS_CONF": str(configuration), "CONTAINERS_STORAGE_CONF": str(storage)}
    return Podman(environment=os.environ | own)


def _driver() -> str:
    """How the store puts layers together: overlay, except on one."""
    kind = output("stat", "--file-system", "--format=%T", FOLDER).strip()
    return "vfs" if kind == "overlayfs" else "overlay"


_LIMITED = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}


def _limit(number: int) -> int:
    _, hard = resource.getrlimit(number)
    return _LIMIT if hard == resource.RLIM_INFINITY else min(hard, _LIMIT)


@asynccontextmanager
async def _locked() -> AsyncIterator[None]:
    """Let one process at a time look for a base image, or make it."""
    with (FOLDER / "lock").open("w") as file:
        await trio.to_thread.run_sync(fcntl.flock, file, fcntl.LOCK_EX)
        yield


def base_name(dockerfile: Path) -> str:
    """The image that a Dockerfile is based on, with the defaults of its arguments filled in."""
    text = dockerfile.read_text()
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE))
    found = re.search(r"^FROM (\S+)", text, re.MULTILINE)
    assert found is not None, f"{dockerfile} has no FROM"
    return re.sub(r"\$\{(\w+)\}", lambda variable: defaults[variable[1]], found[1])


def local_base(name: str) -> Path:
    """An archive for `podman import` or `docker import`, made of Debian and a CPython from here.

    Takes half a minute, once: it stays in the temporary folder.

    Raises:
        NoBaseImage: there is no debootstrap, no package for it, or no CPython to copy.
    """
    if shutil.which("debootstrap") is None:
        raise NoBaseImage(f"{name} cannot be pulled, and there is no debootstrap to make it")
    python = _python_like(name)
    archive = FOLDER / f"base-{python.name}.tar"
    if not archive.exists():
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            root = Path(folder) / "root"
            _add_debian(root, name)
            _add_python(root, python)
            _add_configuration(root)
            _strip(root)
            unfinished = Path(folder) / "base.tar"
            output(
                *("tar", "--create", "--file", unfinished, "--directory", root, "."),
                seconds=_MAKE_SECONDS,
            )
            unfinished.rename(archive)
    return archive


def _python_like(name: str) -> Path:
    """A CPython with a folder of its own, of the version that the image has, or of any."""
    version = name.rpartition(":")[2].partition("-")[0]
    besides = sorted(Path(sys.base_prefix).parent.glob(f"{version}*"), reverse=True)
    folders = [folder for folder in besides if (folder / f"bin/python{version}").exists()]
    folders.append(Path(sys.base_prefix))
    if folders[0] == Path("/usr"):
        raise NoBaseImage(f"{name} cannot be pulled, and no CPython has a folder of its own here")
    return folders[0]


def _add_debian(root: Path, name: str) -> None:
    options = ("--variant=minbase", f"--include={_DEBIAN_PACKAGES}", "bookworm", str(root))
    try:
        output("debootstrap", *options, seconds=_MAKE_SECONDS)
    except CommandFailed as error:
        raise NoBaseImage(f"{name} cannot be pulled, nor made: {error}") from None


def _add_python(root: Path, python: Path) -> None:
    for part in ("bin", "lib"):
        shutil.copytree(
            python / part,
            root / "usr/local" / part,
            symlinks=True,
            ignore=_NOT_OF_BASE,
            dirs_exist_ok=True,
        )
    programs = root / "usr/local/bin"
    for program in programs.iterdir():
        if not program.name.startswith("python"):
            program.unlink()  # with the folder of where it was installed in its first line
    (library,) = (root / "usr/local/lib").glob("python3.*")
    (library / "site-packages").mkdir()
    output("chroot", root, "ldconfig")
    interpreter = f"/usr/local/bin/{library.name}"
    ensurepip = ("-m", "ensurepip", "--upgrade", "--default-pip")
    output("chroot", root, interpreter, *ensurepip, seconds=_MAKE_SECONDS)
    for link in ("python", "python3"):
        (programs / link).unlink(missing_ok=True)
        (programs / link).symlink_to(library.name)


def _add_configuration(root: Path) -> None:
    """What pip needs here to reach its index: whom to trust, and where that index is."""
    if _CERTIFICATES.exists():
        shutil.copy(_CERTIFICATES, root / _CERTIFICATES.relative_to("/"))
    known = {}
    for line in output(sys.executable, "-m", "pip", "config", "list").splitlines():
        key, _, value = line.partition("=")
        known[key.rpartition(".")[2]] = value.strip("'")
    # An address of a file is of this machine.
    lines = [
        f"{key} = {known[key]}"
        for key in _PIP_OPTIONS
        if key in known and "file:" not in known[key]
    ]
    text = "\n".join(["[global]", f"cert = {_CERTIFICATES}", *lines])
    (root / "etc/pip.conf").write_text(f"{text}\n")


def _strip(root: Path) -> None:
    """Leave out what the official image has not got either: bytecode, downloads, documentation."""
    for bytecode in (root / "usr/local").rglob("*.pyc"):
        bytecode.unlink()
    for folder in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man",
                   "usr/share/locale", "var/log"):  # fmt: skip
        shutil.rmtree(root / folder, ignore_errors=True)
        (root / folder).mkdir()


def import_options(archive: Path) -> list[str]:
    """What an image made of this archive has to be told: `podman import` takes them."""
    changes = [
        "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
        "ENV LANG=C.UTF-8",
        'CMD ["python3"]',
        f"LABEL {_MADE_OF}={archive.stem.removeprefix('base-')}",
    ]
    return [option for change in changes for option in ("--change", change)]
