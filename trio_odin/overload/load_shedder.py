"""Load shedding: which publications are given up while the server has too much work."""

from __future__ import annotations

import attrs

from trio_odin.overload.admission import is_still_over
from trio_odin.overload.load import Load

_STEP_PERCENT = 10
_CPU_HYSTERESIS_PERCENT = 10.0
_MEMORY_HYSTERESIS_PERCENT = 5.0
_ALL_PERCENT = 100


@attrs.define
class LoadShedder:
    """Sheds a share of the publications, which grows and falls with the load.

    Each sample at or over the CPU threshold adds 10 points to the share. Each sample below it by
    more than the hysteresis takes 10 off. So the share settles where the server can do the rest of
    the work. The CPU is that of the server against its limit; turnover does not count, as it takes
    what is left. A busy loop alone sheds nothing: it joins its writes.

    Over the memory threshold everything is shed, because what waits for clients fills the memory.
    A threshold of 0 means none.
    """

    cpu_pause_percent: float = 0.0
    memory_pause_percent: float = 0.0
    _cpu_share: int = attrs.field(default=0, init=False)
    _is_memory_over: bool = attrs.field(default=False, init=False)
    _owed: int = attrs.field(default=0, init=False)

    @property
    def percent(self) -> int:
        """The percentage of publications that are shed now."""
        return _ALL_PERCENT if self._is_memory_over else self._cpu_share

    def observe(self, load: Load) -> None:
        """Take in the sample of one second."""
        if self.cpu_pause_percent and load.serving_percent >= self.cpu_pause_percent:
            self._cpu_share = min(self._cpu_share + _STEP_PERCENT, _ALL_PERCENT)
        elif not is_still_over(
            True, load.serving_percent, self.cpu_pause_percent, _CPU_HYSTERESIS_PERCENT
        ):
            self._cpu_share = max(self._cpu_share - _STEP_PERCENT, 0)
        self._is_memory_over = is_still_over(
            self._is_memory_over,
            load.memory_percent,
            self.memory_pause_percent,
            _MEMORY_HYSTERESIS_PERCENT,
        )

    def sheds(self) -> bool:
        """Whether to shed the next publication. Shed ones are spread evenly over the others."""
        self._owed += self.percent
        if self._owed < _ALL_PERCENT:
            return False
        self._owed -= _ALL_PERCENT
        return True
