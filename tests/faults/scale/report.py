"""What the drill has found, in lines."""

from __future__ import annotations

from collections.abc import Iterator

from tests.faults.scale.drill import Plan, Result


def lines(plan: Plan, result: Result) -> Iterator[str]:
    """The verdict first, then the figures, then each check."""
    users = result.users
    verdict = "passed" if result.passed else "NOT passed"
    yield ""
    yield (
        f"{verdict}: {plan.connections:,} connections and {plan.users:,} users who resume on "
        f"{plan.nodes} nodes, {result.published:,} events, {result.deliveries:,} deliveries"
    )
    yield (
        f"  a node killed    {result.killed:,} connections; all back after "
        f"{result.node_back_seconds:.1f} s, each away for {result.away_p50_ms:,.0f} ms (p50), "
        f"{result.away_p99_ms:,.0f} ms (p99); {result.refused:,} tries failed"
    )
    yield (
        f"  a NATS node      NATS took events again after {result.nats_publisher_seconds:.1f} s, "
        f"they reached everybody after {result.nats_pause_seconds:.1f} s; "
        f"{result.ended_by_nats:,} connections ended"
    )
    yield (
        f"  losses           {result.lost:,} silent, {result.gaps:,} gaps in seq, "
        f"{result.missed_away:,} missed while away without resume, {result.repeated:,} repeated"
    )
    if users is not None:
        yield (
            f"  users            {users.expected:,} deliveries; {users.returns:,} came back and "
            f"lack {users.missed + users.lost:,}, of which {users.declared:,} were declared; "
            f"{users.repeated:,} repeated"
        )
    yield (
        f"  p99 when steady  {result.p99_ms:,.0f} ms; memory of a node "
        f"{', '.join(f'{mib:,.0f}' for mib in result.node_mib)} MiB"
    )
    for sentence, holds in result.checks.items():
        yield f"  {'holds ' if holds else 'BROKEN'}  {sentence}"
