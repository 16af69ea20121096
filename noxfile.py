"""Everything a developer runs: `nox -l` lists it, `nox -s NAME` does it."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "imports", "types", "tests"]

PROJECT = nox.project.load_toml("pyproject.toml")
EVERYTHING = ".[auth,client,demo,lab,nkeys,otel,top]"


# A test that waits without an end fails. Its process ends, as trio cannot be stopped halfway.
ENDLESS = ["--timeout=240", "--timeout-method=thread"]


def install(session: nox.Session, *groups: str) -> None:
    packages = nox.project.dependency_groups(PROJECT, *groups)
    session.install("--quiet", "--editable", EVERYTHING, *packages)


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests, end to end against a real nats-server too. Arguments go to pytest."""
    install(session, "tests")
    # More processes than cores, as what is started for real is waited for most of the time.
    together = ["--numprocesses=4", "--dist=loadfile", "--no-loadscope-reorder"]
    session.run("pytest", *together, *ENDLESS, *session.posargs)


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
    install(session, "tests", "site", "types")
    session.run("mypy")
    session.run("pyright")


@nox.session
def imports(session: nox.Session) -> None:
    """Check which layer imports which."""
    install(session, "imports")
    session.run("lint-imports")


@nox.session(venv_backend="none")
def asyncapi(session: nox.Session) -> None:
    """Check docs/asyncapi.json with the official parser; needs npm, and its registry once."""
    parser = Path("ops/asyncapi")
    if not (parser / "node_modules").exists():
        session.run("npm", "ci", "--silent", f"--prefix={parser}", external=True)
    session.run("node", str(parser / "check.mjs"), "docs/asyncapi.json", external=True)


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
        session.install("--quiet", "--only-binary=atheris", package, success_codes=[0, 1, 2])
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
    every = ["tests/faults", "tests/oracle", "-m", ""]
    session.run("pytest", *every, *(session.posargs or ["--record", "docs/reliability.json"]))


@nox.session
def oracle(session: nox.Session) -> None:
    """Break things at random and hold clients against the truth: `-- --faults 1000 --seed 1`."""
    install(session, "tests")
    session.run("python", "-m", "tests.oracle", *session.posargs)


@nox.session
def scale(session: nox.Session) -> None:
    """Kill a server and a node of NATS under 40,000 connections; needs root and HAProxy."""
    install(session, "tests")
    session.run("python", "-m", "tests.faults.scale", *session.posargs)


@nox.session
def incidents(session: nox.Session) -> None:
    """Play ten incidents, and say what shows each and how soon; renews docs/incidents.json.

    `-- --only NAME` plays one; it needs Prometheus.
    """
    install(session, "tests")
    record = ["--json", "docs/incidents.json"]
    session.run("python", "-m", "tests.faults.incidents", *(session.posargs or record))


@nox.session
def ops(session: nox.Session) -> None:
    """Check what is under ops/ and start it for real; skips what cannot run here, and says why."""
    install(session, "tests")
    # An empty expression: also the quick ones, which run with all other tests as well.
    session.run("pytest", "tests/ops", "tests/e2e/test_regions.py", "-m", "", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the lab, the bench and the cloud's scripts as engineers do: about five minutes."""
    install(session, "tests")
    session.run("pytest", "-m", "slow", *ENDLESS, *session.posargs)


@nox.session
def js(session: nox.Session) -> None:
    """Build, test and check clients/js; `-- --browser`: in Chromium too, `-- --record FILE`.

    `-- --quick` leaves out what needs servers.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        session.skip("clients/js needs Node 20 or later and npm, and there is none on PATH")
    parser = argparse.ArgumentParser(prog="nox -s js --")
    parser.add_argument("--quick", action="store_true", help="leave out what needs servers")
    parser.add_argument("--browser", action="store_true", help="in Chromium, too")
    parser.add_argument("--record", metavar="FILE", help="with --browser: write the faults seen")
    options = parser.parse_args(session.posargs)
    if options.quick and (options.browser or options.record):
        session.error("--quick: allowed is --quick alone")
    if not options.quick:
        install(session, "tests")
    record = options.record and str(Path(options.record).resolve())
    session.chdir("clients/js")
    session.run("npm", "ci", "--no-audit", "--no-fund", "--silent", external=True)
    without = ["--", "--exclude", "test/server/**"] if options.quick else []
    for script in (["build"], ["test", *without], ["check"]):
        session.run("npm", "run", "--silent", *script, external=True)
    if options.browser or record:
        environment = {"FAULTS_RECORD": record} if record else {}
        session.run("npm", "run", "--silent", "browser", external=True, env=environment)
        session.chdir("../..")
        session.run("pytest", "tests/page", "-m", "")


NODE_PEERS = ["@based/uws@20.6.0", "nats@2"]

# What POST /control of a publisher takes; the rates are the plan's normal load and its peak.
CONTROL = {
    "start": '{"action": "start", "messagesPerSecond": 12}',
    "start:high": '{"action": "start", "messagesPerSecond": 30}',
    "stop": '{"action": "stop"}',
}


@nox.session(venv_backend="none")
def publisher(session: nox.Session) -> None:
    """Control a running publisher: `-- start|start:high|stop|stats [--url http://HOST:3003]`."""
    parser = argparse.ArgumentParser(prog="nox -s publisher --")
    parser.add_argument("action", nargs="?", choices=[*CONTROL, "stats"], default="stats")
    parser.add_argument("--url", default="http://127.0.0.1:3003")
    options = parser.parse_args(session.posargs)
    url = options.url.rstrip("/")
    page = [f"{url}/stats"]
    if options.action in CONTROL:
        page = ["--data", CONTROL[options.action], f"{url}/control"]
    curl = ["curl", "--silent", "--show-error", "--fail-with-body"]
    answer = session.run(*curl, *page, external=True, silent=True) or ""
    session.log(answer.strip())
    try:
        found = json.loads(answer)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("success"), bool):
        session.error(f"{page[-1]} does not answer as a publisher does")
    if not found["success"]:
        session.error(f"the publisher has done nothing: {found.get('message', 'no reason given')}")


@nox.session
def capacity(session: nox.Session) -> None:
    """Run the plan's capacity test: `-- 1k|5k|10k [--url ws://HOST:3004/ws] [OPTION OF load]`."""
    session.install("--quiet", "--editable", ".[load]")
    # Of `load` the address is an argument, not an option.
    options = [one.removeprefix("--url=") for one in session.posargs if one != "--url"]
    size = options.pop(0) if options and options[0] in {"1k", "5k", "10k"} else "10k"
    session.run("trio-odin", "load", "--plan", size, *options)


@nox.session(venv_backend="none")
def instances(session: nox.Session) -> None:
    """Make and fill the plan's machines: `-- create|deploy|stop|delete|ips|cost [MACHINE…]`."""
    session.run("ops/cloud/instances.sh", *(session.posargs or ["--help"]), external=True)


@nox.session
def lock(session: nox.Session) -> None:
    """Renew what the image is made of; `-- --upgrade-package trio` for one package alone."""
    session.install("--quiet", *nox.project.dependency_groups(PROJECT, "lock"))
    to_build = Path(session.create_tmp()) / "build.in"
    to_build.write_text("\n".join(PROJECT["build-system"]["requires"]))
    # Neither the addresses of an index nor paths of this machine get into them.
    lock = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version=3.11"]
    lock += ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url"]
    # hdrhistogram names them, and needs them to be built only.
    lock += ["--no-emit-package=pbr", "--no-emit-package=setuptools"]
    lock += session.posargs or ["--upgrade"]
    extras = ["--extra=auth", "--extra=load", "--extra=nkeys", "--extra=otel"]
    session.run(*lock, *extras, "pyproject.toml", "--output-file=requirements.lock")
    session.run(*lock, str(to_build), "--output-file=requirements-build.lock")


@nox.session
def site(session: nox.Session) -> None:
    """Make the documentation as a site, in site/VERSION; a link that leads nowhere fails."""
    install(session, "site")
    say_version = "import trio_odin; print(trio_odin.__version__)"
    version = (session.run("python", "-c", say_version, silent=True) or "").strip()
    options = ["-q", "-W", "--keep-going", "-c", "docs/site"]
    session.run("sphinx-build", *options, "docs", f"site/{version}")


@nox.session
def release(session: nox.Session) -> None:
    """Build wheel, sdist, npm package and image, and check them; `-- --tag v0.1.0` for real."""
    session.install("--quiet", *nox.project.dependency_groups(PROJECT, "release"))
    session.run("python", "ops/release/release.py", *session.posargs)


@nox.session
def dashboards(session: nox.Session) -> None:
    """Make Grafana's dashboards anew."""
    install(session, "tests")
    session.run("python", "ops/grafana/dashboards.py")


@nox.session
def docs(session: nox.Session) -> None:
    """Write all that is generated anew; `-- --age`: how old the measurements behind it are."""
    install(session, "tests")
    session.run("python", "docs/generate.py", *session.posargs)
    if "--age" not in session.posargs:
        session.run("python", "ops/grafana/dashboards.py")
        with Path("ops/kubernetes/monitoring/prometheusrule.yaml").open("w") as rules:
            session.run("python", "ops/kubernetes/prometheus_rule.py", stdout=rules)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure this server against others; arguments go to `trio-odin bench` (`-- --quick`)."""
    install(session)
    # The peer in C++ is for Node 16 only; where it cannot be had, the bench does without it.
    peers = nox.project.dependency_groups(PROJECT, "peers")
    session.install("--quiet", *peers, success_codes=[0, 1, 2])
    modules = Path(session.create_tmp()) / "peers"
    npm = ["python", "-m", "nodejs.npm", "install", "--silent", "--no-save", f"--prefix={modules}"]
    session.run(*npm, *NODE_PEERS, success_codes=[0, 1])
    environment = {"NODE_PATH": str(modules / "node_modules")}
    session.run("trio-odin", "bench", *session.posargs, env=environment)
