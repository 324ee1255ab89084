"""`mmap info` says what a trained head is, or what is in a store, whichever lies there."""

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmap_st.head.sharing import ModelCard, card_of_run, card_sections

BEFORE = Path(__file__).parents[1] / "data_of_before" / "store_and_runs.tar.xz"


@pytest.fixture
def run(tiny: Any) -> Path:
    return tiny.run


def lines_of(card: ModelCard) -> str:
    return "\n".join(line for section in card_sections(card) for line in section.lines)


def test_info_says_what_the_readme_says(run: Path, mmap: Callable[..., Any]) -> None:
    done = mmap("info", run)
    assert (done.returncode, done.stderr) == (0, "")
    assert lines_of(card_of_run(run)).splitlines()[0] in done.stdout.splitlines()
    shown = json.loads(mmap("info", run, "--json").stdout)
    written = json.loads((run / "card.json").read_text())
    written.pop("sha256")
    assert shown == written


def test_info_of_a_store_is_as_it_was(tiny: Any, mmap: Callable[..., Any]) -> None:
    assert "slide um/px" in mmap("info", tiny.store).stdout
    lines = json.loads(mmap("info", tiny.store, "--json").stdout)["slides"]
    assert {line["slide"] for line in lines} == {"A1", "B1", "C1"}
    assert {line["state"].partition(",")[0] for line in lines} == {"complete"}


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("predictions", "holds predictions; `mmap report` draws them"),
        ("head.json", "is a file: it is not a feature store, nor a run"),
        ("..", "is a folder of other things"),
        ("missing", "is not a feature store"),
    ],
)
def test_info_of_anything_else_is_one_sentence(
    place: str, said: str, run: Path, mmap: Callable[..., Any]
) -> None:
    done = mmap("info", run / place)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_info_of_an_evaluation_names_a_run(tmp_path: Path, mmap: Callable[..., Any]) -> None:
    with tarfile.open(BEFORE) as archive:
        archive.extractall(tmp_path, filter="data")
    done = mmap("info", tmp_path / "evaluation")
    assert done.returncode == 2
    named = done.stderr.partition("such as ")[2].strip().rstrip(".")
    assert mmap("info", named).returncode == 0


@pytest.mark.parametrize("flags", [("--verify",), ("--seal",)])
def test_flags_of_a_store_are_not_taken_for_a_run(flags: Any, run: Path, mmap: Callable[..., Any]) -> None:
    assert mmap("info", run, *flags).returncode == 2


def test_a_pipe_is_refused(tmp_path: Path, mmap: Callable[..., Any]) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe" in mmap("info", tmp_path / "pipe").stderr


@pytest.mark.parametrize("head", ["ridge", "mmap"])
def test_a_run_of_before_has_a_card_too(head: str, tmp_path: Path, mmap: Any) -> None:
    with tarfile.open(BEFORE) as archive:
        archive.extractall(tmp_path, filter="data")
    kept = {p: p.read_bytes() for p in (tmp_path / head).rglob("*") if p.is_file()}
    done = mmap("info", tmp_path / head)
    assert done.returncode == 0, done.stderr
    for said in ("colour-grid at 2, 4 um/px", "Trained on 3 slides (A1, B1, C1)", "was not recorded", "0.4461",
                 "The licence of colour-grid is not known"):  # fmt: skip
        assert said in done.stdout
    assert "of 3 patients" not in done.stdout
    shown = mmap("info", tmp_path / head, "--json")
    assert json.loads(shown.stdout)["data"]["train"]["spots"] is None
    assert {p: p.read_bytes() for p in (tmp_path / head).rglob("*") if p.is_file()} == kept
