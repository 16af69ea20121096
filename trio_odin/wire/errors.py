"""Looks into groups of errors."""

from __future__ import annotations


def first_error(error: BaseException) -> BaseException:
    """The error itself or, of a group, its first error, however deeply groups are nested."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
