"""What errors say of numbers."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmap_st import errors
from mmap_st.errors import (
    DamagedSlideError,
    MmapError,
    SlidesFailedError,
    agreeing,
    counted,
    did_you_mean,
    in_sentences,
    none_of,
)


@pytest.mark.parametrize(
    ("count", "words", "said"),
    [
        (0, ("slide",), "0 slides"),
        (1, ("slide",), "1 slide"),
        (2, ("slide",), "2 slides"),
        (11, ("slide",), "11 slides"),
        (21, ("slide",), "21 slides"),
        (1, ("axis", "axes"), "1 axis"),
        (3, ("axis", "axes"), "3 axes"),
        (1, ("column was", "columns were"), "1 column was"),
        (0, ("column was", "columns were"), "0 columns were"),
    ],
)
def test_a_count_and_its_words_agree(count: int, words: tuple[str, ...], said: str) -> None:
    assert counted(count, *words) == said
    assert agreeing(count, *words) == said.split(" ", 1)[1]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (("its image is white.",), "its image is white."),
        (("no patient", "no tissue found."), "no patient. No tissue found."),
        (
            ("it is black.", "data/S1.tsv is empty.", "its spots."),
            "it is black. data/S1.tsv is empty. Its spots.",
        ),
        (("a.", "S1_b lacks c.", "her2st: no."), "a. S1_b lacks c. her2st: no."),
    ],
)
def test_messages_in_a_row_are_sentences(messages: tuple[str, ...], said: str) -> None:
    assert in_sentences(messages) == said


def test_none_of_several_and_of_one() -> None:
    assert none_of(1, "slide") == "no slide"
    assert none_of(3, "slide") == "none of the 3 slides"


@pytest.mark.parametrize(
    ("failed", "said"),
    [
        ({"A": "why."}, "slide A: why."),
        ({"A": "why.", "B": "b"}, "slide A: why (and 1 more slide failed)."),
        ({"A": "why.", "B": "b", "C": "c"}, "slide A: why (and 2 more slides failed)."),
    ],
)
def test_other_failed_slides_are_counted(failed: dict[str, str], said: str) -> None:
    assert str(SlidesFailedError(failed)) == f"no slide could be done; {said}"


OURS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, MmapError)}
PACKAGE = Path(errors.__file__).parent
# The probe of HDF5 files runs apart from the package, and what it says of errors is not shown.
SOURCES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0] not in ("tests", "benchmarks", "docs", "setup.py")
    and not path.relative_to(PACKAGE).parts[0].startswith(".")
    and path.name != "hdf5_probe.py"
]


def quotes_whole(tree: ast.AST) -> Iterator[int]:
    """Lines where the whole text of an error that is not the project's goes into a message."""
    for handler in ast.walk(tree):
        if not isinstance(handler, ast.ExceptHandler) or handler.name is None or handler.type is None:
            continue
        kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        if all(isinstance(kind, ast.Name) and kind.id in OURS for kind in kinds):
            continue
        for value in ast.walk(handler):
            if isinstance(value, ast.FormattedValue):
                parts = value.value.values if isinstance(value.value, ast.BoolOp) else [value.value]
                if any(isinstance(part, ast.Name) and part.id == handler.name for part in parts):
                    yield value.lineno


def test_such_quotes_are_found() -> None:
    bad = "try: pass\nexcept (OSError, HeadError) as e:\n    print(f'{e}', f'{e.strerror or e}', f'{first_line(e)}')"
    assert list(quotes_whole(ast.parse(bad))) == [3, 3]
    assert list(quotes_whole(ast.parse(bad.replace("OSError", "SlideError")))) == []


def test_errors_of_libraries_are_quoted_in_one_line() -> None:
    """By `first_line`: those of Polars, HDF5, zarr or torch have several lines."""
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in SOURCES
        for line in quotes_whole(ast.parse(path.read_text()))
    ]
    assert found == []


#: What may be logged as it is: numbers, and texts that the package makes.
_HARMLESS = ("error", "reason", "reading", "again", "difference", "found", "telemetry", "_device")


def logs_names(tree: ast.AST) -> Iterator[int]:
    """Lines that log what may be anybody's text without `printable`."""
    for call in ast.walk(tree):
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and isinstance(call.func.value, ast.Name)
            and call.func.value.id == "_LOG"
        ):
            for value in call.args[1:]:
                named = value.id if isinstance(value, ast.Name) else getattr(value, "attr", None)
                if not isinstance(value, ast.Call) and named not in _HARMLESS:
                    yield call.lineno


def test_such_logs_are_found() -> None:
    assert list(logs_names(ast.parse("_LOG.info('%s: %s', self.name, error)"))) == [1]
    assert list(logs_names(ast.parse("_LOG.info('%s: %s', printable(self.name), error)"))) == []


def test_what_is_logged_of_names_is_printable() -> None:
    """Python shows warnings of a log that nobody set up, so that the commands' own formatting is too late."""
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in SOURCES
        for line in logs_names(ast.parse(path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize("known", [["conch"], ["conch", "conch-v1"]])
def test_nobody_is_asked_whether_they_meant_what_they_said(known: list[str]) -> None:
    assert did_you_mean("conch", known) == did_you_mean("conch", known[1:])


def test_an_error_of_a_damaged_slide_survives_another_process() -> None:
    error = DamagedSlideError("S is damaged", "; extract it again.")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.found) == ("S is damaged; extract it again.", "S is damaged")
