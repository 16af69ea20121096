"""A load: many subscribers in one process that check every envelope they receive.

    LoadPlan ──► run_load ──► LoadReport
                    │ asyncio, uvloop, picows: the only waiting
                    ▼
                  Books      pure: numbering, foreign channels, completeness, latency

Architecture invariant: no server code is imported here. asyncio, uvloop and picows are: a client
has to be much cheaper than the server it measures on the same machine.
"""

from trio_odin.lab.load.plan import LoadImpossible, LoadPlan, Phase, Progress
from trio_odin.lab.load.report import LoadReport
from trio_odin.lab.load.runner import run_load

__all__ = ["LoadImpossible", "LoadPlan", "LoadReport", "Phase", "Progress", "run_load"]
