"""A store or a folder that is removed while a command runs is said, and never reported as a success."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from mmap_st.data.cohort import Cohort, CohortSlide
from mmap_st.errors import StoreError
from mmap_st.extract.engine import session
from mmap_st.extract.store import FeatureStore, encode_name, lost_slides, staying
from mmap_st.head.evaluation import fold_jobs, fold_runs
from mmap_st.head.runs import fit, prediction
from mmap_st.prototypes import stored

ENCODER, TINY = "efficientnet-lite0", "timm:test_efficientnet"
FIT = ("--encoder", ENCODER, "--head", "ridge", "--set", "alpha=1e4", "--genes", "mean:5")


@pytest.fixture
def store(tiny, tmp_path: Path) -> Path:
    """A copy of a store, to be removed."""
    return shutil.copytree(tiny.store, tmp_path / "s.zarr")


def remove_at(
    patch: pytest.MonkeyPatch, where: object, name: str, what: Path, call: int = 1, after: bool = False
) -> None:
    """Remove a folder as another process would: when a function is called for the nth time."""
    real, calls = getattr(where, name), 0

    def called(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            what.rename(what.with_name(f"{what.name} removed"))
        result = real(*arguments, **named)
        if calls == call and after:
            what.rename(what.with_name(f"{what.name} removed"))
        return result

    patch.setattr(where, name, called)


def extraction(tiny, store: Path) -> tuple[object, ...]:
    return ("extract", f"her2st:{tiny.her2st}", store, "--encoder", TINY, "--random-weights", "--mpp", "1")


@pytest.mark.parametrize("call", [1, 3])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["open_session", "publish"])
def test_a_store_removed_in_an_extraction(
    name: str, after: bool, call: int, tiny, mmap: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmap_st.extract.engine import engines as module

    where = module if name == "open_session" else session.SlideSession
    remove_at(monkeypatch, where, name, tmp_path / "s.zarr", call, after)
    done = mmap(*extraction(tiny, tmp_path / "s.zarr"))
    assert done.returncode == 1, done
    assert "embedded" not in done.stdout
    assert "3 failed" in done.stdout
    assert "was removed" in done.stdout
    assert "Traceback" not in done.stderr


def test_one_slide_removed_in_an_extraction(
    tiny, store: Path, mmap: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was complete before counts as little as what was just embedded."""
    assert mmap(*extraction(tiny, store)).returncode == 0
    shutil.rmtree(store / "C1")
    remove_at(monkeypatch, session.SlideSession, "publish", store / "A1")
    done = mmap(*extraction(tiny, store))
    assert done.returncode == 1
    assert "1 embedded, 1 complete before, 1 failed" in done.stdout
    assert "removed from the store while this ran" in done.stdout


def test_a_store_removed_in_an_import(
    tiny, store: Path, mmap: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmap_st.extract.imports import importing

    (tmp_path / "f").mkdir()
    for name in ("A1", "B1"):
        np.save(tmp_path / "f" / f"{name}.npy", np.ones((len(FeatureStore(store)[name]), 4), np.float32))
    remove_at(monkeypatch, importing, "write_slide", store, call=2, after=True)
    words = ("import", store, "--encoder", "x", "--mpp", "1", "--features", tmp_path / "f")
    done = mmap(*words)
    assert done.returncode == 1, done
    assert "2 failed" in done.stdout
    assert "imported" not in done.stdout.replace("cannot be imported", "")


@pytest.mark.parametrize("call", [1, 3])
@pytest.mark.parametrize("after", [False, True])
def test_a_store_removed_while_prototypes_are_built(
    after: bool, call: int, store: Path, mmap: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_at(monkeypatch, stored, "build_candidates", store, call, after)
    done = mmap("prototypes", store, "--encoder", ENCODER, "--clusters", "7")
    assert done.returncode == 1, done
    assert "was removed or moved" in done.stdout
    assert "built" not in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("where", "name"),
    [(fit, "load_slide"), (fit, "plan_validation"), (fit, "write_prediction")],
)
def test_a_store_removed_in_a_fit(
    where: object,
    name: str,
    tiny,
    store: Path,
    mmap: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remove_at(monkeypatch, where, name, store)
    words = (
        "fit-head",
        f"her2st:{tiny.her2st}",
        store,
        *FIT,
        "--test",
        "patient=B",
        "--out",
        tmp_path / "run",
    )
    done = mmap(*words)
    assert done.returncode == 2, done
    (line,) = done.stderr.splitlines()
    assert "was removed or moved while this ran" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("call", [1, 2])
def test_a_store_removed_in_an_evaluation(
    call: int, tiny, store: Path, mmap: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_at(monkeypatch, fold_jobs, "fit_split", store, call)
    words = ("evaluate", f"her2st:{tiny.her2st}", store, *FIT, "--jobs", "1", "--out", tmp_path / "e")
    done = mmap(*words)
    # Folds that were fitted before are scored.
    assert done.returncode == (1 if call == 2 else 2), done
    assert "has no slide" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_store_removed_before_the_processes_of_an_evaluation_open_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They end at once, which otherwise means that memory ran out."""

    class Pool:
        def submit(self, *_: object) -> Future[str]:
            future: Future[str] = Future()
            future.set_exception(BrokenProcessPool())
            return future

    monkeypatch.setattr(fold_runs, "_pool", lambda shared, workers: nullcontext(Pool()))
    shared = fold_jobs.SharedInputs(Cohort((CohortSlide("A"),), "here"), tmp_path / "s.zarr", {})
    with pytest.raises(StoreError, match="was removed or moved while this ran"):
        list(fold_runs._finished_here(shared, ["a job"], 2, print))


def test_a_store_removed_while_slides_are_predicted(
    tiny, store: Path, mmap: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_at(monkeypatch, prediction, "load_slide", store, call=2)
    done = mmap("predict", tiny.run, store, "--out", tmp_path / "p")
    assert done.returncode == 1, done
    assert "was removed or moved" in done.stdout
    assert [path.name for path in (tmp_path / "p").glob("*.h5ad")] == ["A1.h5ad"]


@pytest.mark.parametrize(
    ("command", "where", "name"),
    [
        ("fit-head", fit, "fit_spread"),
        ("fit-head", fit, "write_table"),
        ("predict", prediction, "load_slide"),
        ("evaluate", fold_jobs, "fit_split"),
    ],
)
def test_an_output_removed_meanwhile_is_one_sentence(
    command: str, where: object, name: str, tiny, store: Path, mmap: Callable, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    cohort = f"her2st:{tiny.her2st}"
    words: dict[str, tuple[object, ...]] = {
        "fit-head": (cohort, store, *FIT, "--test", "patient=B"),
        "predict": (tiny.run, store),
        "evaluate": (cohort, store, *FIT, "--jobs", "1"),
    }
    gone = tmp_path / ".out.unfinished" if command == "fit-head" else out
    remove_at(monkeypatch, where, name, gone, call=2 if command == "evaluate" else 1)
    done = mmap(command, *words[command], "--out", out)
    assert done.returncode == 2, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(tmp_path) in line


def test_what_is_there_is_not_lost(tiny) -> None:
    names = FeatureStore(tiny.store).slides
    assert lost_slides(tiny.store, names, ENCODER, (0.5, 1.0)) == {}
    assert list(lost_slides(tiny.store, names, ENCODER, (0.25,))) == list(names)
    with staying(tiny.store, names, ENCODER, (0.5,)), pytest.raises(StoreError, match="its own"):
        raise StoreError("its own")
    with pytest.raises(KeyError), staying(tiny.store, names, ENCODER, (0.5,)):
        raise KeyError("a defect stays one")


def test_an_array_that_is_removed_is_noticed(store: Path) -> None:
    with (
        pytest.raises(StoreError, match=r"slide A1: \S+ at 0.5000 um/px was removed"),
        staying(store, ["A1", "B1"], ENCODER, (0.5, 1.0)),
    ):
        shutil.rmtree(store / encode_name("A1") / ENCODER / "0.5000" / "embedding")
