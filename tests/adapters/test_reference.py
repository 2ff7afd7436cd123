"""References: what is one, and what is not."""

import pytest

from adapters.errors import InvalidReference
from adapters.reference import Reference, parse_reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("movies", Reference("movies")),
        ("movies@3", Reference("movies", version=3)),
        ("movies@champion", Reference("movies", alias="champion")),
        ("a.b-c_9", Reference("a.b-c_9")),
        ("x" * 63, Reference("x" * 63)),
    ],
)
def test_good(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@3",
        "movies@",
        "Movies",
        "mo vies",
        "../x",
        "a/b",
        "-a",
        ".a",
        "x" * 64,
        "a@0",
        "a@-1",
        "a@007",
        "a@b@c",
        "ä",
    ],
)
def test_bad(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_reference(text)
