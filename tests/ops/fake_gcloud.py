#!/usr/bin/env -S python3 -IS
"""Stands in for gcloud: notes each call in $FAKE/calls, and knows what was created.

Where $FAKE/machine is, it stands for the machines: `scp` copies to its tmp, and `ssh` runs the
command with that as /tmp and its srv as /srv/odin.
"""

from __future__ import annotations

# Nothing else is imported, not even pathlib: the tests start this a thousand times.
import os
import sys

FAKE = os.environ["FAKE"]
MACHINE = f"{FAKE}/machine"
# The last words of commands; gcloud takes their options only after them.
COMMANDS = {
    "add-backend",
    "add-instances",
    "create",
    "delete",
    "list",
    "scp",
    "set-machine-type",
    "ssh",
    "start",
    "stop",
    "update",
}


def listed(words: list[str], arguments: list[str]) -> None:
    (name,) = (part.removeprefix("--filter=name=") for part in arguments if "=name=" in part)
    if not os.path.exists(f"{FAKE}/{'-'.join(['there', *words[: words.index('list')], name])}"):
        return
    asked = " ".join(arguments)
    if "value(address)" in asked:
        answer = "203.0.113.80"  # of the balancer
    elif "networkInterfaces" in asked:
        answer = "203.0.113.9" if "natIP" in asked else "10.10.0.2"
    else:
        answer = name
    sys.stdout.write(f"{answer}\n")


def on_machine(command: str) -> None:
    """Become the command."""
    text = command.replace("/tmp", f"{MACHINE}/tmp").replace("/srv/odin", f"{MACHINE}/srv")
    environment = {**os.environ, "ODIN_ROOT": f"{MACHINE}/srv"}
    os.execvpe("bash", ["bash", "-c", text], environment)


def reached() -> bool:
    """Not before as many tries as $FAKE/unreachable says."""
    tries = f"{FAKE}/unreachable"
    if not os.path.exists(tries):
        return True
    with open(tries, "r+") as file:
        left = int(file.read())
        if left:
            file.seek(0)
            file.write(str(left - 1))
            file.truncate()
    return not left


def main() -> int:
    arguments = [argument for argument in sys.argv[1:] if argument != "--quiet"]
    with open(f"{FAKE}/calls", "a") as calls:
        calls.write(f"{arguments!r}\n")
    if os.path.exists(f"{FAKE}/expired"):
        sys.stderr.write("ERROR: Reauthentication failed.\n")
        return 1
    at = next(at for at, argument in enumerate(arguments) if argument in COMMANDS)
    wrong = [one for one in arguments[:at] if one.startswith("-") and "--project=" not in one]
    if wrong:
        sys.stderr.write(f"ERROR: unrecognized arguments: {' '.join(wrong)}\n")
        return 2
    words = [argument for argument in arguments if not argument.startswith("-")]
    if "ssh" in words and not reached():
        return 255
    if "ssh" in words and os.path.exists(MACHINE):
        (command,) = (part for part in arguments if part.startswith("--command="))
        on_machine(command.removeprefix("--command="))
    if "scp" in words and os.path.exists(MACHINE):
        for file in words[words.index("scp") + 1 : -1]:
            with (
                open(file, "rb") as source,
                open(f"{MACHINE}/tmp/{os.path.basename(file)}", "wb") as copy,
            ):
                copy.write(source.read())
    if "list" in words:
        listed(words, arguments)
    for verb in {"create", "delete"} & set(words):
        at = words.index(verb)
        (name, *_) = (word for word in words[at + 1 :] if word != "http")  # a kind of health check
        there = f"{FAKE}/{'-'.join(['there', *words[:at], name])}"
        if verb == "create":
            open(there, "a").close()
        else:
            os.unlink(there)
    return 0


if __name__ == "__main__":
    sys.exit(main())
