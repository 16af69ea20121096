"""Wrap the rules of ops/prometheus for the Prometheus Operator; they have no copy here.

    python ops/kubernetes/prometheus_rule.py | kubectl apply -f -

Other files than those of ops/prometheus/rules can be named. Needs pyyaml.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import yaml

RULES = Path(__file__).parents[1] / "prometheus" / "rules"


def prometheus_rule(files: Iterable[Path]) -> dict[str, object]:
    """One object with the groups of all files."""
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": "ws",
            "namespace": "odin",
            # As of the ServiceMonitor: by which a Prometheus chooses its rules.
            "labels": {"release": "kube-prometheus-stack"},
        },
        "spec": {"groups": groups},
    }


def _main() -> None:
    files = [Path(name) for name in sys.argv[1:]] or sorted(RULES.glob("*.yml"))
    if not files:
        sys.exit(f"no rules in {RULES}")
    yaml.safe_dump(prometheus_rule(files), sys.stdout, sort_keys=False, allow_unicode=True)


if __name__ == "__main__":
    _main()
