"""ops/kubernetes: put together by kustomize, checked by schema and against the server itself."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ops.conftest import OPS
from tests.ops.rules import ALERTS, RECORDED
from tests.ops.test_nats_secrets import LOGIN
from tests.ops.tools import output, require, run, tool
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
# What stands in an alert's link before kustomize puts the address there.
UNSET = "https://runbooks.invalid/alerts.md"
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
    # The files are in the pod alone.
    given = {n: text for n, text in environment(manifests).items() if n != "NATS_URL_FILE"}
    return read_settings(given)


def seconds_to_leave(manifests: list[Manifest]) -> float:
    sleep: int = container(manifests)["lifecycle"]["preStop"]["sleep"]["seconds"]
    return sleep + settings(manifests).drain_seconds


@pytest.mark.parametrize("folder", ["base", "example", "nats"])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_what_its_schema_says(folder: str, version: str) -> None:
    import kubernetes_validate  # noqa: PLC0415 - with jsonschema, see `tests/wire/test_contract.py`

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


def test_alerts_and_figures_become_an_object_each(tmp_path: Path) -> None:
    alert = {
        "alert": "ServerDown",
        "expr": "up == 0",
        "annotations": {"runbook_url": "{{ $externalLabels.runbooks }}#serverdown"},
    }
    figure = {"record": "job:up:sum", "expr": "sum by (job) (up)"}
    file = tmp_path / "rules.yml"
    groups = [{"name": "both", "rules": [alert, figure]}, {"name": "one", "rules": [figure]}]
    file.write_text(yaml.safe_dump({"groups": groups}))
    made = run(sys.executable, FOLDER / "prometheus_rule.py", file)
    assert made.returncode == 0, made.stderr
    alerts, figures = yaml.safe_load_all(made.stdout)
    for rule in (alerts, figures):
        kind = ("monitoring.coreos.com/v1", "PrometheusRule")
        assert (rule["apiVersion"], rule["kind"]) == kind
    changed = alert | {"annotations": {"runbook_url": f"{UNSET}#serverdown"}}
    assert alerts["spec"]["groups"] == [{"name": "both", "rules": [changed]}]
    assert [group["name"] for group in figures["spec"]["groups"]] == ["both", "one"]
    assert all(group["rules"] == [figure] for group in figures["spec"]["groups"])


def test_the_projects_own_rules_are_in_it() -> None:
    files = sorted((OPS / "prometheus" / "rules").glob("*.yml"))
    made = run(sys.executable, FOLDER / "prometheus_rule.py")
    assert files
    assert made.returncode == 0, made.stderr
    for one_of_two in yaml.safe_load_all(made.stdout):
        names = [group["name"] for group in one_of_two["spec"]["groups"]]
        assert len(names) == len(set(names)), "the operator wants each name once"
    kept = FOLDER / "monitoring" / "prometheusrule.yaml"
    assert kept.read_text() == made.stdout, f"run: python prometheus_rule.py > {kept.name}"


def test_the_rules_that_are_applied_are_all_rules_and_lead_to_the_published_runbook(
    example: list[Manifest], tmp_path: Path
) -> None:
    require("promtool")
    objects = [one(example, "PrometheusRule", name) for name in ("ws-alerts", "ws-figures")]
    rules = [rule for o in objects for group in o["spec"]["groups"] for rule in group["rules"]]
    assert {rule.get("alert") for rule in rules} - {None} == ALERTS.keys()
    assert {rule.get("record") for rule in rules} - {None} == RECORDED.keys()
    published = "https://docs.odin.example/runbooks/alerts.md"
    for rule in rules:
        if name := rule.get("alert"):
            assert rule["annotations"]["runbook_url"] == f"{published}#{name.lower()}"
            assert rule["expr"] == ALERTS[name]["expr"]
    for each in objects:
        file = tmp_path / f"{each['metadata']['name']}.yml"
        file.write_text(yaml.safe_dump(each["spec"]))
        assert "SUCCESS" in output("promtool", "check", "rules", file)
    # The address is kustomize's own matter.
    assert not any(manifest["metadata"]["name"] == "runbooks" for manifest in example)


def test_whoever_sets_no_address_sees_it_in_the_link() -> None:
    (alerts, _) = yaml.safe_load_all((FOLDER / "monitoring" / "prometheusrule.yaml").read_text())
    links = {
        rule["annotations"]["runbook_url"].partition("#")[0]
        for group in alerts["spec"]["groups"]
        for rule in group["rules"]
    }
    assert links == {UNSET}


@pytest.fixture(scope="module")
def nats() -> list[Manifest]:
    return built("nats")


def test_the_server_uses_the_three_nats_by_its_secret(
    example: list[Manifest], nats: list[Manifest]
) -> None:
    given = environment(example)
    volumes = {v["name"]: v for v in pod(example)["spec"]["volumes"]}
    assert volumes["secrets"]["secret"] == {"secretName": "ws-nats", "optional": False}
    (mount,) = container(example)["volumeMounts"]
    for name, file in LOGIN.items():
        assert Path(given[name]) == Path(mount["mountPath"]) / file
    assert given["NATS_USER"] == "ws", "the user of the folder that the secret is made of"
    assert "SSL_CERT_FILE" not in given
    spec = one(nats, "StatefulSet", "nats")["spec"]
    assert int(given["JS_STREAM_REPLICAS"]) == spec["replicas"] == 3
    label = one(example, "Namespace", "odin")["metadata"]["labels"]["odin.example/nats"]
    (rule, _) = one(nats, "NetworkPolicy", "nats")["spec"]["ingress"]
    (source,) = rule["from"]
    assert source["namespaceSelector"]["matchLabels"] == {"odin.example/nats": label}


def test_the_names_of_the_pods_are_those_of_routes_and_of_the_certificate(
    nats: list[Manifest], tmp_path: Path
) -> None:
    stateful, service = one(nats, "StatefulSet", "nats"), one(nats, "Service", "nats")
    assert stateful["spec"]["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    domain = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local"
    names = [f"{stateful['metadata']['name']}-{number}.{domain}" for number in range(3)]
    (config,) = (m["data"]["nats.conf"] for m in nats if m["kind"] == "ConfigMap")
    assert re.findall(r"nats-route://([\w.-]+):6222", config) == names
    command = next(
        line
        for line in (FOLDER / "nats" / "kustomization.yaml").read_text().splitlines()
        if "secrets.sh" in line
    )
    said = run("/bin/bash", "-c", command.removeprefix("#").partition(" ops/nats")[0].strip()
               + '; echo "$NATS_SERVERS"')  # fmt: skip
    assert said.stdout.split() == names
    made = run(OPS / "nats" / "secrets.sh", tmp_path, variables={"NATS_SERVERS": " ".join(names)})
    assert made.returncode == 0, made.stderr
    shown = output(
        *("openssl", "x509", "-in", tmp_path / "nats" / "cert.pem", "-noout"),
        *("-ext", "subjectAltName"),
    )
    for name in names:
        assert f"DNS:{name}" in shown
        assert f"tls://{name}:4222" in (tmp_path / "ws" / "nats_url").read_text()


def test_nats_in_pods_may_do_nothing_more_than_the_server(
    base: list[Manifest], nats: list[Manifest]
) -> None:
    labels = one(nats, "Namespace", "nats")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    spec = one(nats, "StatefulSet", "nats")["spec"]["template"]["spec"]
    (own,) = spec["containers"]
    assert own["securityContext"] == container(base)["securityContext"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False


def test_two_of_three_nats_stay_and_leave_in_order(nats: list[Manifest]) -> None:
    assert one(nats, "PodDisruptionBudget", "nats")["spec"]["maxUnavailable"] == 1
    spec = one(nats, "StatefulSet", "nats")["spec"]
    assert spec["podManagementPolicy"] == "Parallel", "one alone is never ready"
    spread = spec["template"]["spec"]["topologySpreadConstraints"][0]
    assert spread["whenUnsatisfiable"] == "DoNotSchedule"
    (config,) = (m["data"]["nats.conf"] for m in nats if m["kind"] == "ConfigMap")
    (lame,) = re.findall(r'lame_duck_duration: "(\d+)s"', config)
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] > int(lame) + 10
