"""How a setting is declared: its variable, its text, and what of that text may be shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import environ

from trio_odin.net.nats_url import NatsUrl
from trio_odin.settings import values

# In the metadata of a setting: whether it can change while the server runs, what it may be, and
# how it may be shown.
RELOADS, ALLOWED, SHOW = "reloads", "allowed", "show"

# What comes before a password in a URL without an @; a token comes after the scheme.
_WITHOUT_A_HOST = re.compile(r"^((?:\w+:)?//(?:[^:]*:)?|[^:]*:|).+", re.DOTALL)

# A wrong scheme hides nothing that the right one would show.
_WEB_SCHEME = re.compile(r"^(?:http|ws)s?://")

# An absolute path, or the name of a file. A key has neither form.
_PATH_LIKE = re.compile(r"|/[\w./+~-]*|[\w./~-]{0,40}\.[A-Za-z]{2,5}")


class SettingError(Exception):
    """A variable has a bad value. The message says which, what it is, and what is allowed."""


def setting(
    name: str,
    default: str,
    convert: Callable[[str], Any],
    *,
    help: str,  # noqa: A002
    reloads: bool = False,
    show: Callable[[str], str] = str,
) -> Any:
    """A variable of the environment; `default` is text too, so that help and docs can show it.

    `reloads`: it can change while the server runs. `show`: its text without what is secret in it.
    """

    def converter(text: str) -> Any:
        try:
            return convert(text)
        except (values.Unacceptable, ValueError) as error:
            shown = (_without_credentials if show is str else show)(text)
            raise SettingError(f"{name}={shown!r}: allowed is {error}") from None

    field = environ.var(default=default, converter=converter, name=name, help=help)
    field.metadata[RELOADS] = reloads
    field.metadata[ALLOWED] = getattr(convert, "allowed", "")
    field.metadata[SHOW] = show
    return field


def _without_credentials(text: str) -> str:
    """What may be shown of a value: nothing before the last @, where a URL has its password."""
    return f"…@{text.rpartition('@')[2]}" if "@" in text else text


def shown_urls(text: str) -> str:
    """What may be shown of some URLs, allowed or not.

    Without an @ what looks like a host may be a user, or a token, and what looks like a port a
    password, so of such a URL that is not allowed only the scheme and the first word are shown.
    """
    return ",".join(_shown_url(url.strip()) for url in text.split(","))


def shown_collector(text: str) -> str:
    """What may be shown of a collector's URL: no password, and no query, which may be a key."""
    url, mark, _ = text.partition("?")
    return _without_credentials(url) + (mark and "?…")


def _shown_url(url: str) -> str:
    if "@" in url:
        return _without_credentials(url)
    try:
        NatsUrl.parse(_WEB_SCHEME.sub("nats://", url))
    except ValueError:
        return _WITHOUT_A_HOST.sub(r"\1…", url)
    return url


def shown_path(text: str) -> str:
    """A path as it may be shown. Somebody may have given what belongs into the file instead."""
    return text if _PATH_LIKE.fullmatch(text) else "…"
