"""The provenance of made-up measurements."""

from __future__ import annotations

from trio_odin.lab.machine import Machine
from trio_odin.lab.provenance import Provenance, server_code

MACHINE = Machine("a CPU", 2, 8.0, "Linux 6.8.0", "CPython 3.11.7", is_python_optimised=False)
ORIGIN = Provenance(
    date="2026-11-30T12:00:00+00:00",
    version="0.1.0",
    revision="0123456789abcdef" * 2 + "01234567",
    is_dirty=False,
    code=server_code(),
    machine=MACHINE,
    load_average=0.25,
    settings={},
)
