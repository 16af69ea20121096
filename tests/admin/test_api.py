"""What the API makes of the answers of several processes."""

from __future__ import annotations

import attrs
import pytest

from trio_odin.admin.access import Access
from trio_odin.admin.api import Api
from trio_odin.admin.questions import (
    Closed,
    ConnectionDetail,
    ConnectionRow,
    Outbox,
    Question,
    Reply,
    ShowConnection,
    StartTrace,
    StopTrace,
    TraceStarted,
)
from trio_odin.ledger.snapshot import Snapshot
from trio_odin.net.address import Address
from trio_odin.net.http import Request, Response


def detail_of(worker: int, number: int) -> ConnectionDetail:
    row = ConnectionRow(
        id=f"{worker}-{number}", worker=worker, connection=number, address=None, subject=None,
        user_agent="", age_seconds=1.0, silent_seconds=1.0, channels=0, encoding="plain",
        state="idle", seq=0, queued=0, queued_bytes=0, skipped=0, dropped=0, bytes=None,
        is_lagging=False,
    )  # fmt: skip
    return ConnectionDetail(
        row=row,
        subscriptions=[],
        outbox=Outbox(messages=0, bytes=0, messages_limit=1, bytes_limit=1, policy="evict"),
        transport=None,
        token_expires_at=None,
        has_notices=False,
        last_events=[],
    )


@attrs.define(eq=False)
class Process:
    """A process that holds one connection of each number."""

    worker: int
    traces: set[int] = attrs.field(factory=set)
    asked: list[Question] = attrs.field(factory=list)

    async def ask(self, question: Question) -> Reply:
        self.asked.append(question)
        if isinstance(question, StartTrace):
            self.traces.add(7)
            return TraceStarted(trace=7, connections=1)
        if isinstance(question, ShowConnection):
            return detail_of(self.worker, question.number)
        assert isinstance(question, StopTrace)
        self.traces.remove(question.trace)
        return Closed()


async def nothing() -> Snapshot | None:
    return None


async def answer_of(processes: list[Process], target: str, method: str = "GET") -> Response:
    path, _, query = target.partition("?")
    api = Api(nothing, lambda: processes, Access([Address("127.0.0.1", 3008)]))
    response = await api.respond(
        Request(method, path, [(b"host", b"127.0.0.1:3008")], query=query.encode())
    )
    assert response is not None
    return response


async def test_a_trace_follows_one_connection_while_its_worker_is_replaced() -> None:
    processes = [Process(2), Process(2)]
    answer = await answer_of(processes, "/trace?connection=2-9")
    assert answer.status == 409
    assert b"Worker 2 is being replaced" in answer.body
    assert [len(process.asked) for process in processes] == [2, 2]
    assert not processes[0].traces | processes[1].traces


@pytest.mark.parametrize(("suffix", "method"), [("", "GET"), ("/close", "POST")])
async def test_a_number_of_two_processes_of_a_worker_is_neither_shown_nor_closed(
    suffix: str, method: str
) -> None:
    processes = [Process(2), Process(2), Process(1)]
    answer = await answer_of(processes, f"/connections/2-9{suffix}", method)
    assert answer.status == 409
    assert b"Worker 2 is being replaced, and both of its processes have" in answer.body
    assert [len(process.asked) for process in processes] == [1, 1, 0], "nothing was closed"


async def test_a_number_of_one_process_is_shown() -> None:
    answer = await answer_of([Process(2), Process(1)], "/connections/2-9")
    assert answer.status == 200
    assert b'"id":"2-9"' in answer.body


@pytest.mark.parametrize(
    ("target", "method"),
    [
        ("/overview", "GET"),
        ("/connections", "GET"),
        ("/connections/9", "GET"),
        ("/connections/2-9", "GET"),
        ("/connections/2-9/close", "POST"),
        ("/channels", "GET"),
        ("/trace?connection=2-9", "GET"),
        ("/trace?channel=BTC.trade", "GET"),
    ],
)
async def test_while_no_worker_serves_each_path_says_so(target: str, method: str) -> None:
    answer = await answer_of([], target, method)
    assert (answer.status, answer.body) == (503, b'{"error":"No worker serves yet"}')


async def test_a_trace_of_a_channel_follows_both_processes_and_is_ended_in_both() -> None:
    processes = [Process(2), Process(2)]
    answer = await answer_of(processes, "/trace?channel=BTC.trade")
    assert answer.status == 200
    assert processes[0].traces == processes[1].traces == {7}
    assert answer.on_end is not None
    await answer.on_end()
    assert not processes[0].traces | processes[1].traces


@pytest.mark.parametrize("method", ["HEAD", "POST", "OPTIONS"])
async def test_only_get_starts_a_trace(method: str) -> None:
    process = Process(0)
    answer = await answer_of([process], "/trace?channel=BTC.trade", method)
    assert (answer.status, dict(answer.headers)["Allow"]) == (405, "GET")
    assert not process.asked
