"""`trio-odin serve`, and the entry point of its workers.

The server itself is imported once the settings are known to be good, so a wrong one is reported,
and `--help` shown, in half the time.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from collections.abc import Mapping
from functools import partial

import click

from trio_odin.cli.common import (
    check_memory_limit,
    fail,
    flag,
    run,
    settings_from,
    settings_of,
    with_reload_file_and,
)
from trio_odin.settings.reload import ReadEnvironment
from trio_odin.settings.settings import Settings
from trio_odin.telemetry.logs import configure_logs


@click.command("serve", short_help="Serve NATS token events to WebSocket clients.")
@flag("--addr")
@flag("--nats")
@flag("--nats-mode")
@flag("--max-connections")
@flag("--workers")
@flag("--log-level")
@flag("--log-format")
@click.option(
    "--check",
    "is_check",
    is_flag=True,
    help="Check settings, files, ports, limits and NATS, print a line about each, and exit.",
)
@click.option("--json", "is_json", is_flag=True, help="With --check: print one JSON object.")
# Its number, and the file number of its link.
@click.option("--as-worker", nargs=2, type=int, hidden=True)
# The sockets that it inherits: the number of their worker, and their file number.
@click.option("--socket", "sockets", multiple=True, nargs=2, type=int, hidden=True)
def serve_command(
    as_worker: tuple[int, int] | None,
    sockets: tuple[tuple[int, int], ...],
    *,
    is_check: bool,
    is_json: bool,
    **flags: str | None,
) -> None:
    """Serve NATS token events to WebSocket clients.

    Every setting is an environment variable; docs/configuration.md lists them all. The flags here
    are other spellings of the most common ones. The file that WS_RELOAD_FILE names overrides both.

    SIGTERM or Ctrl-C drains: the server tells each client when to come back, sends what waits for
    it, and closes the connection. A second signal stops immediately. SIGHUP reads the file and the
    keys again; started from a terminal, SIGHUP drains, because a terminal sends it when it closes.
    SIGUSR2 replaces the workers one after the other and refuses no client. SIGUSR1 is ignored.

    --check tells whether a server could serve here: exit code 0 if it could, 1 if a check has
    failed, 2 if a setting is wrong. It changes nothing, neither here nor in NATS. The port of a
    server that runs already is not free.
    """
    if is_json and not is_check:
        fail("--json needs --check")
    faulthandler.enable()  # write the stack also if a signal ends the process
    if as_worker is not None:
        settings = settings_from(flags)
        from trio_odin.cli import serving  # noqa: PLC0415

        serving.serve_as_worker(settings, *as_worker, sockets)
        return
    read: ReadEnvironment = partial(with_reload_file_and, flags)
    settings, environment = settings_of(read)
    from trio_odin.cli import serving  # noqa: PLC0415

    check_memory_limit(settings, settings.workers)  # with what a server takes, so after the import
    if is_check:
        _check(settings, environment, is_json=is_json)
    else:
        serving.serve(settings, environment, read)


def _check(settings: Settings, environment: Mapping[str, str], *, is_json: bool) -> None:
    from trio_odin.check import Finding, check  # noqa: PLC0415

    # What goes wrong is in the findings; a log between them would not be JSON.
    configure_logs("critical", settings.log_format)
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        findings.append(finding)
        if not is_json:
            click.echo(f"{finding.result.value:8} {finding.what:17} {finding.text}")

    is_good = run(partial(check, settings, environment, tell))
    if is_good == "interrupted":
        sys.exit(130)
    if is_json:
        checks = [
            {"check": one.what, "result": one.result.value, "text": one.text} for one in findings
        ]
        click.echo(json.dumps({"ok": is_good, "checks": checks}, indent=2, ensure_ascii=False))
    sys.exit(0 if is_good else 1)
