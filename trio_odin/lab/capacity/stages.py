"""The stages of the lab and their criteria, in one table.

Stages 1 to 6 are the six tests of the plan, with its figures; the others go beyond it. A criterion
of source "plan" has the plan's own bound, one of source "ours" has a bound that we set. Every load
must hold `INTEGRITY` as well: nothing lost, repeated, late, foreign or unaccounted for. The plan's
bounds of CPU and memory are checked against the server's own report and against its cgroup.
"""

from __future__ import annotations

import attrs

from trio_odin.lab.load.criteria import INTEGRITY, Criterion, at_least, at_most

TOKENS = 200
NORMAL_RATE = 12.0
PEAK_RATE = 30.0
HOME_SHARE = 0.8
"""The plan's peak load: so many users have the home page open, with the same 30 tokens."""

SERVER_SETTINGS = {
    "WS_CPU_LIMIT": "1.9",
    "WS_MEMORY_LIMIT": str(7168 * 1024 * 1024),
    "WS_MAX_CONNECTIONS": "10000",
    "WS_MAX_NATS_RATE": "1000",
    "WS_MAX_BROADCAST_RATE": "1000",
    "WS_CPU_REJECT_THRESHOLD": "75.0",
    "WS_CPU_PAUSE_THRESHOLD": "80.0",
    "WS_WORKER_POOL_SIZE": "256",
    "WS_WORKER_QUEUE_SIZE": "25600",
    "WS_MAX_GOROUTINES": "25000",
    "LOG_LEVEL": "info",
    "LOG_FORMAT": "json",
}
"""The plan's environment of the server, for every stage that does not say otherwise."""

SERVER_CORES = 1.9
SERVER_MIB = 7168
SERVER_FILES = 200_000
"""The plan's machine."""

COMPRESSED_CPU = 1.05
"""The most CPU that compressed deliveries may take, by that of plain ones on the same machine."""


@attrs.frozen(kw_only=True)
class Stage:
    """One stage.

    Args:
        number: the plan's number of the test.
        title: one line.
        plan: the plan's expectation, in its words and figures; "" beyond the plan.
        connections: number of clients; 0: no load, but the checks of `checks.py`.
        rate: events a second.
        hold_seconds: the plan's length of the hold; `short_seconds` in a short run.
        is_filtered: subscription filtering is on.
        every_ms: clients ask for at most one update of a channel in so many milliseconds.
        encoding: that the clients offer.
        is_cut: all connections are cut after the hold, and come back.
        churn_per_second: connections replaced during the hold.
        settings: of the server, in addition to `SERVER_SETTINGS`.
        plain_stage: the stage with the same load in plain text; 0: none. Where that ran before in
            the same lab, this one may use `COMPRESSED_CPU` times its CPU.
        criteria: those that the stage must hold.
        note: an explanation for readers of its figures.
    """

    number: int
    title: str
    plan: str = ""
    connections: int = 0
    rate: float = NORMAL_RATE
    hold_seconds: float = 0.0
    short_seconds: float = 120.0
    is_filtered: bool = True
    every_ms: int = 0
    encoding: str = "plain"
    is_cut: bool = False
    churn_per_second: float = 0.0
    settings: dict[str, str] = attrs.field(factory=dict)
    plain_stage: int = 0
    criteria: tuple[Criterion, ...] = ()
    note: str = ""

    def criteria_beside(self, plain_cores: float | None) -> tuple[Criterion, ...]:
        """The criteria, with a bound of CPU that holds on any machine if one is known.

        Args:
            plain_cores: what `plain_stage` used on this machine; None: it was not measured.
        """
        if plain_cores is None:
            return self.criteria
        cores = at_most("cores", COMPRESSED_CPU * plain_cores)
        return tuple(cores if c.figure == cores.figure else c for c in self.criteria)


_EVERYBODY = (at_least("success", 1.0, "plan"), at_most("rejected", 0, "plan"))
# A queue that does not empty grows without end; on a shared machine the latency varies.
_STEADY = at_most("drift", 3.0)
# Our server and publisher must report their figures; all events came, and all clients stayed.
_WHOLE = (
    at_least("pace", 0.95),
    at_least("held", 1.0),
    *(attrs.evolve(criterion, is_excused=False) for criterion in INTEGRITY),
)
# While all are cut, events reach nobody.
_WHOLE_BUT_FOR_THE_CUT = tuple(criterion for criterion in _WHOLE if criterion.figure != "unseen")
_WITH_EVENTS = "The plan only connects here; this stage publishes 12 events a second as well."

STAGES = (
    Stage(
        number=1,
        title="subscribe and unsubscribe",
        plan="messages of the subscribed channels, of no other token and no other event type",
    ),
    Stage(
        number=2,
        title="1,000 connections with filtering",
        plan="100 % success, CPU below 10 %",
        connections=1_000,
        hold_seconds=600,
        criteria=(
            *_EVERYBODY,
            at_most("cpu", 0.10, "plan"),
            at_most("memory", 100),
            at_most("p99", 100),
            *_WHOLE,
        ),
    ),
    Stage(
        number=3,
        title="5,000 connections",
        plan="100 % success, CPU below 25 %, memory about 3,500 MB",
        connections=5_000,
        hold_seconds=900,
        criteria=(
            *_EVERYBODY,
            at_most("cpu", 0.25, "plan"),
            at_most("memory", 3_500, "plan"),
            at_most("memory", 250),
            at_most("p99", 250),
            *_WHOLE,
        ),
        note=_WITH_EVENTS,
    ),
    Stage(
        number=4,
        title="10,000 connections",
        plan="100 % success, CPU below 30 %, memory about 7,000 MB",
        connections=10_000,
        hold_seconds=1_200,
        criteria=(
            *_EVERYBODY,
            at_most("cpu", 0.30, "plan"),
            at_most("memory", 7_000, "plan"),
            at_most("memory", 500),
            at_most("p99", 500),
            _STEADY,
            *_WHOLE,
        ),
        note=_WITH_EVENTS,
    ),
    Stage(
        number=5,
        title="10,000 connections, 12 events a second, for long",
        plan="CPU below 30 %, memory about 7 GB, 100 % success",
        connections=10_000,
        hold_seconds=1_800,
        criteria=(
            *_EVERYBODY,
            at_most("cpu", 0.30, "plan"),
            at_most("cores", 0.40),
            at_most("memory", 7_168, "plan"),
            at_most("memory", 500),
            at_most("p99", 500),
            _STEADY,
            *_WHOLE,
        ),
    ),
    Stage(
        number=6,
        title="10,000 connections, 30 events a second: the peak",
        plan="CPU 50 to 70 %, no rejections",
        connections=10_000,
        rate=PEAK_RATE,
        hold_seconds=900,
        criteria=(
            *_EVERYBODY,
            at_most("cpu", 0.70, "plan"),
            at_most("cores", 0.80),
            at_most("memory", 7_168, "plan"),
            at_most("memory", 500),
            at_most("p99", 500),
            _STEADY,
            *_WHOLE,
        ),
    ),
    Stage(
        number=7,
        title="18,000 connections: the plan's future",
        plan="18,000 connections on the same machine, as a target of later optimisation",
        connections=18_000,
        hold_seconds=900,
        settings={"WS_MAX_CONNECTIONS": "18000", "WS_MAX_GOROUTINES": "0"},
        criteria=(
            *_EVERYBODY,
            at_most("memory", 7_168, "plan"),
            at_most("memory", 800),
            at_most("cores", 0.70),
            at_most("p99", 1_000),
            _STEADY,
            *_WHOLE,
        ),
    ),
    Stage(
        number=8,
        title="filtering off: everything to 5,000",
        plan=(
            "the root cause: 52.5 % of 5,000 connected, CPU 99.5 % of 1.9 cores, "
            "52,000 writes a second"
        ),
        connections=5_000,
        rate=20.0,
        hold_seconds=120,
        is_filtered=False,
        settings={"ENABLE_SUBSCRIPTION_FILTERING": "false"},
        criteria=(
            at_least("success", 1.0),
            at_least("per_event", 5_000),
            at_least("pace", 0.95),
            at_least("held", 1.0),
            at_most("gaps", 0),
            at_most("foreign", 0),
        ),
        note=(
            "Not a way to run it: this stage shows what filtering saves. 20 events a second go to "
            "all 5,000, as in the test that the plan starts from. This server, one process, uses "
            "one core at most, where the plan's had 1.9."
        ),
    ),
    Stage(
        number=9,
        title="reconnect storm: all 10,000 cut at once",
        connections=10_000,
        hold_seconds=60,
        short_seconds=30,
        is_cut=True,
        criteria=(
            at_least("success", 1.0),
            at_least("returned", 1.0),
            at_most("return_seconds", 30),
            at_most("memory", 500),
            *_WHOLE_BUT_FOR_THE_CUT,
        ),
        note="Clients come back within a second at random, as browsers with jitter would.",
    ),
    Stage(
        number=10,
        title="soak with churn",
        connections=5_000,
        hold_seconds=3_600,
        short_seconds=600,
        churn_per_second=20.0,
        criteria=(
            *_EVERYBODY,
            at_least("churned", 0.95),
            attrs.evolve(at_most("growth", 1.0), is_excused=True),  # unknown in a short hold
            at_most("memory", 250),
            at_most("p99", 500),
            _STEADY,
            *(attrs.evolve(c, bound=0.99) if c.figure == "held" else c for c in _WHOLE),
        ),
        settings={"WS_REPLAY_CAPACITY": "10"},
        note=(
            "20 connections a second end and are made anew: in order, without a word, by a broken "
            "rule, by a reset, within a frame. What is kept for replay, 10 envelopes here, is full "
            "after three minutes: what grows after that is a leak."
        ),
    ),
    *(
        Stage(
            number=number,
            title=f"{rate:,} events a second that one client wants a part of",
            connections=1,
            rate=rate,
            hold_seconds=60,
            short_seconds=30,
            settings={"WS_MAX_NATS_RATE": "0", "WS_MAX_BROADCAST_RATE": "0"},
            criteria=(*_EVERYBODY, at_most("p99", 100), *_WHOLE),
            note=(
                "What it costs to take an event, whoever it is for: the model's figure for rates "
                "far above the plan's."
            ),
        )
        for number, rate in ((11, 300), (12, 1_000), (13, 3_000))
    ),
    Stage(
        number=14,
        title="10,000 connections, an update a second; 300 events a second",
        connections=10_000,
        rate=300,
        hold_seconds=300,
        every_ms=1_000,
        criteria=(
            *_EVERYBODY,
            at_most("writes", 10_000),
            at_most("cores", 0.50),
            at_most("memory", 500),
            at_most("p99", 1_500),
            _STEADY,
            *_WHOLE,
        ),
        note=(
            "Ten times the plan's peak. Each client gets one batch a second at most, with the "
            "newest event of each channel and the number of those that it skips. Its latency "
            "includes the wait for the tick. Every event would be 363,000 deliveries a second."
        ),
    ),
    Stage(
        number=15,
        title="10,000 connections, 30 events a second, compressed",
        connections=10_000,
        rate=PEAK_RATE,
        hold_seconds=300,
        encoding="z1",
        plain_stage=6,
        criteria=(
            *_EVERYBODY,
            at_most("bytes", 167),
            at_most("cores", COMPRESSED_CPU * 0.80),
            at_most("memory", 500),
            at_most("p99", 500),
            _STEADY,
            *_WHOLE,
        ),
        note=(
            "The plan's peak with the subprotocol trio-odin.z1: each event is compressed once for "
            "all. The bounds: 0.45 times the 371 bytes of plain text, and 1.05 times the CPU of "
            "stage 6 in the same run; without that stage, 1.05 times its bound."
        ),
    ),
)


def stage_of(number: int) -> Stage:
    """The stage of that number.

    Raises:
        KeyError: there is none.
    """
    return {stage.number: stage for stage in STAGES}[number]
