"""Who may write into a run's folder, and what of it stays when."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest

import mmap_st as mm
from mmap_st.data.cohort import Cohort
from mmap_st.errors import HeadError, RequestError, WriteError
from mmap_st.extract.store import FeatureStore
from mmap_st.files import InUseError, file_lock
from mmap_st.head.evaluation.folder import evaluation_folder, link_files
from mmap_st.head.interface import parse_settings
from mmap_st.head.registry import head_method
from mmap_st.head.runs import fit as fit_module
from mmap_st.head.runs.fit import fit_head
from mmap_st.head.runs.prediction import predict_slides
from mmap_st.head.runs.prediction_files import read_prediction
from mmap_st.head.runs.request import FitRequest
from mmap_st.head.runs.run_folder import (
    RUN_FILES,
    finish_run_folder,
    only_writer,
    restore_run,
    run_folder,
    start_run_folder,
)
from mmap_st.head.runs.saved_head import read_head

ENCODER = "efficientnet-lite0"


def request(**changes) -> FitRequest:
    method = head_method("mean")
    made = FitRequest(ENCODER, method, parse_settings(method, []), genes="all", test="slide=E1")
    return replace(made, baselines=False, **changes)


@pytest.fixture(scope="module")
def runs(cohort: Cohort, store: FeatureStore, tmp_path_factory) -> tuple[Path, Path]:
    """Two runs of heads that differ."""
    folder = tmp_path_factory.mktemp("runs")
    for name, train in (("one", "slide=A1"), ("two", "slide=B1")):
        fit_head(cohort, store, request(train=train), folder / name)
    return folder / "one", folder / "two"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_finished_run_is_replaced_only_if_that_is_requested(
    cohort: Cohort, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    fit_head(cohort, store, request(train="slide=A1"), out)
    (out / "notes.txt").write_text("mine")
    before = contents(out)
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "read_cohort_counts", None)  # no work before the refusal
        with pytest.raises(RequestError, match=r"holds a finished run; .* --overwrite"):
            fit_head(cohort, store, request(train="slide=B1"), out)
    assert contents(out) == before
    fit_head(cohort, store, request(train="slide=B1"), out, overwrite=True)
    assert json.loads((out / "head.json").read_text())["slides"]["train"] == ["B1"]
    assert (out / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_a_run_is_refused(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "metrics.json").write_text("{}")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "genes.csv").write_text("mine")
    for name, part in (("file", "is a file"), ("evaluation", "other things"), ("thesis", "other things")):
        with (
            pytest.raises(RequestError, match=part),
            run_folder(tmp_path / name, overwrite=overwrite),
        ):
            pytest.fail("it may not be written")
    (tmp_path / "empty").mkdir()
    with run_folder(tmp_path / "empty", overwrite=overwrite):
        pass
    assert (tmp_path / "empty").is_dir()


def test_two_fits_do_not_write_one_run_and_a_killed_one_keeps_nothing_locked(tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = (
        "import time; from pathlib import Path; from mmap_st.head.runs.run_folder import run_folder\n"
        f"with run_folder(Path({str(out)!r})):\n    print('held', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RequestError, match="is being written by another process"), run_folder(out):
            pytest.fail("it is locked")
    finally:
        other.kill()
        other.communicate()
    with run_folder(out):
        assert not out.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_file_is_removed_lets_one_writer_in_at_a_time(tmp_path: Path) -> None:
    inside, most, written = 0, 0, 0
    guard, refusals = threading.Lock(), set()

    def work() -> None:
        nonlocal inside, most, written
        for _ in range(60):
            try:
                with only_writer(tmp_path / "run", tmp_path / ".lock", "taken"):
                    with guard:
                        inside += 1
                        written += 1
                        most = max(most, inside)
                    time.sleep(0.0005)
                    with guard:
                        inside -= 1
            except RequestError as error:
                refusals.add(str(error))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert written > 0
    assert refusals == {"taken"}
    assert list(tmp_path.iterdir()) == []


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """End the process before this step on the disk, counted from 0."""
    done = 0

    def counted(real: Callable) -> Callable:
        def call(*arguments, **named):
            nonlocal done
            if done == step:
                raise Killed
            done += 1
            return real(*arguments, **named)

        return call

    for name in ("rename", "replace", "unlink", "rmdir"):
        patch.setattr(Path, name, counted(getattr(Path, name)))
    patch.setattr(shutil, "rmtree", counted(shutil.rmtree))


def half_replaced(step: int, runs: tuple[Path, Path], out: Path, patch: pytest.MonkeyPatch) -> bool:
    """Replace the first of two runs by the second, killed before a step; whether it ended before that."""
    shutil.copytree(runs[0], out)
    (out / "notes.txt").write_text("mine")
    (out / "predictions" / "readme.txt").write_text("mine too")
    draft = start_run_folder(out)
    shutil.copytree(runs[1], draft, dirs_exist_ok=True)
    with patch.context() as killing:
        kill_at(step, killing)
        try:
            finish_run_folder(draft, out)
        except Killed:
            return False
    return True


OWN = {"notes.txt": b"mine", "predictions/readme.txt": b"mine too"}
#: Seven files and a prediction move out, as many in, and two folders go.
STEPS = 18


@pytest.mark.parametrize("step", range(STEPS + 1))
def test_an_interrupted_replacement_loses_nothing_and_mixes_nothing(
    step: int, runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each of its steps on the disk."""
    out = tmp_path / "run"
    assert half_replaced(step, runs, out, monkeypatch) == (step == STEPS)
    assert {name: content for name, content in contents(out).items() if name in OWN} == OWN
    hashes = {name: read_head(folder).sha256 for name, folder in zip(("one", "two"), runs, strict=True)}
    if not (out / "head.json").exists():
        with pytest.raises(HeadError, match="is not a run"):
            read_head(out)
    else:
        found = read_head(out)
        (name,) = [name for name, sha256 in hashes.items() if sha256 == found.sha256]
        assert found.card.slides.train == (("A1",) if name == "one" else ("B1",))
    # The same command again.
    with run_folder(out, overwrite=True):
        again = start_run_folder(out)
        shutil.copytree(runs[1], again, dirs_exist_ok=True)
        finish_run_folder(again, out)
    assert contents(out) == {**contents(runs[1]), **OWN}
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("again", range(0, STEPS, 3))
@pytest.mark.parametrize("step", range(STEPS))
def test_the_next_command_makes_a_half_replaced_run_whole(
    step: int,
    again: int,
    runs: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whichever step it was killed before, and though the first try to make it whole is killed too."""
    out = tmp_path / "run"
    half_replaced(step, runs, out, monkeypatch)
    with monkeypatch.context() as killing, suppress(Killed):
        kill_at(again, killing)
        restore_run(out)
    restore_run(out)
    found = contents(out)
    assert found in ({**contents(runs[0]), **OWN}, {**contents(runs[1]), **OWN})
    which = (
        "earlier run is back" if found["head.json"] == contents(runs[0])["head.json"] else "is complete now"
    )
    said = [record.message for record in caplog.records]
    assert len(said) <= 1
    assert all(which in text and str(out) in text for text in said)
    # A lock of a killed process is of no account; everything else is gone.
    assert {p.name for p in tmp_path.iterdir()} <= {"run", ".run.lock", ".run.unfinished"}
    restore_run(out)
    assert contents(out) == found


def between_two_renames(runs: tuple[Path, Path], out: Path) -> None:
    """What the first version left if it was killed there; it had a user's own files in the draft."""
    shutil.copytree(runs[0], out.with_name(f".{out.name}.before"))
    draft = out.with_name(f".{out.name}.unfinished")
    shutil.copytree(runs[1], draft)
    (draft / "notes.txt").write_text("mine")


@pytest.mark.parametrize("command", ["load", "predict", "report", "fit"])
def test_every_command_finds_the_run_that_was_set_aside(
    command: str, runs: tuple[Path, Path], store: FeatureStore, cohort: Cohort, tmp_path: Path, mmap
) -> None:
    out = tmp_path / "run"
    between_two_renames(runs, out)
    if command == "load":
        assert mm.load_head(out).card.slides.train == ("A1",)
    elif command == "predict":
        done = mmap("predict", out, store.path, "--out", tmp_path / "p", "--slides", "E1")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("the earlier run is back") == 1
    elif command == "report":
        done = mmap("report", out, "--out", tmp_path / "r", "--genes", read_head(runs[0]).genes[0])
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("the earlier run is back") == 1
    else:
        with pytest.raises(RequestError, match="holds a finished run"):
            fit_head(cohort, store, request(train="slide=B1"), out)
    assert contents(out) == {**contents(runs[0]), "notes.txt": b"mine"}


def test_a_run_that_another_process_replaces_is_left_to_it(runs: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    between_two_renames(runs, out)
    with (
        only_writer(out, tmp_path / ".run.lock", "taken"),
        pytest.raises(RequestError, match="is being replaced by another process"),
    ):
        restore_run(out)
    assert not out.exists()


def test_a_run_that_cannot_be_made_whole_is_said(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    between_two_renames(runs, out)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(WriteError, match=r"cannot be made whole \(Read-only file system\)"):
        restore_run(out)


def test_a_folder_of_such_a_name_that_holds_other_things_stays(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(runs[0], tmp_path / "run")
    (tmp_path / ".run.before").mkdir()
    (tmp_path / ".run.before" / "thesis.txt").write_text("mine")
    restore_run(tmp_path / "run")
    assert (tmp_path / ".run.before" / "thesis.txt").read_text() == "mine"


def test_all_files_of_a_run_are_known(runs: tuple[Path, Path]) -> None:
    assert {p.name for p in runs[0].iterdir()} <= set(RUN_FILES)


def test_an_evaluation_removes_only_a_folder_that_it_made(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    with pytest.raises(HeadError, match="no"), evaluation_folder(mine):
        raise HeadError("no")
    assert mine.is_dir()
    assert list(mine.iterdir()) == []
    with pytest.raises(HeadError, match="no"), evaluation_folder(tmp_path / "new"):
        raise HeadError("no")
    assert not (tmp_path / "new").exists()
    with evaluation_folder(tmp_path / "new"):
        (tmp_path / "new" / "request.json").touch()
        with pytest.raises(RequestError, match="another evaluation"), evaluation_folder(tmp_path / "new"):
            pytest.fail("it is locked")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["request.json"]


def test_a_lock_is_held_until_its_file_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.unlink
    seen = []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == ".lock":
            with pytest.raises(InUseError), file_lock(path):
                pytest.fail("it is not held")
            seen.append(path)
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with evaluation_folder(tmp_path / "new"):
        pass
    assert seen == [tmp_path / "new" / ".lock"]


def test_predictions_of_an_evaluation_are_shown_next_to_a_users_files(tmp_path: Path) -> None:
    runs, shown = tmp_path / "runs", tmp_path / "predictions"
    runs.mkdir()
    for name in ("A1", "B1", "C1"):
        (runs / f"{name}.h5ad").write_text(name)
    link_files([runs / "A1.h5ad", runs / "B1.h5ad"], shown)
    (shown / "mine.txt").write_text("mine")
    (runs / "B1.h5ad").unlink()
    (runs / "B1.h5ad").write_text("new")
    for _ in range(2):
        link_files([runs / "B1.h5ad", runs / "C1.h5ad"], shown)
        assert contents(shown) == {"B1.h5ad": b"new", "C1.h5ad": b"C1", "mine.txt": b"mine"}


def test_a_folder_of_predictions_is_of_one_head(
    runs: tuple[Path, Path], store: FeatureStore, tmp_path: Path
) -> None:
    out = tmp_path / "predicted"
    predict_slides(runs[0], store, out, ["A1"])
    predict_slides(runs[0], store, out, ["A1", "B1"])  # the same head may go further
    before = contents(out)
    assert before.keys() == {"A1.h5ad", "B1.h5ad"}
    for slides in (["A1"], ["C1"], None):
        with pytest.raises(RequestError, match=r"this head did not make \(such as A1.h5ad\); .*--overwrite"):
            predict_slides(runs[1], store, out, slides)
    assert contents(out) == before
    anndata.AnnData(np.zeros((2, 2), np.float32)).write_h5ad(out / "counts.h5ad")
    predict_slides(runs[1], store, out, ["B1", "C1"], overwrite=True)
    assert {p.name for p in out.iterdir()} == {"B1.h5ad", "C1.h5ad", "counts.h5ad"}
    sha256 = read_head(runs[1]).sha256
    assert {read_prediction(out / f"{s}.h5ad").uns["mmap"]["head_sha256"] for s in ("B1", "C1")} == {sha256}
    assert read_prediction(runs[1] / "predictions" / "E1.h5ad").uns["mmap"]["head_sha256"] == sha256


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_is_not_a_prediction_is_not_replaced(
    overwrite: bool, runs: tuple[Path, Path], store: FeatureStore, tmp_path: Path
) -> None:
    anndata.AnnData(np.zeros((2, 2), np.float32)).write_h5ad(tmp_path / "A1.h5ad")
    before = contents(tmp_path)
    with pytest.raises(RequestError, match=r"A1\.h5ad is not a prediction, and would be replaced"):
        predict_slides(runs[0], store, tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_patients_in_training_and_validation_are_told_of(
    cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    shared = replace(
        cohort,
        slides=tuple(replace(s, patient="A") if s.slide == "B1" else s for s in cohort.slides),
    )
    report = fit_head(shared, store, request(train="slide=A1,C1", validation="slide=B1"), tmp_path / "run")
    assert report.metrics.protocol.shared_patients_validation == ("A",)
    assert report.metrics.protocol.shared_patients == ()
    assert "patients A are in training and in validation" in report.warnings[0]
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())["protocol"]
    assert written["shared_patients_validation"] == ["A"]
    apart = fit_head(shared, store, request(train="slide=A1", validation="slide=C1"), tmp_path / "apart")
    assert apart.warnings == []
    written = json.loads((tmp_path / "apart" / "metrics.json").read_text())["protocol"]
    assert "shared_patients_validation" not in written
