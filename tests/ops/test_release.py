"""ops/cloud/release.sh: deployed twice and more, to a folder, with a stand-in for Docker."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.ops.composing import docker_compose
from tests.ops.conftest import OPS, ROOT
from tests.ops.test_cloud import NEEDED, Cloud
from tests.ops.tools import run, tool

# Notes its calls; containers are there from the first `up` on. $FAKE/broken: an `up` fails.
DOCKER = r"""
echo "$*" >>"$FAKE/docker-calls"
case "$*" in
  info) [ "$(grep -c info "$FAKE/docker-calls")" -gt "$(cat "$FAKE/installing" || echo 0)" ] ;;
  *"config --services") sed -n '/^services:/,/^[a-z]/s/^  \([a-z-]*\):$/\1/p' "$3" ;;
  *"ps --all --quiet") [ ! -e "$FAKE/containers" ] || cat "$FAKE/containers" ;;
  *"up --detach --wait") [ ! -e "$FAKE/broken" ] && echo 1 >"$FAKE/containers" ;;
esac
"""


class Releases(Cloud):
    """A repository of `ops` and the prices alone, and the folder that stands for the machines."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.repository = folder / "repository"
        self.script = self.repository / "ops" / "cloud" / "instances.sh"
        shutil.copytree(
            OPS, self.repository / "ops", ignore=shutil.ignore_patterns("__pycache__", "secrets")
        )
        prices = Path("trio_odin", "lab", "model", "prices.toml")
        (self.repository / prices.parent).mkdir(parents=True)
        shutil.copy(ROOT / prices, self.repository / prices)
        self._git("init", "--quiet")
        self.current = folder / "machine" / "srv" / "current"
        self.previous = self.current.with_name("previous")
        self.sent = folder / "machine" / "tmp"
        self.sent.mkdir(parents=True)
        self.stub("sudo", 'exec "$@"')
        self.stub("docker", DOCKER)
        self.has_machines()

    def _git(self, *arguments: str) -> str:
        who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        ended = run(tool("git"), "-C", self.repository, *who, *arguments)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    def commit(self) -> str:
        """What lies there becomes a commit; the name of its image."""
        self._git("add", ".")
        self._git("commit", "--quiet", "--allow-empty", "--message=a release")
        return f"trio-odin:{self._git('rev-parse', '--short=12', 'HEAD')}"

    def deploy(self, machine: str) -> list[str]:
        """The calls of Docker that it took."""
        (self.folder / "docker-calls").unlink(missing_ok=True)
        self.did("deploy", machine)
        return self.docker_calls

    def back(self, machine: str) -> list[str]:
        (self.folder / "docker-calls").unlink(missing_ok=True)
        variables = {
            "PATH": f"{self.folder}:/usr/bin:/bin",
            "FAKE": str(self.folder),
            "ODIN_ROOT": str(self.current.parent),
        }
        script = self.current / "ops" / "cloud" / "release.sh"
        ended = run(tool("bash"), script, "back", machine, variables=variables)
        assert ended.returncode == 0, ended.stderr
        return self.docker_calls

    @property
    def docker_calls(self) -> list[str]:
        return (self.folder / "docker-calls").read_text().splitlines()

    def env(self, machine: str) -> list[str]:
        return (self.current / "ops" / "isolated" / machine / ".env").read_text().splitlines()


def image_in(release: Path, machine: str = "ws") -> str:
    lines = (release / "ops" / "isolated" / machine / ".env").read_text().splitlines()
    (image,) = (line for line in lines if line.startswith("TRIO_ODIN_IMAGE="))
    return image.partition("=")[2]


def restarted(calls: list[str]) -> set[str]:
    return {
        name for call in calls if " restart " in call for name in call.split(" restart ")[1].split()
    }


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    for program in ("bash", "git", "tar", "diff", "openssl"):
        tool(program)
    return Releases(tmp_path)


def test_what_was_changed_on_the_machine_survives_a_release(releases: Releases) -> None:
    releases.commit()
    releases.deploy("ws")
    settings = releases.current / "ops" / "settings" / "ws.env"
    targets = releases.current / "ops" / "prometheus" / "targets" / "ws.yml"
    own = releases.current / "ops" / "prometheus" / "rules" / "own.yml"
    changed = {settings: "WS_MAX_CONNECTIONS=12000\n", targets: "[]\n", own: "groups: []\n"}
    for file, text in changed.items():
        file.write_text(text)
    env = releases.current / "ops" / "isolated" / "ws" / ".env"
    with env.open("a") as lines_of_env:
        lines_of_env.write("# by night\nENABLE_SUBSCRIPTION_FILTERING=false\nWS_NOFILE=100000\n")
    (releases.repository / "ops" / "settings" / "ws.env").write_text("# of the next release\n")
    (releases.repository / "ops" / "nats" / "nats.conf").write_text("port: 4222\n")
    (releases.repository / "ops" / "haproxy" / "rolling.py").unlink()
    image = releases.commit()
    releases.deploy("ws")
    assert {file: file.read_text() for file in changed} == changed
    assert (releases.current / "ops" / "nats" / "nats.conf").read_text() == "port: 4222\n"
    assert not (releases.current / "ops" / "haproxy" / "rolling.py").exists()
    lines = releases.env("ws")
    assert {"# by night", "ENABLE_SUBSCRIPTION_FILTERING=false", "WS_NOFILE=100000"} < set(lines)
    assert image_in(releases.current) == image
    names = [line.partition("=")[0] for line in lines]
    assert len(names) == len(set(names))
    assert env.stat().st_mode & 0o777 == 0o600
    assert not list(releases.sent.iterdir()), "one of them has a password"


def test_a_release_changes_no_path_so_nats_keeps_its_stream(releases: Releases) -> None:
    releases.commit()
    first = releases.deploy("backend")
    assert not restarted(first), "they have just been started"
    folder = releases.current / "ops" / "nats"
    before = folder.stat().st_ino
    (releases.repository / "ops" / "loki" / "loki.yml").write_text("{}\n")
    releases.commit()
    second = releases.deploy("backend")
    files = {call.split()[2] for call in [*first, *second] if "--file" in call}
    assert files == {str(releases.current / "ops" / "isolated" / "backend" / "compose.yml")}
    assert folder.stat().st_ino == before, "running containers have it mounted"
    assert restarted(second) == {"loki"}
    (releases.repository / "ops" / "nats" / "nats.conf").write_text("port: 4222\n")
    releases.commit()
    assert restarted(releases.deploy("backend")) == {"nats"}
    assert not restarted(releases.deploy("backend"))


def test_compose_sees_the_same_nats_in_each_release(releases: Releases) -> None:
    def hashes() -> dict[str, str]:
        file = releases.current / "ops" / "isolated" / "backend" / "compose.yml"
        told = run(docker_compose(), "--file", file, "config", "--hash", "*")
        assert told.returncode == 0, told.stderr
        return dict(line.split() for line in told.stdout.splitlines())

    releases.commit()
    releases.deploy("backend")
    before = hashes()
    releases.commit()
    releases.deploy("backend")
    after = hashes()
    assert {name for name in before if before[name] != after[name]} == {"publisher"}


def test_the_release_before_is_the_last_one_that_worked(releases: Releases) -> None:
    first = releases.commit()
    releases.deploy("ws")
    assert not releases.previous.exists()
    releases.deploy("ws")
    assert not releases.previous.exists(), "it is the same release"
    for _ in range(2):
        releases.commit()
        (releases.folder / "broken").touch()
        assert releases.run("deploy", "ws").returncode == 1
        assert image_in(releases.previous) == first
    (releases.folder / "broken").unlink()
    second = releases.commit()
    releases.deploy("ws")
    assert image_in(releases.previous) == first
    releases.commit()
    releases.deploy("ws")
    assert image_in(releases.previous) == second


def test_what_a_failed_release_has_changed_is_restarted_by_the_next(releases: Releases) -> None:
    releases.commit()
    releases.deploy("backend")
    (releases.repository / "ops" / "nats" / "nats.conf").write_text("port: 4222\n")
    releases.commit()
    (releases.folder / "broken").touch()
    assert releases.run("deploy", "backend").returncode == 1
    (releases.folder / "broken").unlink()
    assert restarted(releases.deploy("backend")) == {"nats"}


def test_the_way_back_brings_files_and_image_and_keeps_the_settings(releases: Releases) -> None:
    old = releases.commit()
    releases.deploy("ws")
    rules = "ops/fluent-bit/labels.lua"
    before = (releases.current / rules).read_text()
    (releases.repository / rules).write_text("-- broken\n")
    (releases.repository / "ops" / "new.yml").touch()
    new = releases.commit()
    releases.deploy("ws")
    settings = releases.current / "ops" / "settings" / "ws.env"
    settings.write_text("WS_MAX_CONNECTIONS=12000\n")
    calls = releases.back("ws")
    assert (image_in(releases.current), image_in(releases.previous)) == (old, new)
    assert (releases.current / rules).read_text() == before
    assert not (releases.current / "ops" / "new.yml").exists()
    assert settings.read_text() == "WS_MAX_CONNECTIONS=12000\n"
    assert restarted(calls) == {"fluent-bit"}
    assert not any(call.startswith(("build", "pull")) for call in calls)
    releases.back("ws")
    assert (image_in(releases.current), image_in(releases.previous)) == (new, old)
    assert (releases.current / "ops" / "new.yml").exists()


def test_without_a_release_before_there_is_no_way_back(releases: Releases) -> None:
    releases.commit()
    releases.deploy("ws")
    with pytest.raises(AssertionError, match="there is no release before this one"):
        releases.back("ws")


def test_a_machine_that_still_installs_docker_is_waited_for(releases: Releases) -> None:
    image = releases.commit()
    (releases.folder / "installing").write_text("3")
    calls = releases.deploy("ws")
    assert calls.count("info") == 4
    revision = image.removeprefix("trio-odin:")
    build = f"build --quiet --tag {image} --build-arg REVISION={revision} {releases.current}"
    assert calls.index(build) > 4


def test_an_image_that_is_named_is_pulled(
    releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases.commit()
    monkeypatch.setitem(NEEDED, "TRIO_ODIN_IMAGE", "registry.example/trio-odin:1")
    calls = releases.deploy("runner")
    assert calls[-1] == "pull --quiet registry.example/trio-odin:1"
    assert image_in(releases.current, "runner") == "registry.example/trio-odin:1"


def test_a_machine_starts_with_what_was_stopped_before(releases: Releases) -> None:
    assert len(releases.did("stop", "ws")) == len(releases.did("start", "ws")) - 1 == 2
    assert not (releases.folder / "docker-calls").exists(), "nothing was deployed"
    releases.commit()
    releases.deploy("ws")
    releases.did("stop", "ws")
    assert releases.docker_calls[-1].endswith("compose.yml stop")
    releases.did("start", "ws")
    assert releases.docker_calls[-1].endswith("compose.yml up --detach --wait")


def test_a_machine_gets_its_own_secrets_and_what_has_others_is_restarted(
    releases: Releases,
) -> None:
    secrets = releases.current / "ops" / "secrets"
    releases.commit()
    releases.deploy("ws")
    assert {str(f.relative_to(secrets)) for f in secrets.rglob("*") if f.is_file()} == {
        "ws/nats_url",
        "ws/password",
        "ws/ca.pem",
    }
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert not list(releases.sent.iterdir()), "nothing of it is left where it was sent to"
    before = (secrets / "ws" / "password").read_text()

    releases.commit()
    assert restarted(releases.deploy("ws")) == set()
    assert (secrets / "ws" / "password").read_text() == before

    (releases.folder / "secrets" / "nats" / "users.conf").unlink()  # new passwords
    releases.commit()
    assert restarted(releases.deploy("ws")) == {"ws"}
    assert (secrets / "ws" / "password").read_text() != before


def test_haproxy_reads_what_changed_without_losing_its_clients(
    releases: Releases,
) -> None:
    for name in ("odin-ws-go-v2", "odin-proxy"):
        (releases.folder / f"there-compute-instances-{name}").touch()
    certificates = releases.folder / "secrets" / "haproxy"
    certificates.mkdir(parents=True)
    (certificates / "public.pem").write_text("one\n")
    releases.commit()
    first = releases.deploy("proxy")
    assert not any("kill -USR2" in call for call in first)
    assert not any(call.startswith(("build ", "pull ")) for call in first)
    (certificates / "public.pem").write_text("renewed\n")
    releases.commit()
    second = releases.deploy("proxy")
    assert [call for call in second if call.endswith("exec -T haproxy sh -c kill -USR2 1")]
    assert not restarted(second)
    installed = releases.current / "ops" / "secrets" / "haproxy" / "public.pem"
    assert installed.read_text() == "renewed\n"


def test_prometheus_keeps_what_a_person_wrote_and_forgets_machines_that_have_gone(
    releases: Releases,
) -> None:
    second = releases.folder / "there-compute-instances-odin-ws-go-v2"
    second.touch()
    releases.commit()
    releases.deploy("backend")
    targets = releases.current / "ops" / "prometheus" / "targets"
    assert "odin-ws-2" in (targets / "cloud" / "ws-ws-2.yml").read_text()
    (targets / "haproxy.yml").write_text("[] # mine\n")
    second.unlink()
    releases.commit()
    releases.deploy("backend")
    assert not list((targets / "cloud").glob("*.yml"))
    assert (targets / "haproxy.yml").read_text() == "[] # mine\n"


def test_the_back_end_gets_the_secrets_of_nats_and_of_the_market(releases: Releases) -> None:
    releases.commit()
    releases.deploy("backend")
    secrets = releases.current / "ops" / "secrets"
    folders = {"nats", "publisher", "grafana", "alertmanager"}
    assert {folder.name for folder in secrets.iterdir()} == folders
    password = (secrets / "grafana" / "admin_password").read_text()
    assert password == NEEDED["GRAFANA_ADMIN_PASSWORD"] + "\n"
    hook = (secrets / "alertmanager" / "alert_webhook_url").read_text()
    assert hook == NEEDED["ALERT_WEBHOOK_URL"] + "\n"
    assert not any("hook" in line for line in releases.env("backend"))
