"""`trio-odin dictionary`: what events have in common, for the subprotocol `trio-odin.z1`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import click
import trio
from click.core import ParameterSource
from rich.console import Console

from trio_odin.cli.common import (
    NumberRange,
    WholeRange,
    fail,
    flag,
    nats_access_of,
    run,
    settings_from,
)
from trio_odin.cli.progress import telling
from trio_odin.demo.samples import BadLine, Sample, of_lines, of_market
from trio_odin.demo.sampling import SamplingError, sample
from trio_odin.demo.savings import bytes_an_event, dictionary_of, texts_of
from trio_odin.signals import end_signals
from trio_odin.upstream.stream import SUBJECT
from trio_odin.wire.compression import PLAIN, Z1, Deflate, Encoding
from trio_odin.wire.dictionary import DICTIONARY_MAX_BYTES, Dictionary, built_in
from trio_odin.wire.extensions import WINDOW_BITS
from trio_odin.wire.shapes import public_strings

_EVENTS_MIN: Final = 20
_BATCHES: Final = (1, 5, 15, 30)
_HEADS: Final = ("one event", *(f"{batch} at once" for batch in _BATCHES[1:]))
# More strings than this are for an editor, not for a terminal.
_SHOWN_STRINGS_MAX: Final = 200
_INTERRUPTED: Final = 130


def _new_file(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    """Check that the file can be written, without touching it: a server may be reading it."""
    if path is not None and not os.access(path if path.exists() else path.parent, os.W_OK):
        raise click.BadParameter(
            f"{str(path)!r}: allowed is a file that can be written, in a folder that exists"
        )
    return path


@click.command("dictionary", short_help="Make a dictionary of your events, and show what it saves.")
@flag("--nats")
@click.option(
    "--subject", default=SUBJECT, show_default=True, help="NATS subject to take events from."
)
@click.option(
    "--events",
    type=WholeRange(min=_EVENTS_MIN, max=100_000),
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
    type=WholeRange(min=64, max=DICTIONARY_MAX_BYTES),
    default=4_096,
    show_default=True,
    help="Largest size of the dictionary, in bytes. A client loads it once.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_new_file,
    help="Write the dictionary to this file, for WS_DICTIONARY.",
)
@click.pass_context
def dictionary_command(
    context: click.Context,
    /,
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
    market; one of your own events mostly saves more, and the command says whether it does.

    The dictionary is public. It has keys, punctuation, channel names, and strings of which at most
    16 make up nearly all at their place, such as "buy". It has no numbers of three digits or more,
    and nothing that looks like an e-mail address, an account or a token. The command lists all
    strings in it: look at them before you use it. If they are very many and there is --out FILE,
    the list is in FILE.strings.

    It is made of the first half of the events, and measured with the second half: bytes an event
    with the headers of WebSocket, TCP and IP, one event in a message and several in a batch.

    It takes events until it has --events of them, or for --seconds, whichever is first. Ctrl-C ends
    that earlier: the events until then are used, and the exit code is 130.

    \b
      trio-odin dictionary --nats nats://127.0.0.1:4222 --out odin.dict
      WS_DICTIONARY=odin.dict trio-odin serve
    """  # noqa: D301 - click needs the character, not the backslash
    _check_source(context)
    is_interrupted = False
    if market:
        samples = of_market(events)
    elif file is not None:
        samples = _read(file, events)
    else:
        samples, is_interrupted = _listen(flags, subject, events, seconds)
    if is_interrupted and len(samples) < _EVENTS_MIN:
        fail(f"interrupted after {len(samples)} events; nothing was written", _INTERRUPTED)
    if file is None and not samples:
        fail(f"no event came on {subject!r} within {seconds:g} s; see --subject and --seconds")
    if len(samples) < _EVENTS_MIN:
        more = "" if file is not None else "; see --seconds"
        fail(f"{len(samples)} events: allowed is {_EVENTS_MIN} or more{more}")
    if is_interrupted:
        click.echo(f"interrupted: {len(samples):,} events taken\n")
    _report(samples, size, out)
    if is_interrupted:
        context.exit(_INTERRUPTED)


def _check_source(context: click.Context) -> None:
    """Refuse options that name more than one source of the events."""
    options = {"NATS_URL": "--nats", "file": "--from", "market": "--market"}
    given = [
        option
        for name, option in options.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if len(given) > 1:
        fail(f"{' and '.join(given)}: allowed is one of them")


def _report(samples: Sequence[Sample], size: int, out: Path | None) -> None:
    """Make the dictionary, show what is in it and what it saves, and write it to `out`."""
    made_of, measured = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    content = dictionary_of(made_of, size)
    if not content:
        fail(f"{len(samples)} events have nothing in common")
    dictionary = Dictionary(content)
    _show_strings(public_strings(content, texts_of(made_of)), out)
    known, ours = _show_savings(measured, dictionary)
    if out is not None:
        try:
            out.write_bytes(content)
        except OSError as error:
            fail(f"--out {str(out)!r}: {error.strerror}")
    click.echo("\n" + _recommendation(known, ours, out))
    if out is None:
        click.echo("\n--out FILE writes the dictionary.")
    else:
        click.echo(f"Wrote {out} ({dictionary.id})")


def _read(file: Path, most: int) -> list[Sample]:
    try:
        with file.open("rb") as lines:
            return of_lines(islice(lines, most))
    except (OSError, BadLine) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        fail(f"--from {str(file)!r}: {reason}")


def _listen(
    flags: dict[str, str | None], subject: str, events: int, seconds: float
) -> tuple[list[Sample], bool]:
    """The events on NATS, and whether Ctrl-C ended the taking of them."""
    settings = settings_from(flags)
    access = nats_access_of(settings)
    stop = trio.CancelScope()
    with telling(Console(stderr=True)) as tell:
        take = partial(
            sample,
            settings.nats_urls,
            subject,
            most=events,
            seconds=seconds,
            stop=stop,
            access=access,
        )
        samples = run(
            partial(_until_signal, partial(take, tell=partial(tell, "sampling")), stop),
            SamplingError,
        )
    # Ctrl-C may come before there is a handler for it.
    return ([], True) if samples == "interrupted" else (samples, stop.cancel_called)


async def _until_signal(
    take: Callable[[], Awaitable[list[Sample]]], stop: trio.CancelScope
) -> list[Sample]:
    with end_signals() as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_signal, signals, stop)
            samples = await take()
            nursery.cancel_scope.cancel(reason="the events are taken")
    return samples


async def _cancel_on_signal(signals: AsyncIterator[int], stop: trio.CancelScope) -> None:
    await anext(signals)
    stop.cancel(reason="a signal")


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


def _show_savings(samples: Sequence[Sample], dictionary: Dictionary) -> tuple[list[int], list[int]]:
    """Show bytes an event; returns those of the built-in dictionary, and those of this one."""
    known = built_in()
    encodings: dict[str, Encoding] = {
        "plain": PLAIN,
        "permessage-deflate": Deflate(WINDOW_BITS),
        f"z1, built-in dictionary ({len(known.content):,} bytes)": Z1(known.content),
        f"z1, this dictionary ({len(dictionary.content):,} bytes)": Z1(dictionary.content),
    }
    click.echo(f"\nBytes an event, measured with {len(samples):,} events:\n")
    click.echo(" " * 43 + "".join(f"{head:>12}" for head in _HEADS))
    rows: list[list[int]] = []
    for name, encoding in encodings.items():
        rows.append([round(bytes_an_event(samples, encoding, batch)) for batch in _BATCHES])
        click.echo(f"  {name:41}" + "".join(f"{figure:12}" for figure in rows[-1]))
    return rows[-2], rows[-1]


def _recommendation(known: Sequence[int], ours: Sequence[int], out: Path | None) -> str:
    """Which dictionary to use, by the figures of both as they are shown."""
    rows = list(zip(_HEADS, known, ours, strict=True))
    better = [head for head, theirs, figure in rows if figure < theirs]
    worse = [head for head, theirs, figure in rows if figure > theirs]
    use = "" if out is None else f"\nUse it with WS_DICTIONARY={out}"
    if better and worse:
        where = use and f"{use} where clients get the former."
        return (
            f"This dictionary saves more with {_listed(better)}, "
            f"the built-in one with {_listed(worse)}.{where}"
        )
    if better:
        return f"This dictionary saves more than the built-in one.{use}"
    if worse:
        return (
            "The built-in dictionary saves more: leave WS_DICTIONARY empty. "
            "More events, or another --size, may change that."
        )
    return "This dictionary saves as much as the built-in one: leave WS_DICTIONARY empty."


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
