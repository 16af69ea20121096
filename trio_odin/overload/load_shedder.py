"""Which publications are shed while the server has more work than it can do."""

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
    """A share of publications to shed, which grows and falls with the load. A threshold 0 is none.

    Each sample at or over the threshold of the CPU, the container's, adds 10 points, each one below
    it (by more than the hysteresis) takes 10 off, so the share settles where the work that is left
    can be done. Clients that come or go do not count: they take what is left. A busy loop alone
    sheds nothing: it joins its writes. Over the threshold of the memory everything is shed: what
    waits for a client is what fills it.
    """

    cpu_pause_percent: float = 0.0
    memory_pause_percent: float = 0.0
    _cpu_share: int = attrs.field(default=0, init=False)
    _is_memory_over: bool = attrs.field(default=False, init=False)
    _owed: int = attrs.field(default=0, init=False)

    @property
    def percent(self) -> int:
        """How many of a hundred publications are shed at present."""
        return _ALL_PERCENT if self._is_memory_over else self._cpu_share

    def observe(self, load: Load) -> None:
        """Take in the sample of a second."""
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
        """Whether the next publication is shed: evenly, of any ten as many as the share says."""
        self._owed += self.percent
        if self._owed < _ALL_PERCENT:
            return False
        self._owed -= _ALL_PERCENT
        return True
