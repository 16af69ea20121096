"""The quick cases; `nox -s conformance` runs all of them."""

from __future__ import annotations

import re

import pytest
import trio

pytest.importorskip("kosoku", reason="has no wheel for this platform")

from tests.conformance.cases import Outcome, report, run_cases
from tests.conformance.echo import send_back, settings
from tests.lab.origin import ORIGIN
from trio_odin.connection.connection import Connection
from trio_odin.server import serve

QUICK = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.2.*", "6.4.*", "7.*", "10.*", "12.1.1", "13.3.1"]


# kosoku leaves the texts of section 12 open.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
async def test_the_frame_layer_conforms(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "_take", send_back)
    server = await nursery.start(serve, settings())
    with trio.fail_after(60):
        outcomes = await run_cases(f"ws://{server.addresses[0]}/ws", QUICK)
    nursery.cancel_scope.cancel()
    assert len(outcomes) > 100
    assert [outcome for outcome in outcomes if not outcome.is_accepted] == []
    assert server.ledger.traffic.closed["internal_error"] == 0


async def test_a_case_that_fails_says_how_far_it_came(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def send_nothing_back(connection: Connection, message: str | bytes) -> None:
        pass

    monkeypatch.setattr(Connection, "_take", send_nothing_back)
    server = await nursery.start(serve, settings())
    with trio.fail_after(60):
        (outcome,) = await run_cases(f"ws://{server.addresses[0]}/ws", ["1.1.1"])
    nursery.cancel_scope.cancel()
    assert not outcome.is_accepted
    assert re.search(r" It took [\d.]+ s, [01] frames came back\.$", outcome.remark)


def test_no_case_may_fail() -> None:
    verdicts = {
        ("1.1.1", "OK"): True,
        ("6.4.1", "NON-STRICT"): True,
        ("7.13.1", "INFORMATIONAL"): True,
        ("13.1.1", "UNIMPLEMENTED"): False,
        ("13.1.1", "FAILED"): False,
        ("7.1.1", "UNCLEAN"): False,
        ("7.1.1", "WRONG CODE"): False,
        ("1.1.1", "ERROR"): False,
    }
    for (case, verdict), is_accepted in verdicts.items():
        assert Outcome(case, verdict, "").is_accepted is is_accepted


def test_the_table_has_counts_and_remarks() -> None:
    outcomes = [
        Outcome("1.1.1", "OK", "fine"),
        Outcome("1.1.2", "NON-STRICT", "late"),
        Outcome("12.1.1", "OK", "fine"),
    ]
    first, second = report(outcomes, ORIGIN).sections
    assert (first.number, first.verdicts) == ("1", {"OK": 1, "NON-STRICT": 1})
    assert first.remarks == {"1.1.2": "late"}
    assert second.verdicts == {"OK": 1}
    assert second.remarks == {}
