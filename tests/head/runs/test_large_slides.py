"""Slides that are predicted block by block have the files that they would have if they were predicted whole."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest

import mmap_st as mm
from mmap_st.head.runs import prediction, prediction_files, slide_prediction
from mmap_st.head.runs.saved_head import read_head
from mmap_st.head.runs.slide_prediction import block_spots, is_large
from mmap_st.workflows import HeadRun
from tests.conftest import Tiny

Runs = dict[str, HeadRun]


@pytest.fixture(scope="module")
def runs(tiny: Tiny, attending: HeadRun) -> Runs:
    return {"ridge": mm.load_head(tiny.run), "mmap": attending}


def make_large(patch: pytest.MonkeyPatch, genes: int = 10, spots: int = 4) -> None:
    """Have every slide predicted block by block, so many spots at a time."""
    patch.setattr(slide_prediction, "MOST_SPOTS", 0)
    patch.setattr(slide_prediction, "_BLOCK_VALUES", spots * genes)


def tree(path: Path) -> dict[str, tuple[object, ...]]:
    """What a file holds, by its place: kinds, shapes and marks of everything, but no values."""
    found: dict[str, tuple[object, ...]] = {}

    def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
        marks = {key: np.asarray(value).tolist() for key, value in item.attrs.items()}
        kind = (item.dtype, item.shape, item.compression) if isinstance(item, h5py.Dataset) else ()
        found[name] = (type(item), marks, *kind)

    with h5py.File(path) as file:
        note("/", file["/"])
        file.visititems(note)
    return found


def assert_same(found: anndata.AnnData, expected: anndata.AnnData) -> None:
    np.testing.assert_allclose(found.X, expected.X, atol=1e-5)
    for place in ("layers", "obsm"):
        ours, theirs = getattr(found, place), getattr(expected, place)
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert ours[key].dtype == theirs[key].dtype
            np.testing.assert_allclose(
                ours[key].astype(np.float64),
                theirs[key].astype(np.float64),
                atol=1e-3 if place == "obsm" else 1e-5,
            )
    for place in ("obs", "var"):
        ours, theirs = getattr(found, place), getattr(expected, place)
        assert ours.dtypes.equals(theirs.dtypes)
        assert list(ours.index) == list(theirs.index)
        for column in theirs:
            if theirs[column].dtype.kind in "fiu":
                np.testing.assert_allclose(ours[column], theirs[column], atol=1e-5)
            else:
                assert ours[column].equals(theirs[column])
    about, expected_about = found.uns["mmap"], expected.uns["mmap"]
    assert about.keys() == expected_about.keys()
    scores, expected_scores = about.pop("scores", None), expected_about.pop("scores", None)
    if expected_scores is not None:
        assert scores == pytest.approx(expected_scores, rel=1e-6)
        assert scores["n_spots"] == expected_scores["n_spots"]
    assert str(about) == str(expected_about)


@pytest.mark.parametrize("spots", [4, 16, 4096])
@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("head", ["ridge", "mmap"])
def test_a_file_that_was_filled_is_as_one_that_was_written(
    head: str,
    measured: bool,
    spots: int,
    runs: Runs,
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = runs[head]
    genes = read_head(run.path).genes
    sets = {"A": genes[:3], "B/C": genes[2:6]} if measured else None
    cohort = f"her2st:{tiny.her2st}" if measured else None
    options = {"slides": ["B1"], "cohort": cohort, "gene_sets": sets, "progress": False}
    whole = mm.predict(run, tiny.store, tmp_path / "whole", **options)
    make_large(monkeypatch, spots=spots)
    filled = mm.predict(run, tiny.store, tmp_path / "filled", **options)
    assert filled.coverage == whole.coverage
    assert filled.scores.keys() == whole.scores.keys() == ({"B1"} if measured else set())
    found, expected = filled.written["B1"], whole.written["B1"]
    assert tree(found) == tree(expected)
    backed = anndata.read_h5ad(found, backed="r")
    np.testing.assert_array_equal(backed.X[3:7], anndata.read_h5ad(found).X[3:7])
    backed.file.close()
    assert_same(anndata.read_h5ad(found), anndata.read_h5ad(expected))
    assert sorted(file.name for file in found.parent.iterdir()) == sorted(
        file.name for file in expected.parent.iterdir()
    )


def test_attention_of_many_spots_is_left_out(
    runs: Runs, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_large(monkeypatch)
    monkeypatch.setattr(slide_prediction, "MOST_VALUES", 100)
    written = mm.predict(runs["mmap"], tiny.store, tmp_path / "p", slides=["B1"], progress=False).written
    table = anndata.read_h5ad(written["B1"])
    assert "attention" not in table.obsm
    assert "attention_of" not in table.uns["mmap"]


@pytest.mark.parametrize(
    ("spots", "genes", "large"),
    [
        (5_000, 250, False),
        (5_000, 13_000, False),
        (5_000, 20_000, True),
        (60_000, 1_000, False),
        (1_000_000, 1_000, True),
        (1_000_000, 10, True),
    ],
)
def test_what_is_large(spots: int, genes: int, large: bool) -> None:
    assert is_large(spots, genes) == large


@pytest.mark.parametrize("genes", [1, 10, 250, 1000, 36_000, 10_000_000])
def test_blocks_are_of_bounded_size(genes: int) -> None:
    spots = block_spots(genes)
    assert spots >= 1
    assert spots == 1 or spots * genes <= slide_prediction._BLOCK_VALUES < 2 * spots * genes


class Failing:
    """A head that fails where it is asked to, at a block of one slide."""

    def __init__(self, head, slide: str, error: Exception | None) -> None:
        self.head, self.slide, self.error = head, slide, error

    def predict_blocks(self, slide, size: int, *, attend: bool):
        for number, block in enumerate(self.head.predict_blocks(slide, size, attend=attend)):
            if slide.name == self.slide and number == 2:
                if self.error is None:
                    return  # it ends too early
                raise self.error
            yield block


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("bad weights"), "the head failed on it (ValueError: bad weights)"),
        (None, "it did not predict all spots"),
        (OSError(errno.EIO, "Input/output error"), "it cannot be read ([Errno 5] Input/output error)"),
        (MemoryError(), "there is not enough memory for it"),
        (KeyError("x"), "the head failed on it (KeyError"),
    ],
)
def test_a_head_that_fails_midway_fails_that_slide_alone(
    error: Exception | None, said: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_large(monkeypatch)
    whole = slide_prediction.predict_blocks
    monkeypatch.setattr(
        slide_prediction,
        "predict_blocks",
        lambda head, slide, size, attend: whole(Failing(head, "B1", error), slide, size, attend=attend),
    )
    report = mm.predict(tiny.run, tiny.store, tmp_path / "p", progress=False)
    assert said in report.failed["B1"]
    assert sorted(report.written) == ["A1", "C1"]
    names = sorted(file.name for file in (tmp_path / "p").iterdir() if not file.name.startswith(".lock"))
    assert names == ["A1.h5ad", "C1.h5ad"]


@contextmanager
def files_of_at_most(kilobytes: int) -> Iterator[None]:
    """Larger files fail as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes << 10, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("kilobytes", [0, 4, 16])
def test_a_full_disk_is_one_sentence_of_small_slides_too(
    kilobytes: int, mmap: Callable, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = prediction.write_prediction

    def limited(*arguments) -> None:
        with files_of_at_most(kilobytes):
            write(*arguments)

    monkeypatch.setattr(prediction, "write_prediction", limited)
    done = mmap("predict", tiny.run, tiny.store, "--out", tmp_path / "p")
    assert done.returncode == 2, done
    (line,) = done.stderr.splitlines()
    assert "A1.h5ad cannot be written (" in line
    assert not list((tmp_path / "p").glob("*.h5ad"))


@pytest.mark.parametrize("kilobytes", [8, 90, 130])
def test_a_full_disk_is_one_sentence(
    kilobytes: int, mmap: Callable, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit on the size of files fails as a full disk does, at the table or at a later block."""
    make_large(monkeypatch)
    filling, write = prediction_files.filling, prediction_files.FilledFile.write
    reached = []

    @contextmanager
    def limited(*arguments):
        with files_of_at_most(kilobytes), filling(*arguments) as file:
            reached.append("the values")
            yield file

    def write_more(self, rows: slice, predicted: np.ndarray, **layers: np.ndarray) -> None:
        write(self, rows, predicted, **layers)
        noise = np.random.default_rng(rows.start).normal(size=3000)
        self.file.create_dataset(f"noise{rows.start}", data=noise)

    with monkeypatch.context() as patch:
        patch.setattr(slide_prediction, "filling", limited)
        patch.setattr(prediction_files.FilledFile, "write", write_more)
        done = mmap("predict", tiny.run, tiny.store, "--out", tmp_path / "p")
    assert bool(reached) == (kilobytes > 8)
    assert done.returncode == 2, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "A1.h5ad cannot be written (" in line
    assert "raise the limit on the size of files" in line
    assert not list((tmp_path / "p").glob("*.h5ad*"))
    assert not list((tmp_path / "p").glob(".*.unfinished"))
    again = mmap("predict", tiny.run, tiny.store, "--out", tmp_path / "p")
    assert again.returncode == 0, again


_KILLED = """
import os, signal, sys
import mmap_st as mm
from mmap_st.head.runs import prediction, prediction_files, slide_prediction
slide_prediction.MOST_SPOTS, slide_prediction._BLOCK_VALUES = 0, 40
write = prediction_files.FilledFile.write
def killed(self, rows, predicted, **layers):
    write(self, rows, predicted, **layers)
    if rows.start >= 8 and "B1" in str(self.disk.name):
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
prediction_files.FilledFile.write = killed
mm.predict(sys.argv[1], sys.argv[2], sys.argv[3], progress=False)
"""


def test_a_killed_prediction_leaves_no_file_and_the_same_command_goes_on(
    mmap: Callable, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p"
    words = [sys.executable, "-c", _KILLED, str(tiny.run), str(tiny.store), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL, done
    assert [file.name for file in out.glob("*.h5ad")] == ["A1.h5ad"]
    make_large(monkeypatch)
    again = mmap("predict", tiny.run, tiny.store, "--out", out)
    assert again.returncode == 0, again
    assert sorted(file.name for file in out.iterdir() if file.name != ".lock") == [
        "A1.h5ad",
        "B1.h5ad",
        "C1.h5ad",
    ]
    for file in out.glob("*.h5ad"):
        assert np.isfinite(anndata.read_h5ad(file).X).all()
