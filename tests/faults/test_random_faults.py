"""A thousand random faults in all worlds of the oracle, see tests/oracle."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.faults.conftest import Record
from tests.oracle.run import check, run_worlds
from tests.oracle.world import KINDS

pytestmark = pytest.mark.faults


async def test_a_thousand_random_faults_lose_nothing_silently(
    tmp_path: Path, record: Record, request: pytest.FixtureRequest
) -> None:
    faults = request.config.getoption("--oracle-faults", default=None) or 1000
    seed = request.config.getoption("--oracle-seed", default=None) or 1
    row = record(
        "fault",
        f"{faults:,} random faults",
        f"servers, workers, NATS servers, streams, consumers and clients' connections break at "
        f"random, at 50 to 200 events/s, in {len(KINDS)} worlds: one NATS or a cluster of three, "
        f"streams in memory or in files; the clients do what docs/protocol.md says, and some have "
        f"rates",
        "of all that the stream held, each client has each event once, in order, or was told; at a "
        "rate it has the newest, and the count of the others",
    )
    outcomes = await run_worlds(list(KINDS), faults=faults, seed=seed, folder=tmp_path)
    kinds: Counter[str] = sum((outcome.faults for outcome in outcomes), Counter())
    verdicts = [outcome.verdict for outcome in outcomes]
    # Connections are cut here; all clients come back, or events would be missing.
    row.clients = row.held = sum(outcome.clients for outcome in outcomes)
    row.lost = sum(verdict.count("silent loss", "never came") for verdict in verdicts)
    row.repeated = sum(verdict.count("repeat") for verdict in verdicts)
    row.foreign = sum(verdict.count("foreign") for verdict in verdicts)
    row.notes += [
        f"{sum(verdict.connections for verdict in verdicts):,} connections",
        f"{sum(verdict.delivered for verdict in verdicts):,} delivered",
        f"{sum(verdict.skipped for verdict in verdicts):,} skipped at a rate",
        f"{sum(verdict.declared for verdict in verdicts):,} declared missing",
        f"seed {seed}",
        ", ".join(f"{count} × {name}" for name, count in kinds.most_common()),
    ]
    check(outcomes)
