"""The rules of Prometheus as they are written, by name."""

from __future__ import annotations

from typing import Any

from tests.ops.conftest import OPS
from tests.ops.promql import Known, known_metrics
from tests.ops.tools import load_yaml


def _rules(file: str) -> list[dict[str, Any]]:
    groups = load_yaml(OPS / "prometheus" / "rules" / file)["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in _rules("alerts.yml")}
RECORDED = {rule["record"]: rule for rule in _rules("recording.yml")}


_OF_A_PROXY: dict[str, set[str] | None] = {"job": {"haproxy"}, "instance": None}
# Of all that HAProxy shows, what the rules read; test_haproxy_tls.py finds each in a real one.
OF_HAPROXY: Known = {
    "haproxy_backend_active_servers": _OF_A_PROXY | {"proxy": {"ws"}},
    "haproxy_server_status": _OF_A_PROXY
    | {"proxy": {"ws"}, "server": {"ws-1", "ws-2"}, "state": {"UP", "DOWN", "DRAIN", "MAINT"}},
    "haproxy_frontend_http_responses_total": _OF_A_PROXY | {"proxy": {"public"}, "code": {"5xx"}},
    "haproxy_process_current_connections": _OF_A_PROXY,
    "haproxy_process_max_connections": _OF_A_PROXY,
}


def is_of_haproxy(expression: str) -> bool:
    """Whether a rule is about HAProxy, not about the server."""
    return 'job="haproxy"' in expression


def known_series() -> Known:
    """What Prometheus has: of servers and of HAProxy, what is recorded, and its own of alerts."""
    target: dict[str, set[str] | None] = {"job": {"ws"}, "instance": None}
    alerts: dict[str, set[str] | None] = {
        "alertname": set(ALERTS),
        "alertstate": {"firing", "pending"},
        "severity": {"warning", "critical", "none"},
    }
    return {
        **known_metrics(),
        **OF_HAPROXY,
        "up": {"job": {"ws", "haproxy"}, "instance": None},
        **dict.fromkeys(RECORDED, target),
        "ALERTS": alerts | target,
    }
