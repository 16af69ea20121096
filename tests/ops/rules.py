"""The rules of Prometheus as they are written, by name."""

from __future__ import annotations

from typing import Any

import yaml

from tests.ops.conftest import OPS
from tests.ops.promql import Known, known_metrics


def _rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((OPS / "prometheus" / "rules" / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in _rules("alerts.yml")}
RECORDED = {rule["record"]: rule for rule in _rules("recording.yml")}


def known_series() -> Known:
    """What Prometheus has: what servers show, what is recorded of it, and its own of alerts."""
    target: dict[str, set[str] | None] = {"job": {"ws"}, "instance": None}
    alerts: dict[str, set[str] | None] = {
        "alertname": set(ALERTS),
        "alertstate": {"firing", "pending"},
        "severity": {"warning", "critical", "none"},
    }
    return {**known_metrics(), **dict.fromkeys(RECORDED, target), "ALERTS": alerts | target}
