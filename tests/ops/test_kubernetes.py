"""ops/kubernetes: put together by kustomize, checked by schema and against the server itself."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.ops.conftest import OPS
from tests.ops.tools import run, tool
from tests.telemetry.snapshots import snapshot
from trio_odin.cli import main
from trio_odin.lab.capacity.stages import PEAK_RATE, SERVER_CORES, SERVER_MIB
from trio_odin.lab.model.model import Demand
from trio_odin.lab.model.tables import read_costs
from trio_odin.ledger.snapshot import Snapshot
from trio_odin.listener.endpoints import Pages
from trio_odin.net.address import Address
from trio_odin.net.http import Request
from trio_odin.settings.reading import read_settings, warnings_about
from trio_odin.settings.settings import Settings
from trio_odin.telemetry.metrics import SERIES
from trio_odin.wire import contract

FOLDER = OPS / "kubernetes"
# The oldest that knows all we use, and the newest that there is a schema of.
VERSIONS = ("1.30", "1.37")
# Of the Prometheus Operator, not of Kubernetes: no schema here, so the keys are looked at below.
FOREIGN = {"ServiceMonitor", "PrometheusRule"}

Manifest = dict[str, Any]


def built(folder: str) -> list[Manifest]:
    made = run(tool("kubectl"), "kustomize", FOLDER / folder)
    assert made.returncode == 0, made.stderr
    return list(yaml.safe_load_all(made.stdout))


@pytest.fixture(scope="module")
def example() -> list[Manifest]:
    return built("example")


@pytest.fixture(scope="module")
def base() -> list[Manifest]:
    return built("base")


def one(manifests: list[Manifest], kind: str, name: str = "ws") -> Manifest:
    (found,) = (m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name))
    return found


def pod(manifests: list[Manifest]) -> Manifest:
    found: Manifest = one(manifests, "Deployment")["spec"]["template"]
    return found


def container(manifests: list[Manifest]) -> Manifest:
    (found,) = pod(manifests)["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def environment(manifests: list[Manifest]) -> dict[str, str]:
    (reference,) = container(manifests)["envFrom"]
    found: dict[str, str] = one(manifests, "ConfigMap", reference["configMapRef"]["name"])["data"]
    return found


def settings(manifests: list[Manifest]) -> Settings:
    return read_settings(environment(manifests))


def seconds_to_leave(manifests: list[Manifest]) -> float:
    sleep: int = container(manifests)["lifecycle"]["preStop"]["sleep"]["seconds"]
    return sleep + settings(manifests).drain_seconds


@pytest.mark.parametrize("folder", ["base", "example"])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_what_its_schema_says(folder: str, version: str) -> None:
    for manifest in built(folder):
        if manifest["kind"] not in FOREIGN:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_each_file_is_used(example: list[Manifest]) -> None:
    files = [*FOLDER.glob("base/*.yaml"), *FOLDER.glob("monitoring/*.yaml")]
    written = [
        (manifest["kind"], manifest["metadata"]["name"])
        for file in [*files, FOLDER / "example" / "ingress.yaml"]
        if file.name != "kustomization.yaml"
        for manifest in yaml.safe_load_all(file.read_text())
    ]
    made = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in example]
    assert sorted(written) == sorted(name for name in made if name[0] != "ConfigMap")


@pytest.mark.parametrize("folder", ["base", "example"])
def test_the_settings_are_known_and_say_what_the_manifests_say(folder: str) -> None:
    manifests = built(folder)
    variables, given = environment(manifests), settings(manifests)
    assert list(warnings_about(given, variables)) == []
    ports = {port["name"]: port["containerPort"] for port in container(manifests)["ports"]}
    assert isinstance(given.admin_address, Address)
    assert ports == {"ws": given.address.port, "admin": given.admin_address.port}
    assert container(manifests)["args"] == ["serve"]
    assert "serve" in main.commands
    assert given.workers == 1


def test_a_changed_setting_replaces_the_pods(base: list[Manifest], example: list[Manifest]) -> None:
    (one_name,), (other_name,) = (
        [m["metadata"]["name"] for m in manifests if m["kind"] == "ConfigMap"]
        for manifests in (base, example)
    )
    assert one_name != other_name


def test_kubernetes_adds_no_variable_that_looks_like_a_setting(base: list[Manifest]) -> None:
    """It names some after each Service of the namespace, ours too: WS_PORT."""
    given = settings(base)
    assert list(warnings_about(given, {"WS_SERVICE_HOST": "10.0.0.1", "WS_PORT": "tcp://10.0.0.1"}))
    assert pod(base)["spec"]["enableServiceLinks"] is False


async def status(path: str, **changes: Any) -> int:
    async def gather() -> Snapshot:
        return snapshot(**changes)

    return (await Pages(gather).respond_to_admin(Request("GET", path))).status


async def test_a_pod_is_ready_once_nats_was_reached_and_alive_whatever_nats_does(
    base: list[Manifest],
) -> None:
    probes = {
        name: container(base)[f"{name}Probe"]["httpGet"]
        for name in ("startup", "readiness", "liveness")
    }
    assert {probe["port"] for probe in probes.values()} == {"admin"}
    never = {"is_connected": False, "was_connected": False}
    lost = {"is_connected": False}
    for moment, is_ready in ((never, False), (lost, True), ({}, True)):
        assert await status(probes["startup"]["path"], **moment) == 200
        assert await status(probes["liveness"]["path"], **moment) == 200
        assert await status(probes["readiness"]["path"], **moment) == (200 if is_ready else 503)
    assert await status("/health", **lost) == 503, "which is why no probe asks it"
    assert await status(probes["readiness"]["path"], is_draining=True) == 503


def test_a_hung_pod_is_restarted_and_a_late_one_is_not(base: list[Manifest]) -> None:
    alive = container(base)["livenessProbe"]
    assert 30 <= alive["periodSeconds"] * alive["failureThreshold"] <= 120


def test_a_pod_has_the_time_for_its_drain(base: list[Manifest]) -> None:
    spare = 5
    assert pod(base)["spec"]["terminationGracePeriodSeconds"] >= seconds_to_leave(base) + spare


def test_the_pods_of_a_roll_drain_one_after_the_other(base: list[Manifest]) -> None:
    spec = one(base, "Deployment")["spec"]
    assert spec["minReadySeconds"] >= seconds_to_leave(base)
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_when_a_pod_goes_the_others_have_room_for_its_clients(example: list[Manifest]) -> None:
    spec = one(example, "HorizontalPodAutoscaler")["spec"]
    each = int(spec["metrics"][0]["pods"]["target"]["averageValue"])
    tolerated = each * 1.1  # so much the autoscaler lets pass before it acts
    leaving = one(example, "PodDisruptionBudget")["spec"]["maxUnavailable"]
    for pods in range(spec["minReplicas"], spec["maxReplicas"] + 1):
        assert (pods - leaving) * settings(example).max_connections >= pods * tolerated


def test_without_an_autoscaler_there_are_as_many_pods_as_it_would_keep(
    base: list[Manifest], example: list[Manifest]
) -> None:
    least = one(example, "HorizontalPodAutoscaler")["spec"]["minReplicas"]
    assert one(base, "Deployment")["spec"]["replicas"] == least
    assert "replicas" not in one(example, "Deployment")["spec"], "each apply would set it back"


def test_the_number_of_pods_falls_far_slower_than_it_rises(example: list[Manifest]) -> None:
    behavior = one(example, "HorizontalPodAutoscaler")["spec"]["behavior"]
    up, down = behavior["scaleUp"], behavior["scaleDown"]
    assert up["stabilizationWindowSeconds"] == 0
    assert down["stabilizationWindowSeconds"] >= 1800
    (policy,) = down["policies"]
    assert policy["value"] == 1
    assert policy["periodSeconds"] > seconds_to_leave(example)


def test_the_metric_of_the_autoscaler_is_one_of_ours_and_the_adapter_makes_it(
    example: list[Manifest],
) -> None:
    (metric,) = one(example, "HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in {series.name for series in SERIES}
    values = yaml.safe_load((FOLDER / "prometheus-adapter-values.yaml").read_text())
    (rule,) = values["rules"]["custom"]
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}
    for template in ("<<.Series>>", "<<.LabelMatchers>>", "<<.GroupBy>>"):
        assert template in rule["metricsQuery"]


def cores(text: str) -> float:
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def test_a_pod_asks_for_what_was_measured_and_may_use_what_the_plan_gives(
    base: list[Manifest],
) -> None:
    resources, users = container(base)["resources"], settings(base).max_connections
    costs = read_costs()
    assert costs is not None
    demand = Demand(users=users, rate=PEAK_RATE)
    deliveries = demand.mean_subscriptions * users / demand.tokens * PEAK_RATE
    needed = costs.cores(users, PEAK_RATE, deliveries)
    assert needed < cores(resources["requests"]["cpu"]) < 2 * needed
    needed_mib = costs.memory_mib(users)
    assert needed_mib * 1.5 < int(resources["requests"]["memory"].removesuffix("Mi"))
    assert cores(resources["limits"]["cpu"]) == SERVER_CORES
    assert resources["limits"]["memory"] == f"{SERVER_MIB}Mi"


def test_a_pod_may_do_nothing_that_the_strictest_standard_forbids(base: list[Manifest]) -> None:
    namespace = one(base, "Namespace", "odin")["metadata"]["labels"]
    assert namespace["pod-security.kubernetes.io/enforce"] == "restricted"
    whole, own = pod(base)["spec"]["securityContext"], container(base)["securityContext"]
    assert whole["runAsNonRoot"] is True
    assert whole["runAsUser"] > 0
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(base)["spec"]["automountServiceAccountToken"] is False


def test_everything_finds_the_pods_and_their_ports(example: list[Manifest]) -> None:
    labels = pod(example)["metadata"]["labels"].items()
    ports = {port["name"] for port in container(example)["ports"]}
    budget, policy = one(example, "PodDisruptionBudget"), one(example, "NetworkPolicy")
    services = [one(example, "Service"), one(example, "Service", "ws-admin")]
    selectors = [
        *(service["spec"]["selector"] for service in services),
        budget["spec"]["selector"]["matchLabels"],
        policy["spec"]["podSelector"]["matchLabels"],
        *(
            spread["labelSelector"]["matchLabels"]
            for spread in pod(example)["spec"]["topologySpreadConstraints"]
        ),
    ]
    for selector in selectors:
        assert selector.items() <= labels
    for service in services:
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} == ports
    (rule,) = one(example, "Ingress")["spec"]["rules"]
    assert [(path["path"], path["pathType"]) for path in rule["http"]["paths"]] == [
        ("/ws", "Exact"),
        ("/dictionary", "Prefix"),
        (contract.PATH, "Exact"),
        ("/", "Exact"),
        ("/page", "Prefix"),
    ]
    for path in rule["http"]["paths"]:
        backend = path["backend"]["service"]
        assert backend["port"]["name"] in {
            port["name"] for port in one(example, "Service", backend["name"])["spec"]["ports"]
        }


def test_clients_do_not_reach_metrics_and_only_prometheus_reaches_the_admin_port(
    example: list[Manifest],
) -> None:
    assert [port["name"] for port in one(example, "Service")["spec"]["ports"]] == ["ws"]
    for rule in one(example, "NetworkPolicy")["spec"]["ingress"]:
        ports = {port["port"] for port in rule["ports"]}
        assert ("from" in rule) == ("admin" in ports)


def test_a_pod_reaches_the_nats_of_its_settings(base: list[Manifest]) -> None:
    (url,) = settings(base).nats_urls
    ports = {
        port["port"]
        for rule in one(base, "NetworkPolicy")["spec"]["egress"]
        for port in rule["ports"]
    }
    assert ports == {53, int(url.rpartition(":")[2])}


def test_prometheus_finds_the_pods_under_the_name_that_the_rules_ask_for(
    example: list[Manifest],
) -> None:
    monitor, service = one(example, "ServiceMonitor"), one(example, "Service", "ws-admin")
    spec, labels = monitor["spec"], service["metadata"]["labels"]
    # All keys of ours; the operator takes others without a word and ignores them.
    assert set(spec) == {"jobLabel", "selector", "endpoints"}
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert labels[spec["jobLabel"]] == "ws"
    (endpoint,) = spec["endpoints"]
    assert set(endpoint) == {"port", "path", "interval"}
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["path"] == "/metrics"
    assert re.fullmatch(r"\d+s", endpoint["interval"])


def test_the_image_of_the_example_is_a_name_to_be_replaced(
    base: list[Manifest], example: list[Manifest]
) -> None:
    assert container(base)["image"] == "trio-odin"
    assert container(example)["image"].startswith("registry.example/")


def test_the_rules_of_prometheus_become_one_object(tmp_path: Path) -> None:
    files = [tmp_path / "alerts.yml", tmp_path / "recording.yml"]
    for file in files:
        rules = [{"alert": "ServerDown", "expr": "up == 0", "for": "1m"}]
        file.write_text(yaml.safe_dump({"groups": [{"name": file.stem, "rules": rules}]}))
    made = run(sys.executable, FOLDER / "prometheus_rule.py", *files)
    assert made.returncode == 0, made.stderr
    rule = yaml.safe_load(made.stdout)
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    groups = rule["spec"]["groups"]
    assert [group["name"] for group in groups] == ["alerts", "recording"]
    assert math.prod(len(group["rules"]) for group in groups) == 1


def test_the_projects_own_rules_are_in_it() -> None:
    files = sorted((OPS / "prometheus" / "rules").glob("*.yml"))
    made = run(sys.executable, FOLDER / "prometheus_rule.py")
    assert files
    assert made.returncode == 0, made.stderr
    groups = yaml.safe_load(made.stdout)["spec"]["groups"]
    names = [group["name"] for group in groups]
    assert names == [
        g["name"] for file in files for g in yaml.safe_load(file.read_text())["groups"]
    ]
    assert len(names) == len(set(names)), "the operator wants each name once"
    kept = FOLDER / "monitoring" / "prometheusrule.yaml"
    assert kept.read_text() == made.stdout, f"run: python prometheus_rule.py > {kept.name}"
