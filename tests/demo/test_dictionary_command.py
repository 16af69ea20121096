"""`trio-odin dictionary`, without NATS; with it in tests/e2e/test_dictionary.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trio_odin.cli.dictionary import dictionary_command
from trio_odin.demo.samples import of_market
from trio_odin.wire.dictionary import built_in

ORDER = b'T%d.order\t{"venue": "amm-%d", "side": "%b", "amount": %d, "by": "0x%040x"}'


def table_of(ended: Result) -> list[list[int]]:
    """The figures: plain, permessage-deflate, the built-in dictionary, this one."""
    table = re.findall(
        r"^  (plain|permessage-deflate|z1,.*?)  +((?:\d+ +){3}\d+)$", ended.output, re.MULTILINE
    )
    figures = {name.partition(" (")[0]: [int(one) for one in row.split()] for name, row in table}
    assert list(figures)[2:] == ["z1, built-in dictionary", "z1, this dictionary"]
    return list(figures.values())


def run(*arguments: str) -> Result:
    return CliRunner().invoke(dictionary_command, arguments)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """400 events of another site, in the form of `--from`."""
    path = tmp_path / "events.txt"
    lines = [ORDER % (n % 50, n % 2, [b"bid", b"ask"][n % 2], n * 7919, n) for n in range(400)]
    path.write_bytes(b"\n".join(lines))
    return path


def test_the_market_makes_the_dictionary_of_the_package(tmp_path: Path) -> None:
    out = tmp_path / "odin.dict"
    ended = run("--market", "--out", str(out))
    assert ended.exit_code == 0, ended.output
    assert out.read_bytes() == built_in().content
    assert "saves as much as the built-in one: leave WS_DICTIONARY empty." in ended.output
    assert "Use it with" not in ended.output
    assert ended.output.splitlines()[-1] == f"Wrote {out} ({built_in().id})"


def test_a_file_makes_a_dictionary_that_saves_more(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "odin.dict"
    ended = run("--from", str(file), "--out", str(out), "--size", "1000")
    assert ended.exit_code == 0, ended.output
    assert len(out.read_bytes()) <= 1000
    for text in (b'"venue": "', b'"amount": ', b'"by": "', b'"bid', b'"ask'):
        assert text in out.read_bytes()
    assert b"0x" not in out.read_bytes()
    assert "  data.side:\n    ask\n    bid\n" in ended.output
    assert not (tmp_path / "odin.dict.strings").exists()
    plain, deflate, known, ours = table_of(ended)
    for place in range(4):
        assert plain[place] > deflate[place] > ours[place]
        assert known[place] > ours[place]
    assert (
        "This dictionary saves more than the built-in one.\n"
        f"Use it with WS_DICTIONARY={out}\nWrote {out} ("
    ) in ended.output


def test_a_dictionary_that_saves_less_is_not_recommended(tmp_path: Path) -> None:
    out = tmp_path / "odin.dict"
    ended = run("--market", "--events", "100", "--out", str(out))
    assert ended.exit_code == 0, ended.output
    *_, known, ours = table_of(ended)
    assert all(k < o for k, o in zip(known, ours, strict=True))
    assert "The built-in dictionary saves more: leave WS_DICTIONARY empty." in ended.output
    assert "Use it with" not in ended.output
    assert f"Wrote {out} (" in ended.output
    assert "The built-in dictionary saves more" in run("--market", "--events", "100").output


def test_a_dictionary_that_saves_more_of_some_is_recommended_for_these(tmp_path: Path) -> None:
    file, out = tmp_path / "events.txt", tmp_path / "odin.dict"
    events = [b"%b\t%b" % (one.channel.encode(), one.payload) for one in of_market(400)]
    for n in range(0, 400, 8):
        events[n] = ORDER % (n % 50, n % 2, [b"bid", b"ask"][n % 2], n * 7919, n)
    file.write_bytes(b"\n".join(events))
    ended = run("--from", str(file), "--size", "1500", "--out", str(out))
    *_, known, ours = table_of(ended)
    assert known[0] < ours[0]
    assert known[1] > ours[1]
    assert (
        "This dictionary saves more with 5 at once, the built-in one with one event and 15 at once."
        f"\nUse it with WS_DICTIONARY={out} where clients get the former.\n"
    ) in ended.output


def test_very_many_strings_are_listed_in_a_file(tmp_path: Path) -> None:
    file, out = tmp_path / "events.txt", tmp_path / "odin.dict"
    symbols = [f"{a}{b}" for a in "ABCDEFGHIJKLMNOPQRST" for b in "ABCDEFGHIJKL"]
    file.write_text(
        "".join(f'{symbol}.trade\t{{"n": {n}}}\n' for n, symbol in enumerate(symbols * 10))
    )
    ended = run("--from", str(file), "--out", str(out), "--size", "32768")
    assert ended.exit_code == 0, ended.output
    listed = (tmp_path / "odin.dict.strings").read_text().split()
    assert set(symbols) <= set(listed)
    assert f"They are in {out}.strings" in ended.output.replace("\n", " ")
    assert "AA" not in ended.output
    whole = run("--from", str(file), "--size", "32768").output
    assert set(symbols) <= set(whole.split())


def test_without_out_nothing_is_written(file: Path) -> None:
    before = set(file.parent.iterdir())
    ended = run("--from", str(file), "--events", "100")
    assert ended.exit_code == 0
    assert "Bytes an event, measured with 50 events:" in ended.output
    assert set(file.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--from", "/nowhere/events"], "does not exist"),
        (["--market", "--from", "FILE"], "--from and --market: allowed is one of them"),
        (["--market", "--nats", "nats://a"], "--nats and --market: allowed is one of them"),
        (["--nats", "nats://a", "--from", "FILE"], "--nats and --from: allowed is one of them"),
        (["--from", "BAD"], "line 2: allowed is a channel, a tab and a JSON payload"),
        (["--from", "SHORT"], "2 events: allowed is 20 or more"),
        (["--market", "--size", "63"], "allowed is a whole number from 64 to 32,768"),
        (["--market", "--size", "32769"], "allowed is a whole number from 64 to 32,768"),
        (["--market", "--events", "19"], "allowed is a whole number from 20 to 100,000"),
        (["--seconds", "nan"], "nan"),
        (["--seconds", "0"], "0<x<=86400"),
        (
            ["--from", "BAD", "--out", "/nowhere/odin.dict"],
            "'--out': '/nowhere/odin.dict': allowed",
        ),
        (["--nats", "http://x"], "NATS_URL='http://x': allowed is"),
    ],
)
def test_a_mistake_is_named_and_ends_with_2(
    arguments: list[str], complaint: str, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad").write_bytes(b"A.b\t1\nA.b 1\n")
    (tmp_path / "short").write_bytes(b"A.b\t1\nA.b\t2\n")
    paths = {"FILE": str(file), "BAD": str(tmp_path / "bad"), "SHORT": str(tmp_path / "short")}
    ended = run(*(paths.get(argument, argument) for argument in arguments))
    assert ended.exit_code == 2
    assert complaint in ended.output
    assert "Traceback" not in ended.output
