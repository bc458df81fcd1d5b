"""docs/SECURITY.md is what this product says of itself: each line has a test that exists, or a reason in words."""

import re
from typing import Final

import pytest

from ops.home import ROOT

DOCUMENT: Final = (ROOT / "docs" / "SECURITY.md").read_text()
ROWS: Final = {int(number): text for number, text in re.findall(r"^\| (\d+) \| (.*) \|$", DOCUMENT, re.MULTILINE)}
NAMED: Final = re.compile(r"`([a-z_/]+\.(?:py|test\.mjs))::([^`]+)`")


def test_every_line_is_there_once() -> None:
    assert list(ROWS) == list(range(1, 47))
    assert len(re.findall(r"^\| \d+ \|", DOCUMENT, re.MULTILINE)) == 46


@pytest.mark.parametrize("number", ROWS)
def test_a_line_names_tests_that_exist_or_says_why_there_are_none(number: int) -> None:
    named = NAMED.findall(ROWS[number])
    assert named or re.search(r"\| (None: |Not ).{10,}", ROWS[number])
    for file, name in named:
        text = (ROOT / "tests" / file).read_text()
        defined = f'test("{name}"' if file.endswith(".mjs") else f"def {name}("
        assert defined in text, f"{file} has no {name}"
