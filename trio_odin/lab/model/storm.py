"""The storm after a loss: clients that come back all at once, until they are in. Pure.

    lost ──► notice ──► wait, full jitter ──► queue ──► accepted, or refused ──► wait longer ──► …

Time goes in steps of a twentieth of a second, and clients are amounts, not persons: the answer is
the expected one, without chance. All nodes that remain are alike and get equal shares. The rules
are those of the server and the client library, by their own constants:

- A process accepts with the share of its loop that events leave (`overload/pacing.py`), at most
  `WS_ACCEPT_RATE`. Each client that is in adds its events, so accepting becomes slower.
- Clients wait for their turn in a queue; further ones get no answer.
- A client waits for an answer for as long as `dial_ms`, then for a random part of `retry_min_ms`,
  doubled with each failure up to `retry_max_ms` (`client/items.py`).
- A node that is full refuses, and each refusal takes a turn.

Deliberately absent: the proxy, and packets that the network loses.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Final

import attrs

from trio_odin.client.items import Options
from trio_odin.drain import RECONNECTS_PER_SECOND
from trio_odin.lab.load.result import LoadResult
from trio_odin.lab.model.model import Costs
from trio_odin.overload.pacing import AcceptPace

STEP_SECONDS: Final = 0.05
LONGEST_SECONDS: Final = 900.0
"""The simulation ends here, whoever is still outside."""
QUEUE_MAX: Final = 8192 + 4096
"""Clients that a process lets wait: accepted and not read, and in the kernel's usual queue."""

_OPTIONS = Options()
_DIAL_SECONDS = _OPTIONS.dial_ms / 1000
_RETRY_MIN_SECONDS = _OPTIONS.retry_min_ms / 1000
_RETRY_MAX_SECONDS = _OPTIONS.retry_max_ms / 1000
_ATTEMPTS_MAX = math.ceil(math.log2(_RETRY_MAX_SECONDS / _RETRY_MIN_SECONDS))
_NOBODY = 1e-6


@attrs.frozen(kw_only=True)
class Storm:
    """A loss, and the nodes to which its clients come.

    Args:
        clients: that have lost their connection.
        nodes: that remain, one or more.
        present: connections that each of these has already.
        room: connections that each can have.
        processes: of each node.
        busy: the share of a process' core that serving takes, by the connections of its node.
        connect_us: time of the loop for one connect, handshake and subscription.
        accepts_per_second: `WS_ACCEPT_RATE`, of a process.
        notice_seconds: from the loss to the moment at which the first and the last client knows.
        spread_seconds: after the notice each waits for a random part of this before its first try;
            None: the client library's first delay.
        failures: tries of each that have failed before.
    """

    clients: float
    nodes: int
    present: float
    room: float
    processes: int
    busy: Callable[[float], float]
    connect_us: float
    accepts_per_second: float
    notice_seconds: tuple[float, float] = (0.0, 0.0)
    spread_seconds: float | None = None
    failures: int = 0


@attrs.frozen(kw_only=True)
class Calm:
    """How a storm ended.

    Args:
        seconds: from the loss until the last client that has room is in; None: not within 15
            minutes.
        half_seconds: the same for half of all clients; None: for fewer than half there is room.
        refused: tries that failed until then: refusals by full nodes, and clients that found no
            place in the queue or waited too long. The same client may have several. Those who are
            left out go on trying.
        left_out: clients for which there is no room.
        accepts_per_second: the most that a node has let in, in a second.
        peak_busy: the busiest that a process' core was, 0 to 1, with events and accepting.
        steady_busy: the same without accepting, when all are in.
        longest_queue: the most clients that waited at a node.
    """

    seconds: float | None
    half_seconds: float | None
    refused: float
    left_out: float
    accepts_per_second: float
    peak_busy: float
    steady_busy: float
    longest_queue: float


def storm_of_the_lab(load: LoadResult, costs: Costs) -> Storm:
    """What the storm of the lab was, to compare its time with that of the simulation.

    Args:
        load: of stage 9, which cuts all; each client returns after a random part of a second.
        costs: as they were fitted to that run, with `reconnect_us`.
    """
    assert costs.reconnect_us is not None  # noqa: S101 - that stage is what it is measured in
    rate = load.rate or 0.0
    share = load.workload.mean_subscriptions / len(load.workload.channels)
    return Storm(
        clients=load.connections,
        nodes=1,
        present=0,
        room=math.inf,
        processes=1,
        busy=lambda n: costs.cores(round(n), rate, rate * n * share),
        connect_us=costs.reconnect_us,
        accepts_per_second=RECONNECTS_PER_SECOND,
        spread_seconds=1.0,
    )


def simulate(storm: Storm) -> Calm:
    """Let the clients come back.

    Raises:
        ValueError: no node remains.
    """
    if storm.nodes < 1:
        raise ValueError(f"{storm.nodes} nodes remain: allowed is 1 or more")
    node = _Node(storm)
    while not node.is_calm and node.now < LONGEST_SECONDS:
        node.step()
    return node.result()


def accept_rate(storm: Storm, connections: float) -> float:
    """Clients that a node can let in a second while it has so many, as `AcceptPace` decides."""
    share = max(1 - AcceptPace.RESERVE - storm.busy(connections), AcceptPace.FLOOR)
    rate = max(share * 1e6 / storm.connect_us, AcceptPace.TRICKLE_PER_SECOND)
    return min(rate, storm.accepts_per_second) * storm.processes


class _Node:
    """One of the nodes, with its share of the clients."""

    def __init__(self, storm: Storm) -> None:
        self._storm = storm
        self._coming = storm.clients / storm.nodes
        self._fits = min(self._coming, max(0.0, storm.room - storm.present))
        self._in = self._refused = self._fastest = self._longest = 0.0
        self._busiest = storm.busy(storm.present)
        self._half_at: float | None = None
        self._step = 0
        # By number of failures: how the flow of arrivals changes at a step.
        self._changes: list[defaultdict[int, float]] = [
            defaultdict(float) for _ in range(_ATTEMPTS_MAX + 1)
        ]
        self._flows = [0.0] * (_ATTEMPTS_MAX + 1)
        self._queue: deque[tuple[int, int, float]] = deque()
        self._queued = 0.0
        self._second: deque[float] = deque(maxlen=round(1 / STEP_SECONDS))
        self._begin()

    def _begin(self) -> None:
        """Everybody notices between two moments, and then waits for a first time."""
        storm, failures = self._storm, min(self._storm.failures, _ATTEMPTS_MAX)
        first, last = storm.notice_seconds
        parts = max(1, round((last - first) / STEP_SECONDS))
        most = storm.spread_seconds
        for part in range(parts):
            after = first + (last - first) * part / parts
            self._come(self._coming / parts, failures, after, most)

    def _come(
        self, count: float, failures: int, after: float = 0.0, most: float | None = None
    ) -> None:
        """Have so many come after a delay and a random part of `most`, evenly."""
        if most is None:
            most = min(_RETRY_MAX_SECONDS, _RETRY_MIN_SECONDS * 2**failures)
        steps = max(1, round(most / STEP_SECONDS))
        begin = self._step + 1 + round(after / STEP_SECONDS)
        self._changes[failures][begin] += count / steps
        self._changes[failures][begin + steps] -= count / steps

    @property
    def now(self) -> float:
        return self._step * STEP_SECONDS

    @property
    def is_calm(self) -> bool:
        return self._fits - self._in <= max(_NOBODY, 1e-9 * self._coming)

    def step(self) -> None:
        """Let a twentieth of a second pass."""
        self._step += 1
        self._arrive()
        self._let_go()
        storm, connections = self._storm, self._storm.present + self._in
        room = accept_rate(storm, connections) * STEP_SECONDS
        served = entered = 0.0
        while self._queue and served < room:
            since, failures, count = self._queue.popleft()
            taken = min(count, room - served)
            if count > taken:
                self._queue.appendleft((since, failures, count - taken))
            admitted = min(taken, self._fits - self._in)
            self._in += admitted
            entered += admitted
            self._fail(taken - admitted, failures)
            served += taken
            self._queued -= taken
        self._note(served, entered)

    def _arrive(self) -> None:
        for failures, changes in enumerate(self._changes):
            self._flows[failures] += changes.pop(self._step, 0.0)
            count = self._flows[failures]
            if count <= 0:
                continue
            place = max(0.0, QUEUE_MAX * self._storm.processes - self._queued)
            waits = min(count, place)
            if waits:
                self._queue.append((self._step, failures, waits))
                self._queued += waits
            self._fail(count - waits, failures, after=_DIAL_SECONDS)
        self._longest = max(self._longest, self._queued)

    def _let_go(self) -> None:
        """Those who have waited for too long come again."""
        oldest = self._step - round(_DIAL_SECONDS / STEP_SECONDS)
        while self._queue and self._queue[0][0] <= oldest:
            _, failures, count = self._queue.popleft()
            self._queued -= count
            self._fail(count, failures)

    def _fail(self, count: float, failures: int, *, after: float = 0.0) -> None:
        if count > 0:
            self._refused += count
            self._come(count, min(failures + 1, _ATTEMPTS_MAX), after)

    def _note(self, served: float, entered: float) -> None:
        storm = self._storm
        self._second.append(entered)
        self._fastest = max(self._fastest, sum(self._second))
        accepting = served / STEP_SECONDS / storm.processes * storm.connect_us / 1e6
        busy = storm.busy(storm.present + self._in) + accepting
        self._busiest = min(1.0, max(self._busiest, busy))
        if self._half_at is None and self._in * 2 >= self._coming:
            self._half_at = self.now

    def result(self) -> Calm:
        storm = self._storm
        return Calm(
            seconds=self.now if self.is_calm else None,
            half_seconds=self._half_at if self._coming else 0.0,
            refused=self._refused * storm.nodes,
            left_out=(self._coming - self._fits) * storm.nodes,
            accepts_per_second=self._fastest,
            peak_busy=self._busiest,
            steady_busy=min(1.0, storm.busy(storm.present + self._in)),
            longest_queue=self._longest,
        )
