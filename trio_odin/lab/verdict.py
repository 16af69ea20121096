"""The result of a lab, as data: `verdict.json` is a `LabResult`."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import msgspec

from trio_odin.lab.load.criteria import Check
from trio_odin.lab.load.result import LoadResult
from trio_odin.lab.provenance import Provenance


@attrs.frozen(kw_only=True)
class Prediction:
    """A prediction of the model, fitted only to smaller stages, and the measured figure."""

    what: str  # "CPU" or "memory"
    unit: str  # "cores" or "MiB"
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """The relative error; above 0: the prediction is too high."""
        return self.predicted / self.measured - 1


@attrs.frozen(kw_only=True)
class HostSample:
    """A second of the server's cgroup: the cost to its host, the kernel's part included."""

    at: float  # seconds since the first connect, as in the samples of the load
    cores: float
    memory_mib: float


@attrs.frozen(kw_only=True)
class StageResult:
    """The result of one stage.

    Args:
        title: one line for people.
        plan: the plan's expectation, in its own figures; "" beyond the plan.
        wanted_seconds: the plan's length of the hold; 0 where there is nothing to hold.
        settings: settings of the server that differ from the lab's.
        failure: a sentence why there is no load result; "" if there is one or none is due.
        note: an explanation for readers, for instance that the stage is meant to fail a check.
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
        """Whether the hold was shorter than the plan's."""
        return self.load is not None and round(self.load.hold_seconds) < self.wanted_seconds


@attrs.frozen(kw_only=True)
class LabResult:
    """The result of a whole lab.

    Args:
        provenance: its settings are the server's unless a stage has others.
        isolation: a sentence for each part of the hosts' isolation.
        limits: of the server's machine, such as {"CPU": "1.9 cores", "memory": "7,168 MiB"}.
        components: programs by host, with versions: {"backend": ["nats-server 2.15.1", …]}.
        settings: the server's environment, unless a stage has another one.
        command: the command that repeats this run.
        not_run: numbers of the stages that were left out or not reached.
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
        """Whether there was a stage, and every planned stage ran and passed."""
        all_passed = all(stage.passed for stage in self.stages)
        return bool(self.stages) and not self.interrupted and all_passed

    def stage(self, number: int) -> StageResult | None:
        """The stage of that number, if it ran."""
        return next((stage for stage in self.stages if stage.number == number), None)

    def as_json(self) -> bytes:
        """Indented JSON with the names of the attributes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)
