"""`python -m trio_odin` is `trio-odin`."""

from trio_odin.cli import main

main(prog_name="trio-odin")
