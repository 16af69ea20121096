"""Merges the values of several workers into those of their server, by the rule of each field.

    @attrs.frozen
    class LoadStats:
        cpu_percent: float = merged(MEAN)
        is_lagging: bool = merged(ALL, STAYING)

Pure functions, so a test can check what a scrape shows after a crash without causing one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from itertools import chain
from typing import Any, Final, TypeAlias, TypeVar

import attrs

from trio_odin.ledger.counters import total

T = TypeVar("T")
How: TypeAlias = Callable[[Sequence[Any]], Any]

_RULE: Final = "merged"


class Among(Enum):
    """Which workers count."""

    EVERYBODY = "all workers"
    STAYING = "those that do not leave; if all do, all"
    TAKING = "those of them that take clients; if none does, all of them"


STAYING: Final = Among.STAYING
TAKING: Final = Among.TAKING


@attrs.frozen
class Rule:
    """`how` makes one value of several. A counter keeps what workers that ended had counted."""

    how: How
    among: Among = Among.EVERYBODY
    is_counter: bool = False


def _same(values: Sequence[Any]) -> Any:
    return values[0]


def _concatenated(values: Sequence[Iterable[Any]]) -> list[Any]:
    return list(chain.from_iterable(values))


def _union(values: Sequence[Iterable[Any]]) -> list[Any]:
    return sorted(set(chain.from_iterable(values)))


def _counts(values: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """One value for each key of any of them, in order."""
    keys = dict.fromkeys(chain.from_iterable(values))
    return {key: sum(value.get(key, 0) for value in values) for key in keys}


def _seconds(state: Any) -> float:
    """How long a state has lasted: the state is that number, or has it as `seconds`."""
    return float(getattr(state, "seconds", state))


def _longest(states: Sequence[Any]) -> Any:
    return max((state for state in states if state is not None), key=_seconds, default=None)


def _shortest_of_all(seconds: Sequence[float | None]) -> float | None:
    known = [value for value in seconds if value is not None]
    return min(known) if len(known) == len(seconds) else None


def _longest_or_never(ages: Sequence[float | None]) -> float | None:
    return max(ages, key=lambda age: math.inf if age is None else age)


SUM: Final = Rule(sum)
MAX: Final = Rule(max)
MEAN: Final = Rule(statistics.fmean)
ALL: Final = Rule(all)
ANY: Final = Rule(any)
# One value for the whole server, or the same in all workers.
SAME: Final = Rule(_same)
CONCATENATED: Final = Rule(_concatenated)
UNION: Final = Rule(_union)
COUNTS: Final = Rule(_counts)
# A state in which any worker may be: that of the one in it longest; None: no worker is in it.
LONGEST: Final = Rule(_longest)
# A state in which all workers must be: it began with the last one; None: one is not in it.
SHORTEST_OF_ALL: Final = Rule(_shortest_of_all)
# The greatest age. None is the age of something that never came, and greater than all others.
LONGEST_OR_NEVER: Final = Rule(_longest_or_never)
COUNTER: Final = Rule(sum, is_counter=True)
# For ledgers.
TOTAL: Final = Rule(total, is_counter=True)


def merged(rule: Rule, among: Among = Among.EVERYBODY) -> Any:
    """A field that is merged by `rule`, over the workers `among`."""
    return attrs.field(metadata={_RULE: attrs.evolve(rule, among=among)})


def counters_of(stats: Any, path: str = "") -> dict[str, Any]:
    """All counters in `stats` and its parts, by their paths such as `nats.reconnects`."""
    found: dict[str, Any] = {}
    for field in attrs.fields(type(stats)):
        value, rule = getattr(stats, field.name), field.metadata.get(_RULE)
        if rule is None:
            found |= counters_of(value, f"{path}{field.name}.")
        elif rule.is_counter:
            found[path + field.name] = value
    return found


def merge_stats(groups: Mapping[Among, Sequence[T]], past: Mapping[str, Any], path: str = "") -> T:
    """Merge the stats of several workers into one.

    Args:
        groups: the stats of the workers in each group; none is empty.
        past: what workers that have ended had counted, by path; added to the counters.
        path: the place of these stats in the whole, with a dot at the end; empty for the whole.
    """
    first = groups[Among.EVERYBODY][0]
    values: dict[str, Any] = {}
    for field in attrs.fields(type(first)):  # type: ignore[arg-type]
        name, rule = field.name, field.metadata.get(_RULE)
        of_each = {among: [getattr(one, name) for one in group] for among, group in groups.items()}
        if rule is None:
            values[name] = merge_stats(of_each, past, f"{path}{name}.")
            continue
        figures = of_each[rule.among]
        if rule.is_counter and path + name in past:
            figures = [past[path + name], *figures]
        values[name] = rule.how(figures)
    return type(first)(**values)
