"""Builds a release from the committed tree, installs it in fresh environments, and lists its parts.

    python ops/release/release.py [--out FOLDER] [--tag v0.1.0]

Into the folder go the wheel and the sdist, the npm package, the image where there is a Docker
engine, what each is made of (CycloneDX), and SHA256SUMS. Nothing is published. It needs git, npm
and the dependency group `release`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What an operator installs: those of the image, and that of README's first lines.
EXTRAS = "auth,load,nkeys,otel,demo"
_STEP_SECONDS = 900
_LIVE_SECONDS = 30
# Each entry of the npm package but the one that needs React.
_FIRST_EVENT = """
import { connect } from "trio-odin";
import { z1 } from "trio-odin/z1";
import WebSocket from "ws";
const feed = connect(process.argv[2], { compression: z1(), WebSocket });
for await (const event of feed.subscribe(["BTC.trade"])) {
  console.log(`${event.channel}: ${event.data.price}`);
  break;
}
feed.close();
"""


class ReleaseError(Exception):
    """The release cannot be made; the text says why."""


def main() -> int:
    """Build and check; the exit code is 1 if something does not hold, 2 for a bad option."""
    parser = argparse.ArgumentParser(
        prog="release.py",
        description="Build a release from the committed tree, check it in fresh environments.",
        epilog="Nothing is published: that is for the workflow of the forge, see CONTRIBUTING.md.",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="default: dist")
    parser.add_argument("--tag", help="demand that the tree is clean and named so: v0.1.0")
    options = parser.parse_args()
    try:
        version = version_of(ROOT)
        if options.tag not in {None, f"v{version}"}:
            parser.error(f"--tag {options.tag!r}: of version {version} it is 'v{version}'")
        check_versions(ROOT, version)
        if options.tag is not None:
            check_is_final(ROOT, version)
        make(options.out.resolve(), version)
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


def version_of(root: Path) -> str:
    """The version in `trio_odin/__init__.py`, from which the Python packages have it."""
    text = (root / "trio_odin" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise ReleaseError("trio_odin/__init__.py has no __version__")
    return found[1]


def check_versions(root: Path, version: str) -> None:
    """The npm package has the same version, and so has its lock."""
    for name in ("package.json", "package-lock.json"):
        other = json.loads((root / "clients" / "js" / name).read_text(encoding="utf-8"))["version"]
        if other != version:
            raise ReleaseError(
                f"clients/js/{name} has version {other} and trio_odin {version}: "
                "they are released together"
            )


def check_is_final(root: Path, version: str) -> None:
    """The changelog has a heading for the version, and all is committed."""
    heading = f"## [{version}] - "
    if heading not in (root / "CHANGELOG.md").read_text(encoding="utf-8"):
        raise ReleaseError(f"CHANGELOG.md has no heading '{heading}DATE'")
    if changed := _git("status", "--porcelain", folder=root):
        raise ReleaseError(f"what is tagged must be committed, and this is not:\n{changed}")


def make(out: Path, version: str) -> None:
    """Build all into `out`, which must be empty or absent, and check it."""
    if out.exists() and any(out.iterdir()):
        raise ReleaseError(f"{out} is not empty: remove it, or name another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="release-") as name:
        home = Path(name)
        tree = _committed(home / "tree")
        wheel, sdist = _build_python(tree, out)
        package = _build_npm(tree, out, home / "npm")
        image = _build_image(tree, out, version)
        python = _install_python(wheel, home / "wheel", EXTRAS)
        _install_python(sdist, home / "sdist", "")
        _check_live(python, package, home / "page")
        _list_parts(python, tree, out, version)
    _write_sums(out)
    files = "\n".join(f"  {path.name}, {path.stat().st_size:,} bytes" for path in _files(out))
    print(f"release: {version} is in {out}\n{files}")
    if image is None:
        print("release: no image, as no Docker engine answers here")


def _committed(tree: Path) -> Path:
    """The files of HEAD alone, so that nothing else gets into a package."""
    _say("the committed tree")
    if changed := _git("status", "--porcelain"):
        print(f"release: not committed, so not in it:\n{changed}", file=sys.stderr)
    archive = tree.with_suffix(".tar")
    _git("archive", "--output", str(archive), "HEAD")
    with tarfile.open(archive) as packed:
        packed.extractall(tree, filter="data")
    return tree


def _build_python(tree: Path, out: Path) -> tuple[Path, Path]:
    """The wheel and the sdist; the same commit gives the same bytes."""
    _say("wheel and sdist")
    when = {"SOURCE_DATE_EPOCH": _git("log", "-1", "--format=%ct")}
    _output(sys.executable, "-m", "build", "--outdir", str(out), str(tree), environment=when)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def _build_npm(tree: Path, out: Path, home: Path) -> Path:
    _say("npm package")
    source = tree / "clients" / "js"
    home.mkdir()
    _output("npm", "ci", "--silent", "--no-audit", "--no-fund", folder=source)
    for script in ("build", "check"):
        _output("npm", "run", "--silent", script, folder=source)
    name_repository(source / "package.json")
    _output("npm", "pack", "--silent", "--pack-destination", str(home), folder=source)
    (packed,) = home.glob("*.tgz")
    # Beside the sdist, whose name differs in the suffix alone.
    package = out / f"npm-{packed.name}"
    shutil.move(packed, package)
    return package


def name_repository(manifest: Path) -> None:
    """Name the repository, without which npm takes no package with provenance.

    Only the forge knows its address; elsewhere the file stays as it is.
    """
    server, repository = (os.environ.get(f"GITHUB_{what}") for what in ("SERVER_URL", "REPOSITORY"))
    if server and repository:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        url = f"git+{server}/{repository}.git"
        content["repository"] = {"type": "git", "url": url, "directory": "clients/js"}
        manifest.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _build_image(tree: Path, out: Path, version: str) -> Path | None:
    """The image as a tar file; None where no engine can build it."""
    if shutil.which("docker") is None or _quiet("docker", "info"):
        return None
    _say("image")
    name = f"trio-odin:{version}"
    revision = _git("rev-parse", "HEAD")
    arguments = ["--build-arg", f"VERSION={version}", "--build-arg", f"REVISION={revision}"]
    _output("docker", "build", *arguments, "--tag", name, str(tree))
    image = out / f"trio-odin-{version}-image.tar"
    _output("docker", "save", "--output", str(image), name)
    return image


def _install_python(package: Path, home: Path, extras: str) -> Path:
    """Install it into a fresh environment; returns its interpreter."""
    _say(f"{package.name} in a fresh environment")
    venv.create(home)
    python = home / "bin" / "python"
    what = f"{package}[{extras}]" if extras else str(package)
    # Without a pip inside, so that the list of parts has nothing that the package does not need.
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    _output(*pip, "install", "--quiet", what)
    version = _output(str(home / "bin" / "trio-odin"), "--version", folder=home)
    print(f"  {version}")
    return python


def _check_live(python: Path, package: Path, home: Path) -> None:
    """A server from the wheel, a client from the npm package: an event goes through both."""
    _say("an event from the installed server to the installed npm package")
    home.mkdir()
    (home / "package.json").write_text('{"type": "module", "private": true}')
    (home / "first.js").write_text(_FIRST_EVENT)
    _output(
        "npm", "install", "--silent", "--no-audit", "--no-fund", str(package), "ws", folder=home
    )
    with _running(python, home) as url:
        print(f"  {_output('node', 'first.js', url, folder=home, seconds=_LIVE_SECONDS)}")


@contextmanager
def _running(python: Path, home: Path) -> Iterator[str]:
    """`trio-odin up`; yields the address of its WebSocket endpoint."""
    command = [str(python.parent / "trio-odin"), "up", "--addr", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            for line in server.stdout:
                if found := re.search(r"ws://[\w.:]+/ws", line):
                    yield found[0]
                    return
            raise ReleaseError("`trio-odin up` of the wheel has ended without an address")
        finally:
            server.terminate()


def _list_parts(python: Path, tree: Path, out: Path, version: str) -> None:
    """What each package is made of, as CycloneDX 1.6."""
    _say("lists of parts")
    sbom = [sys.executable, "-m", "cyclonedx_py"]
    common = ["--output-format", "JSON", "--spec-version", "1.6", "--output-reproducible"]
    installed = out / f"trio-odin-{version}-wheel.cdx.json"
    _output(*sbom, "environment", *common, "--output-file", str(installed), str(python))
    locked = out / f"trio-odin-{version}-image.cdx.json"
    lock = str(tree / "requirements.lock")
    _output(*sbom, "requirements", *common, "--output-file", str(locked), lock)
    parts = _output(
        "npm", "sbom", "--sbom-format", "cyclonedx", "--omit", "dev", folder=tree / "clients" / "js"
    )
    (out / f"trio-odin-{version}-npm.cdx.json").write_text(parts + "\n", encoding="utf-8")


def _write_sums(out: Path) -> None:
    """SHA256SUMS, as `sha256sum --check` reads it."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in _files(out)
    ]
    (out / "SHA256SUMS").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _files(out: Path) -> list[Path]:
    return sorted(path for path in out.iterdir() if path.name not in {"SHA256SUMS", ".gitignore"})


def _say(what: str) -> None:
    print(f"release: {what} …", flush=True)


def _git(*arguments: str, folder: Path = ROOT) -> str:
    return _output("git", *arguments, folder=folder)


def _quiet(*command: str) -> int:
    """The exit code of a command of which nothing is shown."""
    nothing = subprocess.DEVNULL
    return subprocess.run(
        command, stdout=nothing, stderr=nothing, timeout=_LIVE_SECONDS, check=False
    ).returncode


def _output(
    *command: str,
    folder: Path | None = None,
    environment: dict[str, str] | None = None,
    seconds: float = _STEP_SECONDS,
) -> str:
    """What a command prints. One that fails ends the release, with all that it has printed."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | (environment or {}),
            check=True,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.CalledProcessError as error:
        text = f"{error.stdout}{error.stderr}".strip()
        raise ReleaseError(f"{' '.join(command)}: exit code {error.returncode}\n{text}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ReleaseError(str(error)) from error
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
