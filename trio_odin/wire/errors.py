"""What is in a group of errors."""

from __future__ import annotations


def first_error(error: BaseException) -> BaseException:
    """The error itself, or the first one in a group, however deep the groups are."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
