"""Users behind the proxy: each comes back when it is sent away, and keeps its own books."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence

import attrs
import msgspec
import trio

from tests.faults.attacker import CLOSE, PING, PONG, Attacker, Attackers
from tests.faults.publisher import CHANNELS, Publisher
from trio_odin.lab.fleet.dialects import masked_frame
from trio_odin.lab.fleet.events import Event, bench_event
from trio_odin.lab.rehearsals import Rehearsal

_ANSWER_SECONDS = 30.0
_RETRY_SECONDS = 1.0
_NEVER_NS = 2**63
# Around the time that a user was away: an event is on its way for a moment before it is seen.
_EDGE_NS = 1_000_000_000


class _Message(msgspec.Struct):
    type: str
    seq: int = 0
    offset: int | None = None
    epoch: str | None = None
    reconnect_in_ms: int = 0


_read = msgspec.json.Decoder(_Message).decode


@attrs.frozen
class Away:
    """From the end of a connection to the next subscription, monotonic nanoseconds."""

    since_ns: int
    until_ns: int

    def explains(self, event: Event) -> bool:
        return self.since_ns - _EDGE_NS <= event.due_ns <= self.until_ns + _EDGE_NS


@attrs.define(eq=False)
class User:
    """One user.

    Args:
        port: of the proxy.
        channels: that it wants.
        resumes: asks for what it missed, by the offset that it knows.
        source: the address that it comes from.

    Attributes:
        events: how often each event came, by number.
        rejected: answers to the upgrade other than 101, by status; 0: none at all.
        unanswered: connections that ended after the upgrade and before the first acknowledgement.
        closed: how connections ended, by code; 1006: without a word.
        told: notices that said when to come back.
        gaps: numbers missing in `seq` while it was connected.
        incomplete: what the server said it could not deliver: resumes, and gaps before it.
        again: events that an earlier connection had brought: this node was behind that one. Their
            offset says so, and a client that looks at it ignores them.
    """

    port: int
    channels: Sequence[str]
    resumes: bool = False
    source: str = "127.0.0.1"
    events: Counter[int] = attrs.field(factory=Counter)
    foreign: int = 0
    rejected: Counter[int] = attrs.field(factory=Counter)
    unanswered: int = 0
    closed: Counter[int] = attrs.field(factory=Counter)
    away: list[Away] = attrs.field(factory=list)
    told: int = 0
    gaps: int = 0
    incomplete: int = 0
    again: int = 0
    is_subscribed: bool = False
    subscribed_ns: int = 0
    offset: int | None = None
    epoch: str | None = None
    _seq: int = 0
    _code: int = 1006
    _lost_ns: int = 0
    _slot_ns: int = 0
    _known: int = 0  # the offset up to which this connection can bring nothing new
    _is_node_behind: bool = False

    async def stay(self) -> None:
        """Be connected, for ever: come back at once when it ends, later when refused."""
        while True:
            try:
                await self._connection()
            except (OSError, trio.BrokenResourceError, trio.TooSlowError):
                self.rejected[0] += not self.is_subscribed
            if self.is_subscribed:
                self.is_subscribed = False
                self._lost_ns = min(time.monotonic_ns(), self._slot_ns)
                self.closed[self._code] += 1
            else:
                await trio.sleep(random.uniform(0.1, 1) * _RETRY_SECONDS)

    async def _connection(self) -> None:
        self._seq, self._code, self._slot_ns = 0, 1006, _NEVER_NS
        self._known = self.offset or 0
        sockets = Attackers(self.port)
        try:
            with trio.fail_after(_ANSWER_SECONDS):
                one = await sockets.tcp(source=self.source)
                status = await one.upgrade()
            if status != 101:
                self.rejected[status] += 1
                return
            await one.say(self._subscription())
            await self._receive(one)
        finally:
            sockets.leave()
        self.unanswered += not self.is_subscribed

    def _subscription(self) -> str:
        command: dict[str, object] = {"type": "subscribe", "channels": self.channels}
        if self.resumes:
            command["notices"] = True  # so the first answer has an offset, too
        if self.resumes and self._lost_ns:
            command |= {"after": self.offset or 0, "epoch": self.epoch}
        return msgspec.json.encode(command).decode()

    async def _receive(self, one: Attacker) -> None:
        while True:
            for head, payload in one.frames():
                if head == PING:
                    await one.send(masked_frame(PONG, payload))
                elif head == CLOSE:
                    self._code = int.from_bytes(payload[:2], "big") or 1005
                    await one.send(masked_frame(CLOSE, payload[:2]))
                    return
                else:
                    self._take(payload)
            if not await one.read_more():
                return

    def _take(self, payload: bytes) -> None:
        message = _read(payload)
        match message.type:
            case "price:update":
                self._take_event(message, payload)
            case "subscription_ack":
                self._take_ack(message)
            case "server:draining":
                self.told += 1
                self._slot_ns = time.monotonic_ns() + message.reconnect_in_ms * 1_000_000
            case "resume_incomplete" | "gap":
                self.incomplete += not self._is_node_behind
            case "resumed" | "upstream":
                pass  # all that it had missed has come; the state of NATS
            case _:
                raise AssertionError(payload)

    def _take_ack(self, message: _Message) -> None:
        self.is_subscribed = True
        now = time.monotonic_ns()
        self.subscribed_ns = self.subscribed_ns or now
        if self._lost_ns:
            self.away.append(Away(self._lost_ns, now))
        if self.offset is None:
            self.offset = message.offset
        self._is_node_behind = message.offset is not None and message.offset < self._known
        self.epoch = message.epoch or self.epoch

    def _take_event(self, message: _Message, payload: bytes) -> None:
        self.gaps += message.seq - self._seq - 1
        self._seq = message.seq
        event = bench_event(payload)
        assert event is not None, payload
        if message.offset is not None and message.offset <= self._known:
            self.again += 1
            return
        self.events[event.number] += 1
        self.foreign += event.channel not in self.channels
        if message.offset is not None:
            self.offset = max(self.offset or 0, message.offset)


@attrs.frozen
class Verdict:
    """What became of the events for some users.

    Attributes:
        expected: deliveries of all events since each of them subscribed first.
        missed: of those, events that came while the user was away.
        declared: of these, those of users whom a server told that something may be missing.
        lost: those missing for which there is no such excuse.
    """

    users: int
    expected: int
    missed: int
    lost: int
    repeated: int
    foreign: int
    gaps: int
    incomplete: int
    declared: int
    again: int
    told: int
    returns: int
    rejected: dict[int, int]
    unanswered: int
    closed: dict[int, int]
    away_p50_ms: float
    away_max_ms: float


def verdict(users: Iterable[User], events: Iterable[Event]) -> Verdict:
    """The books of `users`, when nothing is under way."""
    users = list(users)
    by_channel: dict[str, list[Event]] = {}
    for event in events:
        by_channel.setdefault(event.channel, []).append(event)
    expected = missed = declared = lost = 0
    for user in users:
        wanted = [
            event
            for channel in user.channels
            for event in by_channel.get(channel, ())
            if event.due_ns > user.subscribed_ns
        ]
        expected += len(wanted)
        missing = [event for event in wanted if not user.events[event.number]]
        excused = sum(1 for event in missing if any(a.explains(event) for a in user.away))
        missed += excused
        declared += excused * bool(user.incomplete)
        lost += len(missing) - excused
    away = sorted((one.until_ns - one.since_ns) / 1e6 for user in users for one in user.away)
    return Verdict(
        users=len(users),
        expected=expected,
        missed=missed,
        lost=lost,
        repeated=sum(n - 1 for user in users for n in user.events.values()),
        foreign=sum(user.foreign for user in users),
        gaps=sum(user.gaps for user in users),
        incomplete=sum(user.incomplete for user in users),
        declared=declared,
        again=sum(user.again for user in users),
        told=sum(user.told for user in users),
        returns=len(away),
        rejected=dict(sum((user.rejected for user in users), Counter())),
        unanswered=sum(user.unanswered for user in users),
        closed=dict(sum((user.closed for user in users), Counter())),
        away_p50_ms=away[len(away) // 2] if away else 0.0,
        away_max_ms=away[-1] if away else 0.0,
    )


def check_books(
    row: Rehearsal,
    publisher: Publisher,
    resuming: Sequence[User],
    others: Sequence[User] = (),
    *,
    may_declare: bool = False,
) -> tuple[Verdict, Verdict]:
    """Fill in `row`, and check both kinds of users; everything has to have arrived.

    Who resumes has everything once. Who does not has everything but what came while it was away,
    and each of those events is in `missed`. With `may_declare` a server may have told who resumes
    that something may be missing.
    """
    events = list(publisher.taken.values())
    assert events, "nothing was published"
    resumed, missing = verdict(resuming, events), verdict(others, events)
    both = verdict([*resuming, *others], events)
    row.users = both.users
    row.sent_away = both.returns
    row.refused = sum(both.rejected.values()) + both.unanswered
    row.away_p50_ms, row.away_max_ms = both.away_p50_ms, both.away_max_ms
    row.missed = missing.missed
    row.lost = resumed.missed - resumed.declared + both.lost
    row.repeated = both.repeated
    if both.again:
        row.notes.append(f"{both.again} came again from a node that was behind the one before")
    if resumed.incomplete:
        row.notes.append(
            f"{resumed.incomplete} who resume were told that something may be missing "
            f"({resumed.declared:,} events)"
        )
    assert (row.lost, both.repeated, both.gaps) == (0, 0, 0), both
    assert may_declare or not both.incomplete, both
    return resumed, missing


@attrs.define
class Crowd:
    """Some users, half of them with resume."""

    nursery: trio.Nursery
    port: int
    users: list[User] = attrs.field(factory=list)

    async def join(self, count: int, *, resumes: bool, seconds: float = 60.0) -> list[User]:
        """More users, with three channels each; returns when all are subscribed."""
        first = len(self.users)
        joined = [
            User(self.port, random.Random(first + n).sample(CHANNELS, 3), resumes)
            for n in range(count)
        ]
        self.users += joined
        for user in joined:
            self.nursery.start_soon(user.stay)
            await trio.sleep(0.001)  # a crowd, not a flood
        await self.wait_all(seconds)
        return joined

    async def wait_all(self, seconds: float = 60.0) -> float:
        """Wait until all are subscribed; how long that took."""
        begun = trio.current_time()
        with trio.fail_after(seconds):
            while not all(user.is_subscribed for user in self.users):
                await trio.sleep(0.02)
        return trio.current_time() - begun

    async def wait_quiet(self, seconds: float = 20.0) -> None:
        """Wait until nothing more comes; nothing may be published any more."""
        last, quiet = -1, 0
        with trio.move_on_after(seconds):
            while quiet < 10:
                await trio.sleep(0.1)
                total = sum(user.events.total() for user in self.users)
                quiet = quiet + 1 if total == last else 0
                last = total
