"""ops/cloud: linted, and carried out against a stand-in for gcloud that notes its calls."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.ops.conftest import OPS, ROOT
from tests.ops.tools import run, tool
from trio_odin.lab.model.tables import read_prices

# Each test starts dozens of programs.
pytestmark = pytest.mark.slow

SCRIPT = OPS / "cloud" / "instances.sh"
RELEASE = OPS / "cloud" / "release.sh"
STARTUP = OPS / "cloud" / "startup.sh"
NEEDED = {
    "PROJECT": "odin-test",
    "OPERATOR_CIDR": "203.0.113.7/32",
    "GRAFANA_ADMIN_PASSWORD": "it's a $placeholder",
    "ALERT_WEBHOOK_URL": "https://alerts.example/hook",
    "RUNBOOKS_URL": "https://docs.example/alerts.md",
}


class Cloud:
    """A project with nothing in it, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = SCRIPT
        gcloud = folder / "gcloud"
        shutil.copy(Path(__file__).with_name("fake_gcloud.py"), gcloud)
        gcloud.chmod(0o755)
        self.stub("sleep", "")

    def has_machines(self) -> None:
        """As after `create`, and quicker."""
        for name in ("odin-backend", "odin-ws-go", "odin-test-runner"):
            (self.folder / f"there-compute-instances-{name}").touch()

    def stub(self, program: str, text: str) -> None:
        file = self.folder / program
        file.write_text(f"#!/bin/sh\n{text}")
        file.chmod(0o755)

    def run(
        self, *arguments: str, without: str = "", answer: str = ""
    ) -> subprocess.CompletedProcess[str]:
        own = f"{self.folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        variables = {k: v for k, v in NEEDED.items() if k != without}
        return subprocess.run(
            [self.script, *arguments],
            input=answer,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={
                **variables,
                "PATH": own,
                "FAKE": str(self.folder),
                "SECRETS": str(self.folder / "secrets"),
            },
        )

    def did(self, *arguments: str, answer: str = "") -> list[list[str]]:
        """Carry it out; the calls that change something."""
        (self.folder / "calls").unlink(missing_ok=True)
        ended = self.run(*arguments, answer=answer)
        assert ended.returncode == 0, ended.stderr
        return [call for call in self.calls if "list" not in call]

    @property
    def calls(self) -> list[list[str]]:
        notes = self.folder / "calls"
        lines = notes.read_text().splitlines() if notes.exists() else []
        return [ast.literal_eval(line) for line in lines]


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    for program in ("bash", "git", "openssl"):
        tool(program)
    return Cloud(tmp_path)


def option(call: list[str], name: str) -> str:
    return next(part.partition("=")[2] for part in call if part.startswith(f"--{name}="))


def created(calls: list[list[str]], what: str) -> Iterator[tuple[str, list[str]]]:
    for call in calls:
        if what in call and "create" in call:
            yield call[call.index("create") + 1], call


@pytest.mark.parametrize(
    "script",
    [
        *(SCRIPT, RELEASE, STARTUP, OPS / "nats" / "secrets.sh"),
        OPS / "haproxy" / "certificate.sh",
        *(ROOT / "tests" / "ops").glob("*.sh"),
    ],
)
def test_the_scripts_have_nothing_that_shellcheck_minds(script: Path) -> None:
    checked = run(tool("shellcheck"), "--shell=bash", "--external-sources", script)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_create_makes_the_machines_of_the_plan_in_a_network_of_their_own(cloud: Cloud) -> None:
    calls = cloud.did("create")
    assert all("--project=odin-test" in call for call in calls)
    machines = dict(created(calls, "instances"))
    types = {name: option(call, "machine-type") for name, call in machines.items()}
    assert types == {
        "odin-backend": "e2-small",
        "odin-ws-go": "e2-standard-2",
        "odin-test-runner": "e2-micro",
    }
    for call in machines.values():
        assert option(call, "zone") == "us-central1-a"
        assert option(call, "network") == "odin"
        files = dict(part.split("=") for part in option(call, "metadata-from-file").split(","))
        assert all(Path(file).is_file() for file in files.values())
        assert files["startup-script"] == str(STARTUP)
        if "sysctl" in files:
            name = option(call, "metadata").removeprefix("sysctl-name=")
            assert name == Path(files["sysctl"]).name


def test_a_machine_takes_its_limits_under_the_name_that_the_manual_has(cloud: Cloud) -> None:
    limits = OPS / "sysctl" / "61-trio-odin-clients.conf"
    script = cloud.folder / "startup.sh"
    script.write_text(STARTUP.read_text().replace("/etc/sysctl.d", str(cloud.folder)))
    cloud.stub("docker", "")
    cloud.stub("systemctl", "")
    cloud.stub("sysctl", f'echo "$3" >{cloud.folder}/loaded')
    asked = f"case $5 in */sysctl-name) echo {limits.name} ;; */sysctl) cat {limits} ;; esac"
    cloud.stub("curl", asked)
    own = {"PATH": f"{cloud.folder}:/usr/bin:/bin"}
    ended = run(tool("bash"), script, variables=own)
    assert ended.returncode == 0, ended.stderr
    assert (cloud.folder / limits.name).read_text() == limits.read_text()
    assert (cloud.folder / "loaded").read_text() == f"{cloud.folder / limits.name}\n"


def test_only_clients_come_in_from_everywhere(cloud: Cloud) -> None:
    rules = dict(created(cloud.did("create"), "firewall-rules"))
    public = {name for name, call in rules.items() if "--source-ranges=0.0.0.0/0" in call}
    assert public == {"odin-clients"}
    assert option(rules["odin-clients"], "allow") == "tcp:3004"
    assert option(rules["odin-ssh"], "source-ranges") == "35.235.240.0/20"
    assert option(rules["odin-operator"], "source-ranges") == NEEDED["OPERATOR_CIDR"]
    assert set(option(rules["odin-operator"], "allow").split(",")) == {"tcp:3010", "tcp:3003"}
    for name, port in (("metrics", "3005"), ("backend", "4222"), ("backend", "3100")):
        rule = rules[f"odin-{name}"]
        assert f"tcp:{port}" in option(rule, "allow").split(",")
        assert ("odin-proxy" in option(rule, "source-tags").split(",")) == (name == "metrics")
        assert option(rule, "source-tags")
        assert not any(part.startswith("--source-ranges") for part in rule)


def test_what_is_there_is_not_made_again(cloud: Cloud) -> None:
    assert cloud.did("create", "ws")
    assert cloud.did("create", "ws") == []
    assert [name for name, _ in created(cloud.did("create"), "instances")] == [
        "odin-backend",
        "odin-test-runner",
    ]


def test_deploy_brings_this_commit_and_the_addresses_of_the_others(cloud: Cloud) -> None:
    cloud.has_machines()
    calls = cloud.did("deploy", "ws")
    reach, copy, command = calls
    assert option(reach, "command") == "true"
    assert "scp" in copy
    assert copy[-1] == "odin-ws-go:/tmp/"
    sent = ["trio-odin.tar", "release.sh", "ws.env", "ws.secrets.tar"]
    assert [Path(file).name for file in copy[-5:-1]] == sent
    revision = run("git", "-C", ROOT, "rev-parse", "--short=12", "HEAD").stdout.strip()
    text = option(command, "command")
    assert text.endswith(f"release.sh deploy ws trio-odin:{revision} {revision} build")
    assert all("--tunnel-through-iap" in call for call in calls)


def test_nothing_is_deployed_before_the_machines_that_it_has_to_know_are_there(
    cloud: Cloud,
) -> None:
    cloud.did("create", "ws")
    refused = cloud.run("deploy", "ws")
    assert refused.returncode == 2
    assert "odin-backend is not there: create it first" in refused.stderr
    assert not any("scp" in call for call in cloud.calls)


def test_the_environment_of_each_machine_is_what_its_compose_file_wants(tmp_path: Path) -> None:
    """The functions of the script, without its last line."""
    source = SCRIPT.read_text().rpartition("\nmain ")[0]
    library = tmp_path / "ops" / "cloud" / "instances.sh"
    library.parent.mkdir(parents=True)
    library.write_text(source.replace("dry_run=\n", "dry_run=yes\n", 1))
    prices = tmp_path / "trio_odin" / "lab" / "model" / "prices.toml"
    prices.parent.mkdir(parents=True)
    shutil.copy(ROOT / "trio_odin" / "lab" / "model" / "prices.toml", prices)
    for machine in ("ws", "ws-2", "backend", "runner", "proxy", "proxy-2"):
        asked = f"source {library}; environment_of {machine} trio-odin:1"
        made = run(tool("bash"), "-c", asked, variables=NEEDED)
        assert made.returncode == 0, made.stderr
        given = {line.partition("=")[0] for line in made.stdout.splitlines()}
        assert {"TRIO_ODIN_IMAGE", "BACKEND_INTERNAL_IP", "INSTANCE_NAME"} <= given
        compose = OPS / "isolated" / machine.removesuffix("-2") / "compose.yml"
        required = set(re.findall(r"\$\{(\w+):\?", compose.read_text()))
        assert required <= given, machine
        for secret in (NEEDED["GRAFANA_ADMIN_PASSWORD"], NEEDED["ALERT_WEBHOOK_URL"]):
            assert secret not in made.stdout, "secrets are files"


def test_a_stop_drains_the_server_before_its_machine_goes(cloud: Cloud) -> None:
    drain, stop = cloud.did("stop", "ws")
    assert option(drain, "command").endswith(
        "docker compose --file /srv/odin/current/ops/isolated/ws/compose.yml stop"
    )
    assert stop[-3:] == ["stop", "odin-ws-go", "--zone=us-central1-a"]


def test_nothing_is_deleted_without_a_yes(cloud: Cloud) -> None:
    cloud.did("create")
    for answer in ("", "no\n", "y\n"):
        refused = cloud.run("delete", "ws", answer=answer)
        assert refused.returncode == 2
        assert "nothing deleted" in refused.stderr
    assert not any("delete" in call for call in cloud.calls)
    (deleted,) = cloud.did("delete", "ws", answer="yes\n")
    assert "odin-ws-go" in deleted


def test_delete_leaves_nothing_of_all_and_the_network_for_the_others(cloud: Cloud) -> None:
    made = cloud.did("create")
    assert len(cloud.did("delete", "runner", "--yes")) == 1
    cloud.did("create")
    removed = cloud.did("delete", "--yes")
    assert len(removed) == len(made)
    assert cloud.did("delete", "--yes") == []
    assert "odin-ws-go: not there\n" in cloud.run("delete", "--yes").stdout


@pytest.mark.parametrize("command", ["create", "deploy", "stop", "start", "delete", "ips"])
def test_an_expired_sign_in_is_not_taken_for_nothing_there(cloud: Cloud, command: str) -> None:
    cloud.has_machines()
    (cloud.folder / "expired").touch()
    ended = cloud.run(command, "--yes")
    assert ended.returncode == 1
    assert "Reauthentication failed" in ended.stderr
    assert "not there" not in ended.stdout + ended.stderr


def test_a_machine_that_lets_nobody_in_yet_is_tried_again_and_not_for_ever(cloud: Cloud) -> None:
    cloud.has_machines()
    (cloud.folder / "unreachable").write_text("3")
    assert ["scp" in call for call in cloud.did("deploy", "ws")] == [False] * 4 + [True, False]
    (cloud.folder / "unreachable").write_text("1000")
    ended = cloud.run("deploy", "ws")
    assert ended.returncode == 2
    assert "odin-ws-go lets nobody in by SSH" in ended.stderr


def test_a_machine_that_cannot_be_drained_is_stopped_all_the_same(cloud: Cloud) -> None:
    (cloud.folder / "unreachable").write_text("1")
    assert cloud.did("stop", "ws")[-1][-3:] == ["stop", "odin-ws-go", "--zone=us-central1-a"]


@pytest.mark.parametrize("address", ["docs/runbooks/alerts.md", "https://a b", "https://x/#y"])
def test_an_address_of_the_runbook_that_leads_nowhere_is_refused(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setitem(NEEDED, "RUNBOOKS_URL", address)
    ended = cloud.run("deploy")
    assert ended.returncode == 2
    assert "deploy of backend needs RUNBOOKS_URL" in ended.stderr
    assert not cloud.calls


def test_the_cost_is_that_of_the_plan_and_of_trio_odin_plan(cloud: Cloud) -> None:
    told = cloud.run("cost", without="PROJECT")
    assert told.returncode == 0
    prices = read_prices().machines
    for kind in ("e2-standard-2", "e2-small", "e2-micro"):
        assert re.search(rf"{kind} +~ +{prices[kind].monthly_usd:g} USD a month", told.stdout)
    assert re.search(rf"together +~ +96 USD a month, as of {read_prices().date}", told.stdout)
    assert not cloud.calls


def test_a_dry_run_prints_every_command_and_runs_none(cloud: Cloud) -> None:
    for command in ("create", "deploy", "resize", "stop", "start", "delete", "ips"):
        told = cloud.run("--dry-run", command)
        assert told.returncode == 0, told.stderr
        for machine in ("odin-ws-go", "odin-backend", "odin-test-runner"):
            assert machine in told.stdout
    assert not cloud.calls


@pytest.mark.parametrize(
    ("arguments", "without", "sentence"),
    [
        (["create"], "PROJECT", "PROJECT is not set"),
        (["create"], "OPERATOR_CIDR", "create needs OPERATOR_CIDR"),
        (["deploy"], "ALERT_WEBHOOK_URL", "deploy of backend needs ALERT_WEBHOOK_URL"),
        (["deploy"], "RUNBOOKS_URL", "deploy of backend needs RUNBOOKS_URL"),
        ([], "", "say what to do"),
        (["create", "stop"], "", "one command at a time: create or stop"),
        (["create", "wss"], "", "wss is no command and no machine"),
        (["create", "--now"], "", "--now is no option"),
        (["dns", "ws"], "", "dns needs DNS_ZONE and DNS_NAME"),
        (["dns"], "", "dns needs a machine, or balancer"),
        (["create", "balancer"], "", "balancer is for dns only"),
        (["roll", "ws"], "", "roll takes no machine"),
    ],
)
def test_what_is_wrong_is_a_sentence_and_nothing_is_done(
    cloud: Cloud, arguments: list[str], without: str, sentence: str
) -> None:
    ended = cloud.run(*arguments, without=without)
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert not cloud.calls


def test_help_names_every_command_and_variable(cloud: Cloud) -> None:
    told = cloud.run("--help", without="PROJECT").stdout
    commands = ("create", "deploy", "roll", "balance", "dns", "resize", "stop", "start", "delete")
    for word in (*commands, "ips", "cost", "WS_GO_MACHINE_TYPE", "TEST_RUNNER_NAME", *NEEDED):
        assert word in told


# --- names and machine types of a site, two servers, and what is in front of them


def having(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Set variables of the script, and create all machines."""
    for name, text in variables.items():
        monkeypatch.setitem(NEEDED, name, text)
    cloud.did("create", "all", "ws-2", "proxy", "proxy-2")


def test_names_and_machine_types_are_variables(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NEEDED, "WS_NAME", "prices-1")
    monkeypatch.setitem(NEEDED, "WS_GO_MACHINE_TYPE", "e2-medium")
    (call,) = [call for call in cloud.did("create", "ws") if "instances" in call]
    assert "prices-1" in call
    assert option(call, "machine-type") == "e2-medium"
    assert option(call, "tags") == "odin-ws", "the firewall does not depend on the name"
    told = cloud.run("cost", "ws").stdout
    assert re.search(r"prices-1 +e2-medium +~ +24 USD", told)


def test_the_server_gets_the_plans_share_of_the_memory_that_its_machine_has(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (cloud.folder / "machine" / "tmp").mkdir(parents=True)
    cloud.stub("sudo", "exit 0")
    for kind, memory in (("e2-standard-2", 7168), ("e2-medium", 3584)):
        monkeypatch.setitem(NEEDED, "WS_GO_MACHINE_TYPE", kind)
        cloud.has_machines()
        cloud.did("deploy", "ws")
        lines = (cloud.folder / "machine" / "tmp" / "ws.env").read_text().splitlines()
        assert f"WS_LIMIT_MEMORY={memory}M" in lines
        assert "INSTANCE_NAME=odin-ws" in lines


def test_two_servers_and_two_proxies_and_only_these_are_open_to_clients(cloud: Cloud) -> None:
    calls = cloud.did("create", "ws-2", "proxy", "proxy-2")
    machines = {name: option(call, "tags") for name, call in created(calls, "instances")}
    assert machines == {
        "odin-ws-go-v2": "odin-ws",
        "odin-proxy": "odin-proxy",
        "odin-proxy-2": "odin-proxy",
    }
    rules = dict(created(calls, "firewall-rules"))
    public = {name for name, call in rules.items() if "--source-ranges=0.0.0.0/0" in call}
    assert public == {"odin-clients", "odin-public"}
    assert option(rules["odin-public"], "target-tags") == "odin-proxy"
    assert option(rules["odin-public"], "allow") == "tcp:443,tcp:80"
    assert option(rules["odin-figures"], "source-tags") == "odin-backend"


def test_a_proxy_is_not_deployed_without_a_certificate(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    having(cloud, monkeypatch)
    refused = cloud.run("deploy", "proxy")
    assert refused.returncode == 2
    assert "deploy of proxy needs a certificate" in refused.stderr
    certificates = cloud.folder / "secrets" / "haproxy"
    certificates.mkdir(parents=True)
    (certificates / "public.pem").touch()
    calls = cloud.did("deploy", "proxy", "ws")
    commands = [option(call, "command") for call in calls if "ssh" in call]
    proxy, ws = (command for command in commands if "release.sh" in command)
    assert proxy.endswith("none"), "it runs no image of ours"
    assert ws.endswith("build"), "another one does"


def test_only_all_deletes_what_the_machines_share(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    having(cloud, monkeypatch)
    calls = cloud.did("--yes", "delete", "backend", "ws", "runner")
    assert len(calls) == 3
    assert all("instances" in call for call in calls)
    calls = cloud.did("--yes", "delete", "proxy", "all")
    assert any("networks" in call for call in calls)


def test_all_does_not_forget_another_machine_and_is_no_name_of_the_service(cloud: Cloud) -> None:
    told = cloud.run("--dry-run", "stop", "ws-2", "all").stdout
    for name in ("odin-ws-go-v2", "odin-ws-go", "odin-backend", "odin-test-runner"):
        assert f"instances stop {name} " in told
    refused = cloud.run("--dry-run", "all", "dns")
    assert (refused.returncode, "all is not for dns" in refused.stderr) == (2, True)


def test_an_option_before_the_command_is_wrong_as_it_is_for_gcloud(cloud: Cloud) -> None:
    environment = {**os.environ, "FAKE": str(cloud.folder)}
    called = [str(cloud.folder / "gcloud"), "--project=odin", "compute", "instances"]
    for options, code in (
        (["list", "--zones=a", "--filter=name=b"], 0),
        (["--zones=a", "list"], 2),
    ):
        assert subprocess.run([*called, *options], env=environment, check=False).returncode == code


def test_prometheus_asks_the_machines_that_there_are(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    having(cloud, monkeypatch)
    (cloud.folder / "machine" / "tmp").mkdir(parents=True)
    cloud.stub("sudo", "exit 0")
    cloud.did("deploy", "backend")
    archive = cloud.folder / "machine" / "tmp" / "backend.targets.tar"
    out = cloud.folder / "out"
    out.mkdir()
    assert run(tool("tar"), "-xf", archive, "-C", out).returncode == 0
    found = {file.name: yaml.safe_load(file.read_text()) for file in (out / "cloud").glob("*.yml")}
    assert found == {
        f"{job}.yml": [{"targets": [f"10.10.0.2:{port}"], "labels": {"instance": instance}}]
        for job, port, instance in (
            ("ws-ws-2", 3005, "odin-ws-2"),
            ("haproxy-proxy", 8404, "odin-proxy"),
            ("haproxy-proxy-2", 8404, "odin-proxy-2"),
        )
    }
    config = yaml.safe_load((OPS / "prometheus" / "prometheus.yml").read_text())
    patterns = {
        pattern
        for job in config["scrape_configs"]
        for files in job.get("file_sd_configs", [])
        for pattern in files["files"]
    }
    for name in found:
        assert sum(Path(f"targets/cloud/{name}").match(one) for one in patterns) == 1, name


def test_a_roll_takes_each_server_out_at_both_proxies_while_it_is_deployed(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    having(cloud, monkeypatch)

    cloud.did("roll")
    commands = [option(call, "command") for call in cloud.calls if "ssh" in call]
    asked = [text.partition("release.sh ")[2] for text in commands if "release.sh" in text]
    short = [re.sub("trio-odin:.*", "…", text).removeprefix("rotate ") for text in asked]
    assert short == [
        *["proxy ws-1 drain"] * 2, "deploy ws …", *["proxy ws-1 ready"] * 2,
        *["proxy ws-2 drain"] * 2, "deploy ws …", *["proxy ws-2 ready"] * 2,
    ]  # fmt: skip


def test_a_roll_that_fails_stops_with_the_server_back_in_rotation(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    having(cloud, monkeypatch)
    (cloud.folder / "calls").unlink()
    monkeypatch.setitem(NEEDED, "SUBNET_RANGE", "unused")
    cloud.stub("git", "exit 1")  # the deploy cannot begin
    ended = cloud.run("roll")
    assert ended.returncode == 2
    assert "odin-ws-go: not deployed" in ended.stderr
    said = [option(call, "command") for call in cloud.calls if "ssh" in call]
    assert [text.split()[-2:] for text in said] == [["ws-1", "drain"]] * 2 + [["ws-1", "ready"]] * 2


def test_the_balancer_is_made_once_and_goes_with_all(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    having(cloud, monkeypatch)
    made = cloud.did("balance")
    kinds = {" ".join(call[1:-1]).split(" create")[0] for call in made if "create" in call}
    assert len(kinds) == 5
    (rule,) = (call for call in made if "forwarding-rules" in call)
    assert option(rule, "ports") == "80,443"
    (check,) = (call for call in made if "health-checks" in call)
    assert option(check, "request-path") == "/ready"
    assert cloud.did("balance") == []
    removed = cloud.did("delete", "--yes")
    assert {"odin-public", "odin-proxies", "odin-ws-go-v2", "odin-proxy-2"} <= {
        word for call in removed for word in call
    }
    assert cloud.did("delete", "--yes") == []


def test_the_name_leads_to_the_new_machine_and_back(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    having(cloud, monkeypatch, DNS_ZONE="odin-example", DNS_NAME="ws.odin.example")
    (first,) = cloud.did("dns", "ws")
    assert first[1:5] == ["dns", "record-sets", "create", "ws.odin.example."]
    assert option(first, "rrdatas") == "203.0.113.9"
    assert option(first, "ttl") == "60"
    (second,) = cloud.did("dns", "ws-2")
    assert "update" in second
    (both,) = cloud.did("dns", "proxy", "proxy-2")
    assert option(both, "rrdatas") == "203.0.113.9,203.0.113.9"
    refused = cloud.run("dns", "balancer")
    assert "the balancer has no address" in refused.stderr
    cloud.did("balance")
    (last,) = cloud.did("dns", "balancer")
    assert option(last, "rrdatas") == "203.0.113.80"


def test_a_machine_gets_another_type_while_it_is_stopped(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NEEDED, "WS_GO_MACHINE_TYPE", "e2-medium")
    cloud.has_machines()
    calls = [call for call in cloud.did("resize", "ws") if "ssh" not in call]
    verbs = [word for call in calls for word in call if word in ("stop", "start")]
    assert verbs == ["stop", "start"]
    assert "set-machine-type" in calls[1]
    assert option(calls[1], "machine-type") == "e2-medium"
