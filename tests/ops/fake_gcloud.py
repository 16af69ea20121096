#!/usr/bin/env -S python3 -IS
"""Stands in for gcloud: notes each call in $FAKE/calls, and knows what was created.

Where $FAKE/machine is, it stands for the machines: `scp` copies to its tmp, and `ssh` runs the
command with that as /tmp and its srv as /srv/odin.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

FAKE = Path(os.environ["FAKE"])
MACHINE = FAKE / "machine"


def listed(words: list[str], arguments: list[str]) -> None:
    (name,) = (part.removeprefix("--filter=name=") for part in arguments if "=name=" in part)
    if not (FAKE / "-".join(["there", *words[: words.index("list")], name])).exists():
        return
    asked = " ".join(arguments)
    if "value(address)" in asked:
        answer = "203.0.113.80"  # of the balancer
    elif "networkInterfaces" in asked:
        answer = "203.0.113.9" if "natIP" in asked else "10.10.0.2"
    else:
        answer = name
    sys.stdout.write(f"{answer}\n")


def on_machine(command: str) -> int:
    text = command.replace("/tmp", str(MACHINE / "tmp")).replace("/srv/odin", str(MACHINE / "srv"))
    environment = {**os.environ, "ODIN_ROOT": str(MACHINE / "srv")}
    return subprocess.run(["bash", "-c", text], env=environment, check=False).returncode


def reached() -> bool:
    """Not before as many tries as $FAKE/unreachable says."""
    tries = FAKE / "unreachable"
    left = int(tries.read_text()) if tries.exists() else 0
    if left:
        tries.write_text(str(left - 1))
    return not left


def main() -> int:
    arguments = [argument for argument in sys.argv[1:] if argument != "--quiet"]
    with (FAKE / "calls").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    if (FAKE / "expired").exists():
        sys.stderr.write("ERROR: Reauthentication failed.\n")
        return 1
    words = [argument for argument in arguments if not argument.startswith("-")]
    if "ssh" in words and not reached():
        return 255
    if "ssh" in words and MACHINE.exists():
        (command,) = (part for part in arguments if part.startswith("--command="))
        return on_machine(command.removeprefix("--command="))
    if "scp" in words and MACHINE.exists():
        for file in words[words.index("scp") + 1 : -1]:
            shutil.copy(file, MACHINE / "tmp")
    if "list" in words:
        listed(words, arguments)
    for verb in {"create", "delete"} & set(words):
        at = words.index(verb)
        (name, *_) = (word for word in words[at + 1 :] if word != "http")  # a kind of health check
        there = FAKE / "-".join(["there", *words[:at], name])
        there.touch() if verb == "create" else there.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
