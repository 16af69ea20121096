"""Makes a dictionary from the shapes of events: what they have in common, and nothing else.

A dictionary is public, so no value may get into it that only some events have. A JSON text is cut
into *runs*: what is between two values that vary. What varies is found by counting:

    {"ts":…,"data":{"side":"buy","price":…,"nonce":"…"}}
    └────┘ └───────────────────────────┘ └─────────┘ └──┘

- Strings vary, unless few of them make up nearly all at their place, as `"buy"` and `"sell"` do. In
  a payload they are at most 16 at one place, not counting the symbols of channels.
- So do numbers, but those of more than two digits always vary.
- So do keys: in a table by account the keys are values.
- What looks like an account, an address or a token always varies.

Counts are taken from messages with one event. Batches are the same payloads again, so they have the
places of single events.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final, NamedTuple, TypeAlias

_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s"{}\[\],:]+|\s+')
# Strings at one place are enumerated if a few make up this share of them. Each was there so often.
_ENUMERATED_SHARE: Final = 0.9
_TIMES_MIN: Final = 4
# How many: of the values and the keys of a payload, and of the symbols and types of channels.
_VALUES_MAX, _KEYS_MAX, _CHANNELS_MAX = 16, 64, 256
# What is enumerated is short, and has nothing that looks like what only one person or machine has.
_STRING_MAX_BYTES: Final = 64
_NUMBER_MAX_BYTES: Final = 2
_PERSONAL = re.compile(
    r"@"  # an e-mail address
    # Five digits, as they are or in groups: the number of an account, a card, a phone, an IBAN.
    r"|[0-9](?:[^0-9A-Za-z]{0,2}[0-9]){4}"
    r"|[0-9](?:[ ./:-]+[0-9]+){2}"  # three groups: an IPv4 address, a date
    r"|:[0-9A-Fa-f]*:"  # an IPv6 or MAC address
    r"|[0-9A-Fa-f]{8}|[0-9A-Za-z]{24}|eyJ"  # an address on a chain, a UUID, a token, a JWT
    # Letters and digits by turns, or some letters with three digits: a token, a key.
    r"|(?=[0-9A-Za-z]{8})(?:[0-9]+[A-Za-z]+){2}|(?=[0-9A-Za-z]{8})(?:[A-Za-z]+[0-9]+){2}"
    r"|(?=[0-9A-Za-z]{12})(?:[A-Za-z]*[0-9]){3}"
)
# A reference to a run costs about as much as this.
_REFERENCE_BYTES: Final = 2

# The keys from the outermost object on. All elements of a list have the same place.
Place: TypeAlias = tuple[bytes, ...]
_KEYS, _ELEMENT = b"{", b"["
_SYMBOL, _EVENT_TYPE = b"symbol", b"event type"
_CHANNEL: Final = b'"channel"'
_SYMBOLS: Final = (_CHANNEL, _SYMBOL)
# What publishers choose, of an event, and where a batch has its events.
_THEIRS: Final = (b'"data"', _CHANNEL)
_IN_BATCH: Final = (b'"events"', _ELEMENT)
_NUMBER_STARTS: Final = frozenset(bytes((octet,)) for octet in b"-0123456789")


class _Token(NamedTuple):
    """A piece of a JSON text; `place` is that of a value or key, () of what is between them."""

    text: bytes
    place: Place


_END: Final = _Token(b"", (b"",))


def make_dictionary(texts: Sequence[bytes], size: int, batches: Sequence[bytes] = ()) -> bytes:
    """Return at most `size` bytes that the `texts`, JSON objects, have in common.

    What saves most for its size is at the end, where references to it are shortest. The result is
    empty if the texts have nothing in common, and the same for the same texts.

    Args:
        texts: messages with one event.
        size: the most bytes.
        batches: messages with the same events in batches.
    """
    enumerated = _enumerated(texts, batches)
    times: Counter[bytes] = Counter()
    saved: Counter[bytes] = Counter()
    for text in chain(texts, batches):
        for run, saves in _runs(text, enumerated):
            times[run] += 1
            saved[run] += saves
    useful = [run for run in times if times[run] >= _TIMES_MIN and saved[run] > 0]
    packed = b""
    for run in sorted(useful, key=lambda run: (-saved[run] / len(run), run)):
        if run not in packed and len(run) + len(packed) <= size:
            packed = run + packed
    return packed


def _enumerated(texts: Sequence[bytes], batches: Sequence[bytes]) -> dict[Place, frozenset[bytes]]:
    """The strings that do not vary, by their places."""
    strings: defaultdict[Place, Counter[bytes]] = defaultdict(Counter)
    for number, text in enumerate(chain(texts, batches)):
        is_batch = number >= len(texts)
        for token, place in _tokens(text):
            if place and not (is_batch and place[0] in _THEIRS):
                strings[place][token] += 1
    symbols = frozenset(map(_read, _common(_SYMBOLS, strings[_SYMBOLS], ())))
    found = {place: _common(place, counts, symbols) for place, counts in strings.items()}
    return {place: common for place, common in found.items() if common}


def _common(
    place: Place, counts: Mapping[bytes, int], symbols: Collection[str | None]
) -> frozenset[bytes]:
    """The strings that make up nearly all at `place`; none if there are no such strings."""
    most = _KEYS_MAX if place[-1] == _KEYS else _VALUES_MAX
    most = _CHANNELS_MAX if place[0] == _CHANNEL else most
    common: list[bytes] = []
    for text, times in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if times < _TIMES_MIN:
            break
        is_symbol = place[-1] != _KEYS and _read(text) in symbols
        if (is_symbol or most > 0) and _may_be_enumerated(text):
            common.append(text)
            most -= not is_symbol
    share = sum(counts[text] for text in common)
    return frozenset(common if share >= _ENUMERATED_SHARE * sum(counts.values()) else ())


def _may_be_enumerated(token: bytes) -> bool:
    most = _NUMBER_MAX_BYTES if token[:1] in _NUMBER_STARTS else _STRING_MAX_BYTES
    text = _read(token) if len(token) <= most else None
    return text is not None and not _PERSONAL.search(text)


def _read(token: bytes) -> str | None:
    """What a token is for a reader, without quotes and escapes; None if it cannot be read."""
    try:
        text = json.loads(b'"%b"' % token.removeprefix(b'"').removesuffix(b'"'))
    except ValueError:
        return None
    # Digits of all scripts and widths are digits.
    normal = unicodedata.normalize("NFKC", text)
    return re.sub(r"\d", lambda digit: str(unicodedata.digit(digit[0])), normal)


def public_strings(dictionary: bytes, texts: Sequence[bytes]) -> dict[str, list[str]]:
    """The strings and short numbers of the events that are in `dictionary`, by their places.

    For the eyes of a person who knows what must not become public: as they are in JSON, without
    quotes, and with an escape for each character that a terminal would not show.

    Args:
        dictionary: what was made of `texts`.
        texts: messages with one event.
    """
    found = {}
    for place, common in sorted(_enumerated(texts, ()).items()):
        if place[0] in _THEIRS and (there := [text for text in common if text in dictionary]):
            found[_named(place)] = sorted(map(_shown, there))
    return found


def _shown(token: bytes) -> str:
    text = token.decode(errors="replace").removeprefix('"').removesuffix('"')
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(escaped)


def _named(place: Place) -> str:
    names = {_KEYS: "keys", _ELEMENT: "[]"}
    return ".".join(names.get(key) or _shown(key) for key in place)


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
    """The tokens of a JSON text, in order; together they are the text.

    Those of an event in a batch have the places of a single event.
    """
    for token, place in _placed(text):
        is_of_event = place[:2] == _IN_BATCH and len(place) > len(_IN_BATCH)
        yield _Token(token, place[len(_IN_BATCH) :] if is_of_event else place)


def _placed(text: bytes) -> Iterator[_Token]:
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
