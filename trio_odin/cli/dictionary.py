"""`trio-odin dictionary`: what events have in common, for the subprotocol `trio-odin.z1`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from trio_odin.cli.common import NumberRange, fail, flag, run, settings_from
from trio_odin.cli.progress import telling
from trio_odin.demo.samples import BadLine, Sample, of_lines, of_market
from trio_odin.demo.sampling import SamplingError, sample
from trio_odin.demo.savings import bytes_an_event, dictionary_of, texts_of
from trio_odin.upstream.stream import SUBJECT
from trio_odin.wire.compression import PLAIN, Z1, Deflate, Encoding
from trio_odin.wire.dictionary import DICTIONARY_MAX_BYTES, Dictionary, built_in
from trio_odin.wire.extensions import WINDOW_BITS
from trio_odin.wire.shapes import public_strings

_EVENTS_MIN: Final = 20
_BATCHES: Final = (1, 5, 15, 30)
# More strings than this are for an editor, not for a terminal.
_SHOWN_STRINGS_MAX: Final = 200


@click.command("dictionary", short_help="Make a dictionary of your events, and show what it saves.")
@flag("--nats")
@click.option(
    "--subject", default=SUBJECT, show_default=True, help="NATS subject to take events from."
)
@click.option(
    "--events",
    type=click.IntRange(min=_EVENTS_MIN, max=100_000),
    default=3_000,
    show_default=True,
    help="Take at most this number of events.",
)
@click.option(
    "--seconds",
    type=NumberRange(min=0, min_open=True, max=86_400),
    default=60.0,
    show_default=True,
    help="Take events for at most this time.",
)
@click.option(
    "--from",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take events from this file instead: lines of CHANNEL, a tab and a JSON payload.",
)
@click.option(
    "--market",
    is_flag=True,
    help="Take events of the simulated market, as for the built-in dictionary.",
)
@click.option(
    "--size",
    type=click.IntRange(min=64, max=DICTIONARY_MAX_BYTES),
    default=4_096,
    show_default=True,
    help="Largest size of the dictionary, in bytes. A client loads it once.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write the dictionary to this file, for WS_DICTIONARY.",
)
def dictionary_command(
    subject: str,
    events: int,
    seconds: float,
    file: Path | None,
    size: int,
    out: Path | None,
    *,
    market: bool,
    **flags: str | None,
) -> None:
    """Make a dictionary of your events, and show what it saves.

    Clients of the subprotocol trio-odin.z1 get events that are compressed against a dictionary:
    what all events have in common is never sent. The server has a dictionary for the simulated
    market; one of your own events saves more.

    The dictionary is public. It has keys, punctuation, channel names, and strings of which at most
    16 make up nearly all at their place, such as "buy". It has no numbers of three digits or more,
    and nothing that looks like an e-mail address, an account or a token. The command lists all
    strings in it: look at them before you use it. If they are very many and there is --out FILE,
    the list is in FILE.strings.

    It is made of the first half of the events, and measured with the second half: bytes an event
    with the headers of WebSocket, TCP and IP, one event in a message and several in a batch.

    \b
      trio-odin dictionary --nats nats://127.0.0.1:4222 --out odin.dict
      WS_DICTIONARY=odin.dict trio-odin serve
    """  # noqa: D301 - click needs the character, not the backslash
    if market and file is not None:
        fail("--market and --from: allowed is one of them")
    if market:
        samples = of_market(events)
    elif file is not None:
        samples = _read(file, events)
    else:
        samples = _listen(flags, subject, events, seconds)
    if len(samples) < _EVENTS_MIN:
        fail(f"{len(samples)} events: allowed is {_EVENTS_MIN} or more; see --seconds")
    made_of, measured = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    content = dictionary_of(made_of, size)
    if not content:
        fail(f"{len(samples)} events have nothing in common")
    dictionary = Dictionary(content)
    _show_strings(public_strings(content, texts_of(made_of)), out)
    _show_savings(measured, dictionary)
    if out is None:
        click.echo("\n--out FILE writes the dictionary.")
        return
    try:
        out.write_bytes(content)
    except OSError as error:
        fail(f"--out {str(out)!r}: {error.strerror}")
    click.echo(f"\nWrote {out}. Use it with WS_DICTIONARY={out}")


def _read(file: Path, most: int) -> list[Sample]:
    try:
        with file.open("rb") as lines:
            return of_lines(islice(lines, most))
    except (OSError, BadLine) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        fail(f"--from {str(file)!r}: {reason}")


def _listen(
    flags: dict[str, str | None], subject: str, events: int, seconds: float
) -> list[Sample]:
    urls = settings_from(flags).nats_urls
    with telling(Console(stderr=True)) as tell:
        samples = run(
            partial(
                sample, urls, subject, most=events, seconds=seconds, tell=partial(tell, "sampling")
            ),
            SamplingError,
        )
    return [] if samples == "interrupted" else list(samples)


def _show_strings(found: Mapping[str, Sequence[str]], out: Path | None) -> None:
    """List each string on a line of its own, in a file beside `out` if there are very many."""
    lines = [
        line
        for place, strings in found.items()
        for line in (f"  {place}:", *(f"    {text}" for text in strings))
    ]
    count = sum(map(len, found.values()))
    if count <= _SHOWN_STRINGS_MAX or out is None:
        click.echo(f"The dictionary has these strings of your events ({count}), by place:\n")
        click.echo("\n".join(lines))
        return
    path = out.with_name(out.name + ".strings")
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        fail(f"--out {str(out)!r}: {path}: {error.strerror}")
    click.echo(f"The dictionary has {count} strings of your events. They are in {path}: read them.")


def _show_savings(samples: Sequence[Sample], dictionary: Dictionary) -> None:
    known = built_in()
    encodings: dict[str, Encoding] = {
        "plain": PLAIN,
        "permessage-deflate": Deflate(WINDOW_BITS),
        f"z1, built-in dictionary ({len(known.content):,} bytes)": Z1(known.content),
        f"z1, this dictionary ({len(dictionary.content):,} bytes)": Z1(dictionary.content),
    }
    heads = ["one event", *(f"{batch} at once" for batch in _BATCHES[1:])]
    click.echo(f"\nBytes an event, of {len(samples):,}:\n")
    click.echo(" " * 43 + "".join(f"{head:>12}" for head in heads))
    for name, encoding in encodings.items():
        figures = [bytes_an_event(samples, encoding, batch) for batch in _BATCHES]
        click.echo(f"  {name:41}" + "".join(f"{figure:12.0f}" for figure in figures))
