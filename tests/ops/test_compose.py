"""The compose files: what they say, without starting anything. See test_compose_runs.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ops.composing import (
    BACKEND,
    DEVELOPMENT,
    FOLDERS,
    MACHINES,
    NATS,
    PROXY,
    RUNNER,
    SERVICES,
    WS,
    config,
    example,
    seconds,
    services,
    variables_of,
)
from tests.ops.conftest import OPS, ROOT
from tests.ops.test_nats_secrets import LOGIN
from tests.ops.tools import tool
from trio_odin.demo.nats_server import find_nats_server
from trio_odin.settings.reading import IGNORED, read_settings, variables, with_reload_file
from trio_odin.settings.settings import Settings

MIB = 1024 * 1024
# Made by ops/nats/secrets.sh, in no commit.
SECRETS = OPS / "secrets"
SHIPPED = {"ws", "ws-2", "nats", "publisher", "haproxy"}
# Nothing in their images can ask them, or they end by themselves.
WITHOUT_CHECK = {"fluent-bit", "runner"}
OURS = {"ws", "ws-2", "publisher", "runner"}

# Of the plan: cores and MiB.
PLAN = {
    "ws": (1.9, 7168),
    "nats": (0.5, 256),
    "publisher": (0.2, 128),
    "prometheus": (0.3, 256),
    "grafana": (0.2, 512),
    "loki": (0.2, 256),
}


def name_of(folder: Path) -> str:
    return folder.name


each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
each_machine = pytest.mark.parametrize("folder", MACHINES, ids=name_of)


def all_services(*folders: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for folder in folders:
        yield from services(folder).items()


def limits(service: dict[str, Any]) -> tuple[float, float]:
    found = service["deploy"]["resources"]["limits"]
    return float(found["cpus"]), int(found["memory"]) / MIB


def ports(service: dict[str, Any]) -> set[tuple[str, int, int]]:
    return {
        (port.get("host_ip", ""), int(port["published"]), int(port["target"]))
        for port in service.get("ports", [])
    }


def environment() -> dict[str, str]:
    found: dict[str, str] = services(WS)["ws"]["environment"]
    return found


def test_every_compose_file_follows_the_compose_specification() -> None:
    files = [str(SERVICES), *(str(folder / "compose.yml") for folder in FOLDERS)]
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, *files], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_services_have_the_limits_of_the_plan() -> None:
    found = {name: limits(service) for name, service in all_services(DEVELOPMENT)}
    assert {name: found[name] for name in PLAN} == PLAN


def test_the_back_end_stays_within_what_the_plan_gives_it_of_its_machine() -> None:
    found = [limits(service) for _, service in all_services(BACKEND)]
    assert sum(cores for cores, _ in found) <= 1.5 + 1e-9
    assert sum(memory for _, memory in found) <= 1536


def test_the_machine_of_the_server_has_enough_for_it_and_its_shipper() -> None:
    found = [limits(service) for _, service in all_services(WS)]
    assert sum(cores for cores, _ in found) <= 2.0
    assert sum(memory for _, memory in found) <= 8192 - 768  # the plan's for the system


def test_the_load_leaves_its_machine_some_memory() -> None:
    _, memory = limits(services(RUNNER)["runner"])
    assert memory <= 1024 - 192


def test_ports_are_those_that_other_parts_count_on() -> None:
    own, back = example(WS)["WS_INTERNAL_IP"], example(BACKEND)["BACKEND_INTERNAL_IP"]
    assert {name: ports(service) for name, service in all_services(WS, BACKEND)} == {
        "ws": {("", 3004, 3002), (own, 3005, 3005)},
        "nats": {(back, 4222, 4222), ("127.0.0.1", 8222, 8222)},
        "publisher": {(back, 3003, 3003)},
        "prometheus": {("127.0.0.1", 9090, 9090)},
        "alertmanager": {("127.0.0.1", 9093, 9093)},
        "grafana": {("", 3010, 3000)},
        "loki": {(back, 3100, 3100)},
        "fluent-bit": set(),
    }


def test_in_development_the_same_ports_are_on_this_machine_alone() -> None:
    isolated = {port for _, service in all_services(WS, BACKEND) for port in ports(service)}
    found = {port for _, service in all_services(DEVELOPMENT) for port in ports(service)}
    assert {host for host, _, _ in found} == {"127.0.0.1"}
    on_demand = {(3006, 3002), (3007, 3005), (3000, 3000), (8404, 8404), (8405, 8405)}
    assert {port[1:] for port in found} == {port[1:] for port in isolated} | on_demand


def test_haproxy_is_reached_by_clients_with_tls_and_by_prometheus() -> None:
    service = services(PROXY)["haproxy"]
    own = example(PROXY)["PROXY_INTERNAL_IP"]
    assert ports(service) == {
        ("", 443, 3000),
        ("", 80, 3080),
        (own, 8404, 8404),
        ("127.0.0.1", 8405, 8405),
    }
    assert service["environment"]["HAPROXY_TLS"] == "on"
    (mount,) = (v for v in service["volumes"] if v["target"] == "/etc/haproxy/certs")
    assert Path(mount["source"]) == SECRETS / "haproxy"
    # Without TLS only where nobody else reaches the port.
    local = services(DEVELOPMENT)["haproxy"]
    assert local["environment"]["HAPROXY_TLS"] == "off"
    assert {host for host, _, _ in ports(local)} == {"127.0.0.1"}


def test_haproxy_has_the_memory_that_all_its_clients_take() -> None:
    service = services(PROXY)["haproxy"]
    clients = int(service["environment"]["HAPROXY_MAXCONN"])
    assert limits(service)[1] * 1024 >= clients * 48 + 200 * 1024  # see test_haproxy_tls.py
    assert service["ulimits"]["nofile"] >= clients * 2


def test_development_has_every_service_but_the_load_and_two_nodes_on_demand() -> None:
    always = {name for name, service in services(DEVELOPMENT).items() if "profiles" not in service}
    assert always == set(services(WS)) | set(services(BACKEND))
    assert set(services(DEVELOPMENT)) == always | set(services(PROXY)) | {"ws-2"}


def test_containers_are_named_after_their_services() -> None:
    for name, service in all_services(*FOLDERS):
        assert service["container_name"] == f"odin-{name}"


def test_a_service_may_do_nothing_that_it_need_not() -> None:
    for name, service in all_services(*FOLDERS):
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name
        assert "docker.sock" not in str(service.get("volumes", "")), name


def test_a_folder_in_memory_is_one_that_images_have_with_room_for_all() -> None:
    folders = {folder for _, s in all_services(*FOLDERS) for folder in s.get("tmpfs", [])}
    assert folders == {"/tmp"}


def test_a_service_is_started_again_and_its_log_is_rotated() -> None:
    for name, service in all_services(*FOLDERS):
        assert service["restart"] == ("no" if name == "runner" else "unless-stopped")
        assert service["logging"]["driver"] == "json-file"
        assert service["logging"]["options"]["max-size"] == "10m"
        assert service["logging"]["options"]["max-file"] == "3"


def test_docker_writes_the_service_into_the_lines_that_are_shipped_and_no_others() -> None:
    for name, service in all_services(*FOLDERS):
        labels = service["logging"]["options"].get("labels")
        assert labels == ("com.docker.compose.service" if name in SHIPPED else None), name


def test_every_service_is_checked_that_can_be() -> None:
    for name, service in all_services(*FOLDERS):
        check = service.get("healthcheck", {}).get("test")
        assert (check is None) == (name in WITHOUT_CHECK | {"ws", "ws-2"}), name
    # The server's check is that of the image.
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()


def test_the_server_has_time_to_drain_before_it_is_killed() -> None:
    drain = read_settings(environment()).drain_seconds
    assert seconds(services(WS)["ws"]["stop_grace_period"]) >= drain + 10


def test_every_setting_of_the_server_exists_and_means_something() -> None:
    known = {variable.name for variable in variables()}
    assert set(environment()) <= known - set(IGNORED)
    settings = read_settings({**environment(), "WS_RELOAD_FILE": ""})
    assert isinstance(settings, Settings)
    assert settings.max_connections == 10_000
    assert (settings.cpu_reject_percent, settings.cpu_pause_percent) == (75, 80)
    assert (settings.max_nats_rate, settings.max_broadcast_rate) == (1000, 1000)


def test_the_server_reads_its_limits_from_its_container_alone() -> None:
    assert not {"WS_CPU_LIMIT", "WS_MEMORY_LIMIT"} & set(environment())


def test_the_files_of_settings_can_be_read_by_the_server() -> None:
    inside = Path(environment()["WS_RELOAD_FILE"])
    (mount,) = (v for v in services(WS)["ws"]["volumes"] if Path(v["target"]) == inside.parent)
    file = Path(mount["source"]) / inside.name
    read_settings(with_reload_file({**environment(), "WS_RELOAD_FILE": str(file)}))


@each_folder
def test_every_file_that_is_mounted_is_in_the_repository(folder: Path) -> None:
    for name, service in all_services(folder):
        for volume in service.get("volumes", []):
            if volume["type"] == "bind" and volume["target"] != "/var/lib/docker/containers":
                source = Path(volume["source"])
                assert source.is_relative_to(OPS), name
                assert volume["read_only"], name
                if not source.is_relative_to(SECRETS):
                    assert any(source.iterdir()), f"{name}: {source} is empty"


def assert_logs_in(service: dict[str, Any], user: str) -> None:
    """By files of the mounted folder alone: no secret is in a variable."""
    given = service["environment"]
    assert given["NATS_USER"] == user
    for variable, file in LOGIN.items():
        assert given[variable] == f"/etc/secrets/{file}"
    assert "SSL_CERT_FILE" not in given, "it would be trusted for everything else as well"


def test_nats_is_reached_with_a_password_by_tls_alone() -> None:
    back, front = services(BACKEND), services(WS)
    assert back["nats"]["command"] == ["--config", "/etc/nats/secured.conf"]
    for name, service in (("nats", back), ("publisher", back), ("ws", front)):
        (mount,) = (v for v in service[name]["volumes"] if v["target"] == "/etc/secrets")
        assert Path(mount["source"]) == SECRETS / name, "and nobody has the secrets of another one"
        if name != "nats":
            assert_logs_in(service[name], name)


def test_another_nats_is_a_variable() -> None:
    for folder, name in ((DEVELOPMENT, "ws"), (DEVELOPMENT, "publisher"), (WS, "ws")):
        elsewhere = {"NATS_URL": "nats://elsewhere:4222"}
        done = config(folder, example(folder) | elsewhere)
        found = json.loads(done.stdout)["services"][name]
        assert found["environment"]["NATS_URL"] == "nats://elsewhere:4222"


@pytest.mark.parametrize(
    ("service", "inside"),
    [
        ("nats", "/etc/nats/nats.conf"),
        ("prometheus", "/etc/prometheus/prometheus.yml"),
        ("alertmanager", "/etc/alertmanager/alertmanager.yml"),
        ("loki", "/etc/loki/loki.yml"),
        ("fluent-bit", "/etc/fluent-bit/fluent-bit.yaml"),
    ],
)
def test_each_program_is_told_of_a_file_that_is_mounted(service: str, inside: str) -> None:
    found = services(DEVELOPMENT)[service]
    assert any(word.endswith(inside) for word in found["command"])
    (mount,) = [v for v in found["volumes"] if Path(inside).is_relative_to(v["target"])]
    assert (Path(mount["source"]) / Path(inside).relative_to(mount["target"])).is_file()


def test_secrets_are_files_that_one_container_has_and_no_variables() -> None:
    for name, service in all_services(*MACHINES):
        for variable, text in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|SECRET|KEY|WEBHOOK", variable):
                assert variable.endswith(("_FILE", "__FILE")), f"{name}: {variable}"
            assert not re.search("://[^/]*@", str(text)), f"{name}: {variable}"
    owners: dict[str, set[str]] = {}
    for name, service in all_services(*MACHINES):
        for volume in service.get("volumes", []):
            if (source := Path(volume["source"])).is_relative_to(SECRETS):
                owners.setdefault(source.name, set()).add(name)
    assert owners == {
        name: {name} for name in ("nats", "ws", "publisher", "grafana", "alertmanager", "haproxy")
    }


def test_alertmanager_reads_its_webhooks_where_compose_puts_them() -> None:
    receivers = yaml.safe_load((OPS / "alertmanager" / "alertmanager.yml").read_text())["receivers"]
    read = {hook["url_file"] for one in receivers for hook in one["webhook_configs"]}
    for folder in (BACKEND, DEVELOPMENT):
        volumes = services(folder)["alertmanager"]["volumes"]
        (mount,) = (v for v in volumes if v["target"] == "/etc/secrets")
        assert {str(Path(file).parent) for file in read} == {mount["target"]}
        if folder is DEVELOPMENT:
            names = {file.name for file in Path(mount["source"]).iterdir()}
            assert {Path(file).name for file in read} == names
    assert "alertmanager/alert_webhook_url" in (OPS / "nats" / "secrets.sh").read_text()


def test_on_machines_alerts_link_to_an_address_that_is_published() -> None:
    for name in ("prometheus", "grafana"):
        assert services(BACKEND)[name]["environment"]["RUNBOOKS_URL"].startswith("https://")
    assert variables_of(BACKEND / "compose.yml")["RUNBOOKS_URL"].startswith("?the https address")


def with_cluster() -> dict[str, Any]:
    command = ["-f", "compose.yml", "-f", "nats-cluster.yml", "config", "--format", "json"]
    done = subprocess.run(
        [tool("docker-compose"), *command],
        cwd=DEVELOPMENT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


def test_three_nats_with_users_and_tls_can_take_the_place_of_one() -> None:
    found = with_cluster()
    members = {name for name in found if name.startswith("nats")}
    assert members == {"nats-1", "nats-2", "nats-3"}
    for name in members:
        service = found[name]
        assert service["command"] == ["--config", "/etc/nats/clustered.conf"]
        assert service["container_name"] == f"odin-{name}"
        assert service["environment"]["NATS_NAME"] == name
        assert service["environment"]["NATS_CLIENT_ADDRESS"] == f"{name}:4222"
        assert service["environment"]["NATS_ROUTE_ADDRESS"] == f"{name}:6222"
        assert {host for host, _, _ in ports(service)} == {"127.0.0.1"}
    for name in ("ws", "publisher"):
        assert_logs_in(found[name], name)
        (mount,) = (v for v in found[name]["volumes"] if v["target"] == "/etc/secrets")
        assert Path(mount["source"]) == SECRETS / name
    assert found["ws"]["environment"]["JS_STREAM_REPLICAS"] == "3"
    one = services(NATS)["nats"]
    own = example(NATS)["NATS_INTERNAL_IP"]
    assert ports(one) == {(own, 4222, 4222), (own, 6222, 6222), ("127.0.0.1", 8222, 8222)}
    assert one["environment"]["NATS_CLIENT_ADDRESS"] == f"{own}:4222"


def test_what_every_machine_takes_services_from_has_no_relative_path() -> None:
    found = yaml.safe_load(SERVICES.read_text())["services"]
    assert not any("volumes" in service or "build" in service for service in found.values())


@each_folder
def test_the_example_of_variables_has_those_that_are_used_and_no_others(folder: Path) -> None:
    own = yaml.safe_load((folder / "compose.yml").read_text())["services"]
    shared = yaml.safe_load(SERVICES.read_text())["services"]
    taken = [service["extends"]["service"] for service in own.values()]
    text = "".join(yaml.safe_dump(shared[name]) for name in taken)
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", text + (folder / "compose.yml").read_text()))
    if folder is not DEVELOPMENT:
        assert used
    assert set(example(folder)) == used


@each_folder
def test_the_example_of_variables_shows_the_defaults(folder: Path) -> None:
    used = variables_of(SERVICES) | variables_of(folder / "compose.yml")
    for name, text in example(folder).items():
        if used[name].startswith("-"):
            assert text == used[name][1:], name


@each_machine
def test_a_machine_does_not_start_without_what_it_must_be_told(folder: Path) -> None:
    required = {n: r for n, r in variables_of(folder / "compose.yml").items() if r[0] == "?"}
    assert len(required) >= 3
    first = (folder / ".env.example").read_text().splitlines()
    assert [line.split("=")[0] for line in first if "=" in line][: len(required)] == [
        name for name in example(folder) if name in required
    ]
    for name, rest in required.items():
        given = {n: text for n, text in example(folder).items() if n != name}
        done = config(folder, given)
        assert done.returncode != 0, name
        assert rest[1:] in done.stderr


def test_development_needs_no_variables() -> None:
    done = config(DEVELOPMENT)
    assert done.returncode == 0
    assert "variable is not set" not in done.stderr


def test_every_image_has_a_tag_that_stays_what_it_is() -> None:
    for name, service in all_services(*FOLDERS):
        _, _, tag = service["image"].partition(":")
        assert tag, name
        assert tag != "latest", name
        if name not in OURS:
            assert re.match(r"v?\d+\.\d+", tag), name


def test_services_find_each_other_by_the_same_names_on_three_machines() -> None:
    hosts = {
        (folder.name, name): {re.split("[:=]", entry)[0] for entry in service["extra_hosts"]}
        for folder in MACHINES
        for name, service in services(folder).items()
        if "extra_hosts" in service
    }
    assert hosts == {
        ("ws", "ws"): {"nats"},
        ("ws", "fluent-bit"): {"loki"},
        ("backend", "prometheus"): {"ws"},
        ("runner", "runner"): {"ws", "publisher"},
        ("proxy", "fluent-bit"): {"loki"},
        ("nats", "nats"): {"nats-1", "nats-2", "nats-3"},
        ("nats", "fluent-bit"): {"loki"},
    }
    assert environment()["NATS_URL"] == "nats://nats:4222"


def test_on_three_machines_the_market_waits_for_the_load() -> None:
    assert "--idle" in services(BACKEND)["publisher"]["command"]
    assert "--idle" not in services(DEVELOPMENT)["publisher"]["command"]


def test_nats_server_takes_its_configuration_and_holds_our_stream() -> None:
    file = OPS / "nats" / "nats.conf"
    done = subprocess.run(
        [find_nats_server(), "-t", "-c", str(file)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    memory = re.search(r"max_memory_store: (\d+)MB", file.read_text())
    assert memory is not None
    assert int(memory[1]) * MIB > read_settings({}).stream_max_bytes
    assert int(memory[1]) <= limits(services(BACKEND)["nats"])[1] / 2
