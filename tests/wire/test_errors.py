from __future__ import annotations

from trio_odin.wire.errors import first_error


def test_an_error_alone_is_its_own_first() -> None:
    error = OSError("alone")
    assert first_error(error) is error


def test_the_first_is_found_however_deep_the_groups_are() -> None:
    error = OSError("inner")
    group = ExceptionGroup("outer", [ExceptionGroup("in it", [error, ValueError()]), KeyError()])
    assert first_error(group) is error
