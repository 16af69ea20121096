"""Makes a dictionary from the shapes of events: what they have in common, and nothing else.

A dictionary is public, so no value may get into it that only some events have. A JSON text is cut
into *runs*: what is between two values that vary. What varies is found by counting:

    {"ts":…,"data":{"side":"buy","price":…,"nonce":"…"}}
    └────┘ └───────────────────────────┘ └─────────┘ └──┘

- Strings vary, unless few of them make up nearly all at their place, as `"buy"` and `"sell"` do.
- So do numbers, but those of more than two digits always vary.
- So do keys: in a table by account the keys are values.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final, NamedTuple, TypeAlias

_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s"{}\[\],:]+|\s+')
# Strings at one place are enumerated if at most so many make up this share of them. Each of these
# was there so often.
_ENUMERATED_MAX: Final = 256
_ENUMERATED_SHARE: Final = 0.9
_TIMES_MIN: Final = 4
# What is enumerated is short, and has no part that looks like the number of an account.
_STRING_MAX_BYTES: Final = 64
_NUMBER_MAX_BYTES: Final = 2
_IDENTIFIER = re.compile(rb"[0-9]{5}|[0-9A-Fa-f]{8}|[0-9A-Za-z]{24}")
# A reference to a run costs about as much as this.
_REFERENCE_BYTES: Final = 2

# The keys from the outermost object on. All elements of a list have the same place.
Place: TypeAlias = tuple[bytes, ...]
_KEYS, _ELEMENT = b"{", b"["
_SYMBOL, _EVENT_TYPE = b"symbol", b"event type"
_CHANNEL: Final = b'"channel"'
_NUMBER_STARTS: Final = frozenset(bytes((octet,)) for octet in b"-0123456789")


class _Token(NamedTuple):
    """A piece of a JSON text; `place` is that of a value or key, () of what is between them."""

    text: bytes
    place: Place


_END: Final = _Token(b"", (b"",))


def make_dictionary(texts: Sequence[bytes], size: int) -> bytes:
    """Return at most `size` bytes that the `texts`, JSON objects, have in common.

    What saves most for its size is at the end, where references to it are shortest. The result is
    empty if the texts have nothing in common, and the same for the same texts.
    """
    enumerated = _enumerated(texts)
    times: Counter[bytes] = Counter()
    saved: Counter[bytes] = Counter()
    for text in texts:
        for run, saves in _runs(text, enumerated):
            times[run] += 1
            saved[run] += saves
    useful = [run for run in times if times[run] >= _TIMES_MIN and saved[run] > 0]
    packed = b""
    for run in sorted(useful, key=lambda run: (-saved[run] / len(run), run)):
        if run not in packed and len(run) + len(packed) <= size:
            packed = run + packed
    return packed


def _enumerated(texts: Iterable[bytes]) -> Mapping[Place, frozenset[bytes]]:
    """The strings that do not vary, by their places."""
    strings: defaultdict[Place, Counter[bytes]] = defaultdict(Counter)
    for text in texts:
        for token in _tokens(text):
            if token.place:
                strings[token.place][token.text] += 1
    found = {}
    for place, counts in strings.items():
        common = {
            text: times
            for text, times in counts.most_common(_ENUMERATED_MAX)
            if times >= _TIMES_MIN and _may_be_enumerated(text)
        }
        if sum(common.values()) >= _ENUMERATED_SHARE * counts.total():
            found[place] = frozenset(common)
    return found


def _may_be_enumerated(text: bytes) -> bool:
    most = _NUMBER_MAX_BYTES if text[:1] in _NUMBER_STARTS else _STRING_MAX_BYTES
    return len(text) <= most and not _IDENTIFIER.search(text)


def enumerated_values(texts: Iterable[bytes]) -> dict[str, list[str]]:
    """The strings and short numbers that may get into a dictionary of `texts`, by their places.

    For the eyes of a person who knows what must not become public.
    """
    return {
        _named(place): sorted(text.decode(errors="replace").strip('"') for text in values)
        for place, values in sorted(_enumerated(texts).items())
    }


def _named(place: Place) -> str:
    names = {_KEYS: "keys", _ELEMENT: "[]"}
    return ".".join(names.get(key, key.decode(errors="replace").strip('"')) for key in place)


def _runs(text: bytes, enumerated: Mapping[Place, frozenset[bytes]]) -> Iterator[tuple[bytes, int]]:
    """The runs of `text`, each with the bytes that it saves if those before it are there.

    Where a value is one of several, there is the run after it, the same with the value, and one
    that goes on over all such values.
    """
    value = run = whole = b""
    for token, place in chain(_tokens(text), [_END]):
        common = enumerated.get(place, frozenset()) if place else {token}
        if token in common and (len(common) == 1 or place[-1] == _KEYS):
            run += token
            continue
        # The quotes of a string that varies belong to the runs beside it.
        is_one_of_several = token in common
        if token.startswith(b'"') and not is_one_of_several:
            run += b'"'
        yield run, len(run) - _REFERENCE_BYTES
        if value:
            yield value + run, len(value)
            yield whole + value + run, _REFERENCE_BYTES
        whole, value = (whole + value + run, token) if is_one_of_several else (b"", b"")
        run = b'"' if token.endswith(b'"') and not is_one_of_several else b""


def _tokens(text: bytes) -> Iterator[_Token]:
    """The tokens of a JSON text, in order; together they are the text."""
    place: list[bytes] = []
    expects_key = False
    for token in _TOKENS.findall(text):
        match token[:1]:
            case b"{" | b"[":
                yield _Token(token, ())
                place.append(token)
                expects_key = token == b"{"
            case b"}" | b"]":
                place.pop()
                yield _Token(token, ())
            case b",":
                expects_key = place[-1] != _ELEMENT
                yield _Token(token, ())
            case b'"' if expects_key:
                place[-1] = token
                expects_key = False
                yield _Token(token, (*place[:-1], _KEYS))
            case b'"' if place[-1:] == [_CHANNEL] and b"." in token:
                # Of ten thousand channels, all are of a few types.
                symbol, dot, event_type = token.partition(b".")
                yield _Token(symbol, (*place, _SYMBOL))
                yield _Token(dot + event_type, (*place, _EVENT_TYPE))
            case b'"':
                yield _Token(token, tuple(place))
            case _ if token[:1] in _NUMBER_STARTS:
                yield _Token(token, tuple(place))
            case _:
                yield _Token(token, ())
