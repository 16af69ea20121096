from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.settings.assignments import BadLine, parse_assignments


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=1", "1"),
        ("  A = 1 2 ", "1 2"),
        ("A=", ""),
        ("A='1'", "1"),
        ('A=" 1 "', " 1 "),
        ("A='1\"", "'1\""),
        ("A='", "'"),
        ("A=b=c", "b=c"),
        ("A=1 # no comment", "1 # no comment"),
        ("A=$B", "$B"),
        ("A=\\n", "\\n"),
        ("A=é", "é"),
        ("A=1\r", "1"),
    ],
)
def test_a_line_is_a_name_and_a_value(line: str, value: str) -> None:
    assert parse_assignments(line) == {"A": value}


def test_empty_lines_and_comments_are_ignored_and_the_last_wins() -> None:
    text = "# first\n\n; second\n  # third\nA=1\nB=2\n \t\nA=3\n"
    assert parse_assignments(text) == {"A": "3", "B": "2"}


@pytest.mark.parametrize(
    "line", ["A", "=1", "1A=1", "A B=1", "export A=1", "A-B=1", "A=\x00", "A=a\tb", "é=1", "A=\x1b"]
)
def test_a_malformed_line_is_reported_by_number_without_its_content(line: str) -> None:
    with pytest.raises(BadLine) as caught:
        parse_assignments(f"# one\nGOOD=1\n{line}\n")
    assert str(caught.value) == "line 3 is not NAME=value"


@given(st.text())
def test_any_text_is_assignments_or_a_complaint(text: str) -> None:
    try:
        variables = parse_assignments(text)
    except BadLine:
        return
    assert all(name.isidentifier() and value.isprintable() for name, value in variables.items())


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z_][A-Z0-9_]*", fullmatch=True),
        st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"])),
    )
)
def test_a_quoted_value_is_read_unchanged(variables: dict[str, str]) -> None:
    text = "\n".join(f'{name}="{value}"' for name, value in variables.items())
    assert parse_assignments(text) == variables
