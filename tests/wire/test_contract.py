"""The contract against the documents, the parser of commands, and the bytes of the hot path."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.test_docs import example_lines
from trio_odin.cli.asyncapi import asyncapi_command
from trio_odin.client import messages as client_messages
from trio_odin.fanout.batch import Batch
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.updates import Update
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.wire.commands import COMMANDS, Malformed, Unknown, parse_command
from trio_odin.wire.contract import asyncapi, asyncapi_json
from trio_odin.wire.frames import payloads_of
from trio_odin.wire.messages import MESSAGES, BatchEvent, PriceBatch, PriceUpdate
from trio_odin.wire.payloads import PAYLOADS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "protocol.md"
DOCUMENT = asyncapi()
SENT = {message.__name__ for message in MESSAGES}


@cache
def validators() -> Any:
    """The class of validators. It loads a parser of all URIs for seconds, if that is installed."""
    from jsonschema import Draft7Validator  # noqa: PLC0415

    return Draft7Validator


def problems(content: Any, schema: dict[str, Any]) -> list[str]:
    """Why `content` does not fit a schema of the document."""
    validator = validators()({**DOCUMENT, **schema})
    return [error.message for error in validator.iter_errors(content)]


def problems_of_message(content: dict[str, Any]) -> list[str]:
    (schema,) = (
        one["payload"]
        for name, one in DOCUMENT["components"]["messages"].items()
        if one["name"] == content["type"] and name in SENT
    )
    return problems(content, schema)


def type_of(message: type[msgspec.Struct]) -> str:
    schema = DOCUMENT["components"]["schemas"][message.__name__]
    return str(schema["properties"]["type"]["const"])


def is_command(text: str) -> bool:
    """Whether a text is a command of the contract."""
    try:
        content = json.loads(text)
    except ValueError:
        return False
    command = COMMANDS.get(content["type"])
    return command is not None and not problems(
        content, {"$ref": f"#/components/schemas/{command.__name__}"}
    )


def test_the_committed_contract_is_current() -> None:
    assert (ROOT / "docs" / "asyncapi.json").read_bytes() == asyncapi_json(), (
        "run: trio-odin asyncapi --out docs/asyncapi.json"
    )


def test_the_command_prints_it_or_writes_a_file(tmp_path: Path) -> None:
    assert CliRunner().invoke(asyncapi_command).stdout_bytes == asyncapi_json()
    out = tmp_path / "contract.json"
    ended = CliRunner().invoke(asyncapi_command, ["--out", str(out)])
    assert (ended.exit_code, ended.output) == (0, "")
    assert out.read_bytes() == asyncapi_json()
    ended = CliRunner().invoke(asyncapi_command, ["--out", str(tmp_path / "no" / "file")])
    assert ended.exit_code == 2
    assert "--out" in ended.output


@pytest.mark.parametrize(
    ("language", "path"),
    [("typescript", "clients/js/src/messages.ts"), ("python", "trio_odin/client/messages.py")],
)
def test_the_types_of_a_language_are_current(language: str, path: str) -> None:
    made = CliRunner().invoke(asyncapi_command, ["--types", language])
    assert (ROOT / path).read_text() == made.output, (
        f"run: trio-odin asyncapi --types {language} --out {path}"
    )


def test_the_types_of_python_take_the_examples() -> None:
    """msgspec reads the dictionaries as strictly as a type checker would."""
    decoder = msgspec.json.Decoder(dict[str, Any])
    types = vars(client_messages)
    for message in MESSAGES:
        assert message.__name__ in types
    for kind, text in example_lines(PAGE):
        if kind != "<":
            continue
        content = decoder.decode(text)
        (name,) = (one.__name__ for one in MESSAGES if type_of(one) == content["type"])
        assert msgspec.convert(content, type=types[name]) == content


def test_all_schemas_are_schemas_and_all_references_lead_somewhere() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert len(schemas) > 40
    for schema in schemas.values():
        validators().check_schema(schema)
    references = re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(DOCUMENT))
    assert len(references) > 100
    for reference in references:
        found: Any = DOCUMENT
        for part in reference.split("/"):
            found = found[part]


def test_every_key_of_every_message_is_described() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for name, schema in schemas.items():
        assert schema["description"].endswith("."), name
        for key, value in schema.get("properties", {}).items():
            is_named = key in {"type", "priority"} or name == "EventData"
            assert is_named or value["description"].endswith("."), (name, key)


def test_each_message_of_the_server_comes_with_some_operation() -> None:
    operations = DOCUMENT["operations"].values()
    sent = [one for one in operations if one["action"] == "send"]
    lists = [one["messages"] for one in sent]
    lists += [one["reply"]["messages"] for one in operations if "reply" in one]
    named = {one["$ref"].rpartition("/")[2] for messages in lists for one in messages}
    assert named == SENT


def test_every_example_of_the_protocol_page_fits_the_contract() -> None:
    lines = example_lines(PAGE)
    sent = [json.loads(text) for kind, text in lines if kind == "<"]
    received = [text for kind, text in lines if kind == ">"]
    assert len(sent) > 30
    assert len(received) > 25
    for content in sent:
        assert problems_of_message(content) == []
    for text in received:
        is_taken = not isinstance(parse_command(text), Malformed | Unknown)
        assert is_command(text) == is_taken, text


def test_every_message_in_the_text_of_the_page_fits_the_contract() -> None:
    found = re.findall(r'`(\{"type":"[^`]*\})`', PAGE.read_text())
    messages = [json.loads(text.replace(":…", ':"…"')) for text in found]
    assert {message["type"] for message in messages} >= {
        "dictionary",
        "gap",
        "replay_incomplete",
        "resume_incomplete",
        "server:draining",
        "upstream",
    }
    for message in messages:
        assert problems_of_message(message) == []


NAMES = st.lists(st.sampled_from(["BTC.trade", "*.trade", ">", "BTC"]), max_size=3)
JUNK = st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=3) | NAMES
KEYS = st.sampled_from(
    [
        *("channels", "snapshot", "every_ms", "everyMs", "after", "epoch", "notices"),
        *("nats", "from", "to", "since", "prefix", "token", "id", "more"),
    ]
)
OBJECTS = st.dictionaries(KEYS, JUNK, max_size=5)


@given(
    kind=st.sampled_from(sorted(COMMANDS)), top=OBJECTS, data=st.none() | OBJECTS, has=st.booleans()
)
def test_what_fits_the_contract_is_taken(
    kind: str, top: dict[str, Any], data: Any, has: bool
) -> None:
    content = {"type": kind, **top} | ({"data": data} if has else {})
    text = json.dumps(content)
    if is_command(text):
        command = parse_command(text)
        assert not isinstance(command, Malformed | Unknown)
        assert getattr(command, "id", None) == top.get("id")


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"subscribe","channels":["BTC.trade"],"id":"7","every_ms":null,"more":1}',
        '{"type":"subscribe","data":{"channels":["BTC.trade"],"after":3,"epoch":"e"}}',
        '{"type":"unsubscribe","data":{"channels":[]}}',
        '{"type":"heartbeat","nats":true}',
        '{"type":"replay","data":{"since":4},"id":1}',
        '{"type":"channels","data":{"prefix":"BTC."}}',
        '{"type":"token","data":{"token":"t"}}',
        '{"type":"token","token":"t","data":{}}',
        '{"type":"unsubscribe","channels":[],"data":{}}',
    ],
)
def test_both_forms_of_the_commands_are_in_the_contract(text: str) -> None:
    assert is_command(text)
    assert not isinstance(parse_command(text), Malformed | Unknown)


NUMBERS = st.integers(1, 2**40)
PAYLOADS_OF_ANY_KIND = st.sampled_from([b"null", b"{}", b"[1]", b'{"price":64123.5}', b'"x"'])


@given(
    payload=PAYLOADS_OF_ANY_KIND,
    offset=st.none() | NUMBERS,
    prev=st.none() | NUMBERS,
    is_snapshot=st.booleans(),
    gave_way=st.integers(0, 3),
    skipped=st.integers(0, 3),
    skipped_total=st.integers(0, 3),
    seq=NUMBERS,
)
def test_the_bytes_of_an_event_are_those_of_its_type(
    payload: bytes,
    offset: int | None,
    prev: int | None,
    is_snapshot: bool,
    gave_way: int,
    skipped: int,
    skipped_total: int,
    seq: int,
) -> None:
    publication = Publication(
        "BTC.trade", payload, offset=offset, unix_ms=1, prev=prev, is_snapshot=is_snapshot
    ).instead_of(gave_way)
    # An event that gave way itself is not counted twice: it has one or the other.
    skipped = 0 if gave_way else skipped
    frame = b"".join(publication.pieces(seq, skipped, skipped_total))
    (text,) = payloads_of(frame)
    assert problems_of_message(json.loads(text)) == []
    assert msgspec.json.encode(msgspec.json.decode(text, type=PriceUpdate)) == text


@given(
    payload=PAYLOADS_OF_ANY_KIND,
    offset=st.none() | NUMBERS,
    prev=st.none() | NUMBERS,
    events=st.integers(1, 3),
    is_forgotten=st.booleans(),
)
def test_the_bytes_of_a_batch_are_those_of_its_type(
    payload: bytes, offset: int | None, prev: int | None, events: int, is_forgotten: bool
) -> None:
    update = Update("BTC.trade")
    for number in range(1, events + 1):
        update.take(number, NatsMessage("odin.token.BTC.trade", payload, offset, 0.0, 5), prev)
    if is_forgotten:
        update.forget(events - 1)
    (text,) = payloads_of(Batch.of([(update, 0)]).frame(7))
    assert problems_of_message(json.loads(text)) == []
    batch = msgspec.json.decode(text, type=PriceBatch)
    assert isinstance(batch.events[0], BatchEvent)
    assert msgspec.json.encode(batch) == text


@pytest.mark.parametrize("kind", sorted(PAYLOADS))
def test_a_payload_of_each_event_type_is_described(kind: str) -> None:
    schema = DOCUMENT["components"]["schemas"]["EventData"]["properties"][kind]
    assert problems({"type": "nothing"}, schema)
    assert f"`{kind}`" in PAGE.read_text()
