"""ops/release/release.py: what it refuses. `nox -s release` builds and installs everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.test_lock import EXTRAS as IMAGE_EXTRAS
from tests.scripts import load_script
from trio_odin import __version__

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "ops" / "release" / "release.py"
release = load_script(SCRIPT)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A committed tree with all that has a version."""
    (tmp_path / "trio_odin").mkdir()
    (tmp_path / "clients" / "js").mkdir(parents=True)
    (tmp_path / "trio_odin" / "__init__.py").write_text('"""Odin."""\n__version__ = "1.2.0"\n')
    for name in ("package.json", "package-lock.json"):
        (tmp_path / "clients" / "js" / name).write_text(json.dumps({"version": "1.2.0"}))
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [1.2.0] - 2030-01-01\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    git(tmp_path, *who, "commit", "--quiet", "--message=x")
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True)


def test_this_tree_has_one_version() -> None:
    assert release.version_of(ROOT) == __version__
    release.check_versions(ROOT, __version__)


def test_a_committed_tree_with_a_heading_is_final(tree: Path) -> None:
    release.check_versions(tree, release.version_of(tree))
    release.check_is_final(tree, "1.2.0")


@pytest.mark.parametrize("name", ["package.json", "package-lock.json"])
def test_another_version_of_the_npm_package_is_refused(tree: Path, name: str) -> None:
    (tree / "clients" / "js" / name).write_text(json.dumps({"version": "1.1.9"}))
    with pytest.raises(release.ReleaseError, match=rf"{name} has version 1\.1\.9 and trio_odin 1"):
        release.check_versions(tree, "1.2.0")


def test_a_version_without_a_heading_is_not_final(tree: Path) -> None:
    with pytest.raises(release.ReleaseError, match=r"no heading '## \[1\.3\.0\] - DATE'"):
        release.check_is_final(tree, "1.3.0")


def test_what_is_not_committed_is_not_final(tree: Path) -> None:
    (tree / "CHANGELOG.md").write_text("## [1.2.0] - 2030-01-02\n")
    with pytest.raises(release.ReleaseError, match=r"not:\n ?M CHANGELOG\.md"):
        release.check_is_final(tree, "1.2.0")


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.whl").touch()
    with pytest.raises(release.ReleaseError, match=r"is not empty: remove it, or name another"):
        release.make(tmp_path, "1.2.0")


def test_the_package_names_the_repository_that_publishes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tmp_path / "package.json"
    manifest.write_text('{"name": "trio-odin"}')
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    release.name_repository(manifest)
    assert json.loads(manifest.read_text()) == {"name": "trio-odin"}
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://forge.example")
    monkeypatch.setenv("GITHUB_REPOSITORY", "site/odin")
    release.name_repository(manifest)
    assert json.loads(manifest.read_text())["repository"] == {
        "type": "git",
        "url": "git+https://forge.example/site/odin.git",
        "directory": "clients/js",
    }


def test_an_operator_gets_what_the_image_has() -> None:
    assert set(IMAGE_EXTRAS) < set(release.EXTRAS.split(","))


def test_a_tag_of_another_version_is_a_mistake_of_the_user() -> None:
    command = [sys.executable, str(SCRIPT), "--tag", "v9"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert f"--tag 'v9': of version {__version__} it is 'v{__version__}'" in ended.stderr


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("ci", "bash .ci/run"),
        ("nightly", "nox -s slow"),
        ("release", "nox -s release -- --tag"),
    ],
)
def test_the_workflow_is_valid_and_runs_what_developers_run(name: str, command: str) -> None:
    workflow = ROOT / ".github" / "workflows" / f"{name}.yml"
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    subprocess.run([*check, "vendor.github-workflows", str(workflow)], check=True)
    assert command in workflow.read_text()
