"""What the publisher is told and when its ticks are due. Decides with numbers, never waits.

A run is open loop: tick n is due at start + n/rate whatever became of the ticks before it. That is
what makes a load honest: a slow moment is not followed by a kind pause, but by what it held up.
"""

from __future__ import annotations

import math

import attrs
import msgspec

from trio_odin.lab.market import TOKEN_RULE, TOKENS_MAX, are_tokens

RATE_MAX = 100_000
RATE_RULE = f"a number above 0 and at most {RATE_MAX}"
_DURATION_MAX_MS = 365 * 24 * 3600 * 1000
_CONNECTIONS_MAX = 1_000_000

_RULES = {
    "messagesPerSecond": RATE_RULE,
    "tokens": f"a list of 1 to {TOKENS_MAX} symbols, {TOKEN_RULE}",
    "duration": f"milliseconds, a number from 0 (no end) to {_DURATION_MAX_MS}",
    "connections": f"a whole number from 0 to {_CONNECTIONS_MAX}",
}
_ACTION_RULE = '"action" is "start", "stop" or "configure"'
_COMMAND_RULE = f"allowed is a JSON object: {_ACTION_RULE}; " + "; ".join(
    f'"{name}", optional, is {rule}' for name, rule in _RULES.items()
)
_SHOWN_CHARS = 40


@attrs.frozen
class Schedule:
    """When the ticks of one run are due. Times in monotonic seconds, `rate` in ticks a second."""

    start: float
    rate: float
    end: float = math.inf

    def at(self, tick: int) -> float:
        """When tick `tick` is due; the first one is 0."""
        return self.start + tick / self.rate

    def due(self, now: float) -> int:
        """How many ticks have come in all by `now`. One that falls on `end` or later never comes."""
        count = max(0, math.floor((min(now, self.end) - self.start) * self.rate) + 1)
        # The product and the quotient round differently. `at` decides, or whoever sleeps until
        # then could find nothing due.
        while self._has_come(count, now):
            count += 1
        while count and not self._has_come(count - 1, now):
            count -= 1
        return count

    def _has_come(self, tick: int, now: float) -> bool:
        at = self.at(tick)
        return at <= now and at < self.end

    def wake_at(self, done: int) -> float:
        """When there is something to do again after `done` ticks: the next tick, or the end."""
        return min(self.at(done), self.end)

    def is_over(self, now: float) -> bool:
        """Whether no further tick will come."""
        return now >= self.end


@attrs.frozen
class Configuration:
    """What a run publishes. `connections` means something to the load's side alone."""

    rate: float
    tokens: tuple[str, ...]
    connections: int = 0


@attrs.frozen
class State:
    """The configuration, and the schedule of the run that is going on if there is one."""

    configuration: Configuration
    schedule: Schedule | None = None


@attrs.frozen
class Answer:
    """How a command ended. `message` is one sentence for a person."""

    success: bool
    message: str


class _Command(msgspec.Struct, rename="camel"):
    action: str
    messages_per_second: float | None = None
    tokens: list[str] | None = None
    duration: float | None = None
    connections: int | None = None


_command = msgspec.json.Decoder(_Command)


def is_rate(rate: float) -> bool:
    """Whether `rate` follows `RATE_RULE`."""
    return math.isfinite(rate) and 0 < rate <= RATE_MAX


def decide(state: State, body: bytes, now: float) -> tuple[State, Answer]:
    """What the command in `body`, the body of a POST, makes of `state` at `now`.

    Any bytes are allowed. A command that is refused leaves the state as it was.
    """
    try:
        command = _command.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return state, Answer(False, f"Not understood ({error}): {_COMMAND_RULE}")
    match command.action:
        case "start":
            return _start(state, command, now)
        case "stop":
            return _stop(state)
        case "configure":
            return _configure(state, command, now)
    shown = command.action[:_SHOWN_CHARS]
    return state, Answer(False, f"Unknown action {shown!r}: {_ACTION_RULE}")


def _start(state: State, command: _Command, now: float) -> tuple[State, Answer]:
    if state.schedule is not None:
        return state, Answer(False, "Already publishing: stop or configure it")
    if refusal := _refusal(command):
        return state, refusal
    configuration = _applied(command, state.configuration)
    schedule = Schedule(now, configuration.rate, _end(command, now, otherwise=math.inf))
    return State(configuration, schedule), Answer(True, f"Publishing {_summary(configuration)}")


def _stop(state: State) -> tuple[State, Answer]:
    # A stop asks for silence: that there already is silence is no failure.
    message = "Nothing was being published" if state.schedule is None else "Publishing stopped"
    return attrs.evolve(state, schedule=None), Answer(True, message)


def _configure(state: State, command: _Command, now: float) -> tuple[State, Answer]:
    if refusal := _refusal(command):
        return state, refusal
    configuration = _applied(command, state.configuration)
    message = f"Configured {_summary(configuration)}"
    schedule = state.schedule
    if schedule is None:
        if command.duration is not None:
            message += "; a duration is for start, or for a run that is going on: not used"
        return State(configuration), Answer(True, message)
    end = _end(command, now, otherwise=schedule.end)
    if configuration.rate != schedule.rate:
        # Its first tick is a whole step away, so that asking often does not publish more.
        schedule = Schedule(now + 1 / configuration.rate, configuration.rate, end)
    return State(configuration, attrs.evolve(schedule, end=end)), Answer(True, message)


def _refusal(command: _Command) -> Answer | None:
    """The answer that names the first value out of its bounds; None if all are good."""
    good = {
        "messagesPerSecond": _is_good(command.messages_per_second, is_rate),
        "tokens": command.tokens is None or are_tokens(command.tokens),
        "duration": command.duration is None or 0 <= command.duration <= _DURATION_MAX_MS,
        "connections": command.connections is None or 0 <= command.connections <= _CONNECTIONS_MAX,
    }
    for name, is_good in good.items():
        if not is_good:
            return Answer(False, f"{name} has a value that is not allowed: it is {_RULES[name]}")
    return None
