"""Everything a developer runs: `nox -l` lists it, `nox -s NAME` does it."""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "imports", "types", "tests"]

PROJECT = nox.project.load_toml("pyproject.toml")
EVERYTHING = ".[auth,demo,lab,bench]"


def install(session: nox.Session, *groups: str) -> None:
    packages = nox.project.dependency_groups(PROJECT, *groups)
    session.install("--quiet", "--editable", EVERYTHING, *packages)


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests, end to end against a real nats-server too. Arguments go to pytest."""
    install(session, "tests")
    session.run("pytest", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run all tests and say which lines none of them reached."""
    install(session, "tests")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "report", "--show-missing", "--skip-covered")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style with ruff; `nox -s lint -- --fix` mends what can be mended."""
    session.install("--quiet", *nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", *([] if session.posargs else ["--check"]), ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy (strict) and pyright."""
    install(session, "tests", "types")
    session.install("--quiet", "nox")
    session.run("mypy")
    session.run("pyright")


@nox.session
def imports(session: nox.Session) -> None:
    """Check which layer imports which."""
    install(session, "imports")
    session.run("lint-imports")


@nox.session
def conformance(session: nox.Session) -> None:
    """Run Autobahn's cases against the frame layer; `-- --keep` makes docs/conformance.json."""
    install(session, "conformance")
    session.run("python", "-m", "tests.conformance", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz commands, frames and HTTP heads for a minute; `-- --seconds 3600` for longer."""
    install(session, "tests")
    for package in nox.project.dependency_groups(PROJECT, "fuzz"):
        # atheris has no wheel for every Python; hypothesis does without it.
        session.install("--quiet", "--only-binary=atheris", package, success_codes=[0, 1])
    session.run("python", "-m", "tests.fuzz", *session.posargs)


@nox.session
def load(session: nox.Session) -> None:
    """Hold 10,000 connections on loopback: a few minutes. Arguments go to `trio-odin lab`."""
    install(session)
    options = ["--no-isolation", "--stages", "4-6", "--hold", "60"]
    session.run("trio-odin", "lab", *options, *session.posargs)


@nox.session
def lab(session: nox.Session) -> None:
    """Run every stage of the capacity lab, shortened to half an hour; needs root and iproute2."""
    install(session)
    session.run("trio-odin", "lab", "--short", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Hold 5,000 connections with churn for an hour; `-- --hold SECONDS` for another time."""
    install(session)
    session.run("trio-odin", "lab", "--stages", "10", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Attack the server and break what it needs, some minutes; renews docs/reliability.json."""
    install(session, "tests")
    # An empty expression: also the quick ones, which run with all other tests as well.
    every = ["tests/faults", "-m", ""]
    session.run("pytest", *every, *(session.posargs or ["--record", "docs/reliability.json"]))


@nox.session
def bench(session: nox.Session) -> None:
    """Measure this server against others; arguments go to `trio-odin bench` (`-- --quick`)."""
    install(session)
    session.run("trio-odin", "bench", *session.posargs)
