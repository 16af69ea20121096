"""Which collector gets the spans, by the variables that all programs with OpenTelemetry share."""

from __future__ import annotations

import sys

import pytest

from trio_odin.ledger.counters import TraceCounters
from trio_odin.settings.reading import effective, read_settings
from trio_odin.settings.setting_field import SettingError
from trio_odin.telemetry import tracing
from trio_odin.telemetry.tracing import CannotExport, export_of, url_of_traces

ENDPOINT, URL = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
COLLECTOR = "http://collector:4318"


def url(**variables: str) -> str:
    return url_of_traces(read_settings(variables))


def test_the_path_is_added_to_the_endpoint_and_the_url_is_used_as_it_is() -> None:
    assert url() == ""
    assert url(**{ENDPOINT: COLLECTOR}) == "http://collector:4318/v1/traces"
    assert url(**{ENDPOINT: " https://a.example/otlp/ "}) == "https://a.example/otlp/v1/traces"
    assert url(**{ENDPOINT: COLLECTOR, URL: "http://[::1]:1/x"}) == "http://[::1]:1/x"


@pytest.mark.parametrize(
    "wrong",
    ["collector:4318", "grpc://collector:4317", "http://", "http://collector:port",
     "http://collector:99999", "http://collector:0", "http://a b", "http://collector/?key=1",
     "http://collector/#1", "http://collector\\x", "http://ann:secret@collector"],
)  # fmt: skip
@pytest.mark.parametrize("name", [ENDPOINT, URL])
def test_a_wrong_url_is_refused_only_if_traces_are_wanted(name: str, wrong: str) -> None:
    with pytest.raises(SettingError) as raised:
        url(**{name: wrong})
    assert str(raised.value).startswith(f"{name}='")
    assert "allowed is a URL such as http://collector:4318, without user" in str(raised.value)
    for off in ({"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": " None "}):
        assert url(**{name: wrong, **off}) == ""


@pytest.mark.parametrize("name", [ENDPOINT, URL])
def test_a_password_in_the_url_is_never_shown(name: str) -> None:
    given = {name: "http://ann:secret@collector/?key=secret"}
    assert "secret" not in effective({**given, "OTEL_SDK_DISABLED": "true"})[name]
    with pytest.raises(SettingError) as raised:
        url(**given)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL='grpc'"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL='http/json'",
        ),
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER='console'"),
    ],
)
def test_what_is_not_supported_is_warned_about(variables: dict[str, str], named: str) -> None:
    settings = read_settings({ENDPOINT: "collector:4317", **variables})
    with pytest.raises(CannotExport) as raised:
        url_of_traces(settings)
    assert named in str(raised.value)
    assert export_of(settings, TraceCounters(), worker=0) is None


def test_the_protocol_of_traces_goes_before_that_of_everything() -> None:
    protocols = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "HTTP/protobuf",
        "OTEL_TRACES_EXPORTER": "console, otlp",
    }
    assert url(**{ENDPOINT: COLLECTOR}, **protocols) == f"{COLLECTOR}/v1/traces"


def test_without_the_library_a_line_in_the_log_gives_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "trio_odin.telemetry.otlp", None)
    logged: list[tuple[str, str]] = []

    class Log:
        def warning(self, event: str, *, reason: str) -> None:
            logged.append((event, reason))

    monkeypatch.setattr(tracing, "_log", Log())
    settings = read_settings({ENDPOINT: COLLECTOR})
    assert export_of(settings, TraceCounters(), worker=0) is None
    (line,) = logged
    assert line[0] == "traces.off"
    named = f"{ENDPOINT}='{COLLECTOR}'"
    assert line[1] == f"{named}: traces need OpenTelemetry: pip install 'trio-odin[otel]'"
