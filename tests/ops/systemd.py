"""A systemd of its own for a test, and the unit in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from tests.ops.conftest import OPS, ROOT
from tests.ops.tools import missing
from tests.waiting import until

_BOOT = Path(__file__).with_name("boot_systemd.sh")
_SECONDS = 60.0
# What a service and systemd itself ask for; empty, as there is nothing else to start.
_TARGETS = "basic booted emergency multi-user network-online rescue shutdown sysinit"
# Without a journal: the log is a file.
_LOG = "[Service]\nStandardOutput=append:/run/log\nStandardError=append:/run/log\n"


@attrs.frozen
class Machine:
    """A booted systemd, by its PID outside."""

    pid: int

    def read(self, path: str) -> str:
        """A file inside, as its root has it; `path` from there."""
        return Path("/proc", str(self.pid), "root", path).read_text()

    @property
    def log(self) -> str:
        """What the service has logged."""
        return self.read("run/log")

    def started(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start a program inside."""
        namespaces = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup")
        return subprocess.Popen(
            ["nsenter", f"--target={self.pid}", *namespaces, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str | Path) -> str:
        """Run a program inside to its end; what it printed."""
        with self.started(*arguments) as process:
            return process.communicate(timeout=_SECONDS)[0].strip()

    def show(self, name: str) -> str:
        """A property of the service."""
        return self.run("systemctl", "show", "--property", name, "--value", "trio-odin")

    def page(self, path: str) -> str:
        """A page of the server's admin port; empty while there is none."""
        return self.run("curl", "--silent", f"http://127.0.0.1:3005{path}")

    def metric(self, name: str) -> float:
        """The value of a metric without labels; -1 while there is none."""
        lines = (line.split() for line in self.page("/metrics").splitlines())
        return next((float(line[1]) for line in lines if line[:1] == [name]), -1.0)


def install(folder: Path, settings: str) -> None:
    """Lay out below `folder` what the documented installation leaves below /."""
    opt = folder / "opt" / "trio-odin"
    # Debian's own Python: the one of this environment may be where the unit lets nobody look.
    subprocess.run(["/usr/bin/python3", "-m", "venv", opt], check=True)
    subprocess.run([opt / "bin" / "pip", "install", "--quiet", ROOT], check=True)
    # A venv knows where it was made.
    for script in (opt / "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            script.write_text(script.read_text().replace(str(opt), "/opt/trio-odin"))
    units = folder / "units"
    (units / "trio-odin.service.d").mkdir(parents=True)
    (units / "trio-odin.service.d" / "log.conf").write_text(_LOG)
    for target in _TARGETS.split():
        (units / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    shutil.copy(OPS / "systemd" / "trio-odin.service", units)
    (folder / "etc" / "trio-odin").mkdir(parents=True)
    (folder / "etc" / "trio-odin" / "settings.env").write_text(settings)


@contextmanager
def booted(folder: Path) -> Iterator[Machine]:
    """Boot what is installed below `folder`."""
    boot = subprocess.Popen(
        ["bash", _BOOT, folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        machine = Machine(_pid_1_of(boot))
        until(
            lambda: machine.run("systemctl", "is-active", "booted.target") == "active",
            what="systemd has booted",
            seconds=10,
        )
        yield machine
    finally:
        boot.kill()  # unshare --kill-child takes PID 1 along, and that everything else
        boot.communicate()
        _remove_cgroups(folder.name)


def _pid_1_of(boot: subprocess.Popen[str]) -> int:
    found: list[int] = []

    def look() -> bool:
        assert boot.poll() is None, boot.communicate()[0]
        with suppress(OSError):
            children = Path(f"/proc/{boot.pid}/task/{boot.pid}/children").read_text().split()
            names = {int(pid): Path(f"/proc/{pid}/comm").read_text().strip() for pid in children}
            found[:] = [pid for pid, name in names.items() if name == "systemd"]
        return bool(found)

    until(look, what="systemd has been started", seconds=10)
    return found[0]


def _remove_cgroups(name: str) -> None:
    groups = [
        path
        for root in Path("/sys/fs/cgroup").glob(f"**/{name}")
        for path in (root, *root.glob("**/"))
    ]

    def removed() -> bool:
        for path in sorted(set(groups), key=lambda path: -len(path.parts)):
            with suppress(OSError):  # its last process is on its way out
                path.rmdir()
        return not any(path.exists() for path in groups)

    until(removed, what=f"no cgroup of {name} is left", seconds=10)


def why_not() -> str | None:
    """Why no systemd can be booted here; None if it can."""
    if (reason := missing("unshare", "nsenter", "systemctl", "curl", "ip")) is not None:
        return reason
    if not Path("/usr/bin/python3").exists() or sys.platform != "linux":
        return "needs a Linux machine with Debian's python3"
    if not Path("/sys/fs/cgroup/systemd/cgroup.procs").exists():
        return "the rig needs the hierarchies of cgroup v1"
    probe = subprocess.run(["unshare", "--mount", "--cgroup", "true"], check=False)
    return "needs root" if probe.returncode else None
