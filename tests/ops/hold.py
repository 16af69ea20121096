"""Hold WebSockets until all are closed: `hold.py URL NUMBER`; prints how each one was closed."""

from __future__ import annotations

import sys

import click
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import connect


async def hold(url: str, number: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(number):
            await nursery.start(one, url)
        click.echo("held")


async def one(url: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    async with connect(url) as client:
        task_status.started()
        try:
            while True:
                await client.recv()
        except ConnectionClosed as closed:
            click.echo(1006 if closed.rcvd is None else closed.rcvd.code)


if __name__ == "__main__":
    trio.run(hold, sys.argv[1], int(sys.argv[2]))
