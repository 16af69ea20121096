#!/usr/bin/env python3
"""Restart the nodes behind HAProxy, one after the other, so that no client is refused.

For each node, HAProxy stops sending new clients to it. Your command restarts it; the node drains
its clients by itself. Once /ready answers 200, the node gets clients again, and the next node
follows. While a node is away the others hold all clients: WS_MAX_CONNECTIONS has to leave room.

    rolling.py --restart 'ssh {node} docker compose -f DIR/compose.yml up -d --force-recreate ws'

However this ends, Ctrl-C included, HAProxy sends clients to the node again as soon as it is ready.
Exit code 0: all nodes were restarted. 1: stopped at a node, which the message names. 2: could not
start. 130: interrupted.
"""

from __future__ import annotations

import argparse
import http.client
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

LOOK_SECONDS = 0.2
ANSWER_SECONDS = 5.0
IS_UP = {"1", "2"}  # srv_op_state: starting (slowstart), running


class Stop(Exception):
    """The rolling restart cannot continue. The message is for the operator."""


class Node(NamedTuple):
    """A node as one HAProxy sees it."""

    is_up: bool
    is_in_rotation: bool
    check_host: str
    check_port: int
    connections: int


class Proxy:
    """One HAProxy, by its admin socket: a path, or host:port."""

    def __init__(self, address: str, backend: str) -> None:
        self.address = address
        self._backend = backend

    def nodes(self) -> dict[str, Node]:
        """The nodes of the backend, by name."""
        connections = {
            row["svname"]: int(row["scur"] or 0)
            for row in self._rows("show stat", ",")
            if row["pxname"] == self._backend
        }
        return {
            row["srv_name"]: Node(
                is_up=row["srv_op_state"] in IS_UP,
                is_in_rotation=row["srv_admin_state"] == "0",
                check_host=row["srv_addr"],
                check_port=int(row["srv_check_port"]) or int(row["srv_port"]),
                connections=connections.get(row["srv_name"], 0),
            )
            for row in self._rows(f"show servers state {self._backend}", None)
        }

    def set_state(self, node: str, state: str) -> None:
        """Take a node out of rotation ("drain"), or put it back ("ready")."""
        answer = self._ask(f"set server {self._backend}/{node} state {state}").strip()
        if answer:
            raise Stop(f"{self.address}: {answer}")

    def _rows(self, command: str, separator: str | None) -> Iterator[dict[str, str]]:
        """Yield the rows of the answer, a table whose header line begins with a number sign."""
        answer = self._ask(command)
        head: list[str] = []
        for line in filter(None, answer.splitlines()):
            if line.startswith("# "):
                head = line[2:].split(separator)
            elif head:
                yield dict(zip(head, line.split(separator), strict=False))
        if not head:
            raise Stop(f"{self.address}: {answer.strip()}")

    def _ask(self, command: str) -> str:
        try:
            with self._connect() as connection:
                connection.sendall(command.encode() + b"\n")
                return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        except OSError as error:
            raise Stop(f"no answer at HAProxy's socket {self.address}: {error}") from error

    def _connect(self) -> socket.socket:
        host, colon, port = self.address.rpartition(":")
        if colon and port.isdecimal():
            return socket.create_connection((host, int(port)), ANSWER_SECONDS)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(ANSWER_SECONDS)
        connection.connect(self.address)
        return connection


class Rolling:
    """A rolling restart."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._proxies = [Proxy(address, options.backend) for address in options.socket]
        self._restart: str = options.restart
        self._timeout: float = options.timeout
        self._pause: float = options.pause
        self._settle: float = options.settle

    def names(self, wanted: Sequence[str]) -> list[str]:
        """Return the nodes to restart, after checking that all nodes are up."""
        found = self._proxies[0].nodes()
        for name in wanted:
            if name not in found:
                raise Stop(f"there is no node {name}; there are {', '.join(found)}")
        if len(found) < 2:
            raise Stop("there is only one node: no other node would take its clients")
        self._require_up()
        return list(wanted) or list(found)

    def _require_up(self) -> None:
        for proxy in self._proxies:
            for name, node in proxy.nodes().items():
                if not (node.is_up and node.is_in_rotation):
                    why = "is not ready" if node.is_in_rotation else "was taken out of rotation"
                    raise Stop(f"{name} {why}, as {proxy.address} sees it: fix that first")

    def plan(self, names: Sequence[str]) -> None:
        """Print what would be done."""
        for name in names:
            say(f"{name}: drain; {self._command(name)}; wait for /ready; back in rotation")

    def one(self, name: str) -> None:
        """Restart one node."""
        self._require_up()
        own, others = self._connections(name)
        say(f"{name}: out of rotation, with {own:,} connections; {others:,} elsewhere")
        begun = time.monotonic()
        with self._out_of_rotation(name):
            time.sleep(self._settle)  # it still answers requests in progress
            self._run(self._command(name))
            say(f"{name}: restarted after {time.monotonic() - begun:.1f} s")
            self._wait(lambda: self._is_ready(name), "not ready")
        self._wait(lambda: self._is_up(name), "not up for HAProxy")
        _, others = self._connections(name)
        say(f"{name}: ready after {time.monotonic() - begun:.1f} s; {others:,} elsewhere now")

    def pause(self) -> None:
        """Give slow clients time to come back."""
        time.sleep(self._pause)

    @contextmanager
    def _out_of_rotation(self, name: str) -> Iterator[None]:
        drained: list[Proxy] = []
        try:
            for proxy in self._proxies:
                drained.append(proxy)
                proxy.set_state(name, "drain")
            yield
        finally:
            # On every proxy, even if one does not answer or another Ctrl-C arrives.
            with signals_ignored(), ExitStack() as afterwards:
                for proxy in drained:
                    afterwards.callback(proxy.set_state, name, "ready")

    def _command(self, name: str) -> str:
        return self._restart.replace("{node}", name)

    def _run(self, command: str) -> None:
        try:
            subprocess.run(shlex.split(command), check=True, timeout=self._timeout)
        except subprocess.CalledProcessError as error:
            raise Stop(
                f"the restart command ended with code {error.returncode}: {command}"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise Stop(
                f"the restart command is not done after {self._timeout:g} s: {command}"
            ) from error
        except OSError as error:
            raise Stop(f"the restart command cannot be run: {error}") from error

    def _is_ready(self, name: str) -> bool:
        """Whether the node itself answers 200. HAProxy may not have noticed the restart yet."""
        node = self._proxies[0].nodes()[name]
        connection = http.client.HTTPConnection(
            node.check_host, node.check_port, timeout=ANSWER_SECONDS
        )
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _is_up(self, name: str) -> bool:
        nodes = [proxy.nodes()[name] for proxy in self._proxies]
        return all(node.is_up and node.is_in_rotation for node in nodes)

    def _wait(self, condition: Callable[[], bool], trouble: str) -> None:
        ends_at = time.monotonic() + self._timeout
        while not condition():
            if time.monotonic() > ends_at:
                raise Stop(
                    f"{trouble} {self._timeout:g} s after its restart: look at its log; "
                    "the nodes after it in the list were not touched"
                )
            time.sleep(LOOK_SECONDS)

    def _connections(self, name: str) -> tuple[int, int]:
        """Return the connections of this node, and of all others."""
        own = others = 0
        for proxy in self._proxies:
            for other, node in proxy.nodes().items():
                own += node.connections * (other == name)
                others += node.connections * (other != name)
        return own, others


def say(text: str) -> None:
    """Print a line of progress."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def options_from(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--restart",
        required=True,
        metavar="COMMAND",
        help="restarts {node}; must end after the old process has ended and the new one started",
    )
    add(
        "--socket",
        action="append",
        metavar="PATH|HOST:PORT",
        help="HAProxy's admin socket; repeat for each further HAProxy (/run/haproxy/admin.sock)",
    )
    add("--backend", default="ws", help="HAProxy's backend with the nodes (%(default)s)")
    add(
        "--node",
        action="append",
        default=[],
        help="restart only this node; repeat for others (all)",
    )
    add(
        "--timeout",
        type=float,
        default=180.0,
        metavar="SECONDS",
        help="limit for a restart, and again until the node is ready (%(default)g)",
    )
    add(
        "--settle",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="time between drain and restart, for requests in progress (%(default)g)",
    )
    add(
        "--pause",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="time between two nodes (%(default)g)",
    )
    add("--dry-run", action="store_true", help="check, print what would be done, and do nothing")
    options = parser.parse_args(arguments)
    options.socket = options.socket or ["/run/haproxy/admin.sock"]
    return options


ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def interrupt(*_: object) -> None:
    """Treat a request to end, and the end of the terminal, like Ctrl-C."""
    raise KeyboardInterrupt


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Ignore signals to end: the body takes seconds at most."""
    before = [signal.signal(number, signal.SIG_IGN) for number in ENDINGS]
    try:
        yield
    finally:
        for number, handler in zip(ENDINGS, before, strict=True):
            signal.signal(number, handler)


def complain(text: str) -> None:
    """Print a last line, unless the terminal has gone."""
    with suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def main() -> int:
    """Do what the command line asks; return the exit code."""
    options = options_from(sys.argv[1:])
    for number in ENDINGS:
        signal.signal(number, interrupt)
    node = None
    try:
        rolling = Rolling(options)
        names = rolling.names(options.node)
        if options.dry_run:
            rolling.plan(names)
            return 0
        for node in names:
            if node != names[0]:
                rolling.pause()
            rolling.one(node)
    except Stop as stop:
        complain(f"stopped at {node}: {stop}" if node else str(stop))
        return 1 if node else 2
    except KeyboardInterrupt:
        complain("interrupted; every node is in rotation")
        return 130
    say(f"all {len(names)} restarted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
