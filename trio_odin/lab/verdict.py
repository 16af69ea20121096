"""What a lab found, as data: `verdict.json` is a `LabResult`."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import msgspec

from trio_odin.lab.load.criteria import Check
from trio_odin.lab.load.result import LoadResult
from trio_odin.lab.provenance import Provenance


@attrs.frozen(kw_only=True)
class Prediction:
    """What the model, fitted on smaller stages only, says beside what was measured."""

    what: str  # "CPU" or "memory"
    unit: str  # "cores" or "MiB"
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative to what was measured; above 0: predicted too much."""
        return self.predicted / self.measured - 1


@attrs.frozen(kw_only=True)
class HostSample:
    """A second of the server's cgroup: what its host pays, the kernel's part included."""

    at: float  # seconds since the first connect, as in the samples of the load
    cores: float
    memory_mib: float


@attrs.frozen(kw_only=True)
class StageResult:
    """What one stage found.

    Args:
        title: one line for people.
        plan: what the plan expects, in its own figures; "" beyond the plan.
        wanted_seconds: how long the plan wants it held; 0 where there is nothing to hold.
        settings: of the server, those that are not the lab's.
        failure: why there is no load result, a sentence; "" if there is one or none is due.
        note: what a reader has to know, such as that a failing check is what the stage shows.
    """

    number: int
    title: str
    plan: str = ""
    checks: list[Check] = attrs.field(factory=list)
    load: LoadResult | None = None
    host: list[HostSample] = attrs.field(factory=list)
    predictions: list[Prediction] = attrs.field(factory=list)
    seconds: float = 0.0
    wanted_seconds: float = 0.0
    settings: Mapping[str, str] = attrs.field(factory=dict)
    failure: str = ""
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether it ran and every criterion was met."""
        return not self.failure and bool(self.checks) and all(c.is_met for c in self.checks)

    @property
    def is_shortened(self) -> bool:
        """Whether it was held for less than the plan wants."""
        return self.load is not None and round(self.load.hold_seconds) < self.wanted_seconds


@attrs.frozen(kw_only=True)
class LabResult:
    """All of it.

    Args:
        provenance: its settings are the server's where a stage does not say otherwise.
        isolation: how the hosts were separated, a sentence for each part.
        limits: of the server's machine, such as {"CPU": "1.9 cores", "memory": "7,168 MiB"}.
        components: what ran where, with its version: {"backend": ["nats-server 2.15.1", …]}.
        settings: the server's environment, as it was set where a stage does not say otherwise.
        command: what repeats this run.
        not_run: numbers of the stages that were left out, or not come to.
    """

    provenance: Provenance
    isolation: list[str]
    limits: Mapping[str, str]
    components: Mapping[str, list[str]]
    settings: Mapping[str, str]
    command: str
    stages: list[StageResult]
    seconds: float = 0.0
    interrupted: bool = False
    not_run: list[int] = attrs.field(factory=list)

    @property
    def passed(self) -> bool:
        """Whether every stage that was to run ran and passed, and there was one."""
        all_passed = all(stage.passed for stage in self.stages)
        return bool(self.stages) and not self.interrupted and all_passed

    def stage(self, number: int) -> StageResult | None:
        """The stage of that number, if it ran."""
        return next((stage for stage in self.stages if stage.number == number), None)

    def as_json(self) -> bytes:
        """Indented, with the names of the attributes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)
