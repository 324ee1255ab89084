"""What the pipeline promises besides the numbers: figures of itself, windows left out, slides kept apart."""

import dataclasses
import json
import re
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image

import mmap_st
from mmap_st.data.cohort import Cohort
from mmap_st.data.readers import open_cohort
from mmap_st.errors import ImageError, RegionError, RequestError
from mmap_st.extract.encoders import Encoder, encoder_spec
from mmap_st.extract.engine import engines
from mmap_st.extract.engine import session as sessions
from mmap_st.extract.engine.extraction import EncoderRequest, extract_cohort
from mmap_st.extract.engine.pipeline import wait_for
from mmap_st.extract.engine.planning import options as options_module
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.slides.formats.pixels import levels_of
from mmap_st.extract.slides.formats.plain import PlainSlide
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.extract.store.writing.writer import MagnificationWriter
from mmap_st.extract.windows.read_plan import ReadPlan, plan_reading
from mmap_st.extract.windows.reader import WindowReader
from mmap_st.progress import Silent
from mmap_st.prototypes.candidates import CandidateSettings
from mmap_st.prototypes.stored import build_all

TINY = EncoderRequest(
    encoder_spec("timm:test_efficientnet"), random_weights=True, device="cpu", precision="fp32"
)
OPTIONS = ExtractOptions(batch_size=8, workers=2, chunk=16)


@pytest.fixture
def section(write_section) -> Cohort:
    return open_cohort(f"her2st:{write_section('A1', side=6)}")


def magnification(path: Path, slide: str, mpp: float) -> Any:
    return FeatureStore.open(path).slide(slide).complete(TINY.spec.name)[mpp]


def test_a_run_records_where_its_time_went(section: Cohort, tmp_path: Path) -> None:
    shown: list[str] = []

    class Watching(Silent):
        def show_details(self, text: str) -> None:
            shown.append(text)

    report = extract_cohort(section, tmp_path / "f.zarr", TINY, (0.5, 2.0), OPTIONS, Watching())
    assert shown
    assert re.fullmatch(r"device busy \d+%, waiting for reads \d+%", shown[-1])
    group = zarr.open_group(tmp_path / "f.zarr", mode="r")["A1/timm%3Atest_efficientnet"]
    figures = group.attrs["telemetry"]
    assert figures["windows"] == report.windows == 72
    assert figures["windows_per_s"] == pytest.approx(72 / figures["seconds"], rel=0.1)
    # A thread that is late may find a tile forgotten by one that is ahead.
    assert 1 <= figures["decode_amplification"] < 1.5
    assert 0 < figures["device_busy_share"] <= 1
    assert 0 <= figures["read_wait_share"] <= 1
    recorded = group["0.5000"].attrs
    assert recorded["compiled"] is False
    assert {"simplejpeg", "numba", "tifffile", "torch"} <= set(recorded["versions"])


def test_windows_with_little_tissue_are_left_out_and_recorded_as_such(
    section: Cohort, tmp_path: Path
) -> None:
    extract_cohort(section, tmp_path / "all.zarr", TINY, (0.5,), OPTIONS)
    everything = magnification(tmp_path / "all.zarr", "A1", 0.5)
    tissue = np.asarray(everything.group["tissue"][:])
    least = float(tissue.min() + tissue.max()) / 2
    assert 0 < (tissue < least).sum() < 36
    options = dataclasses.replace(OPTIONS, tissue_min=least)
    report = extract_cohort(section, tmp_path / "some.zarr", TINY, (0.5,), options)
    some = magnification(tmp_path / "some.zarr", "A1", 0.5)
    left_out = tissue < least
    assert report.skipped_windows == left_out.sum() == 36 - report.windows
    assert np.array_equal(some.skipped(), left_out)
    assert np.array_equal(some.valid(), ~left_out)
    assert not some.unreadable().any()
    assert np.array_equal(some.embedding()[~left_out], everything.embedding()[~left_out])
    # Left out on purpose: nothing that --overwrite would have to try again.
    again = extract_cohort(
        section, tmp_path / "some.zarr", TINY, (0.5,), dataclasses.replace(options, overwrite=True)
    )
    assert (again.unchanged, again.windows) == (["A1"], 0)
    with pytest.raises(RequestError, match="tissue_min"):
        extract_cohort(section, tmp_path / "some.zarr", TINY, (0.5,), OPTIONS)


def test_five_percent_are_of_the_windows_that_were_wanted(
    section: Cohort, tmp_path: Path, monkeypatch
) -> None:
    shares = np.where(np.arange(36) < 8, 1.0, 0.0).astype(np.float32)
    monkeypatch.setattr(sessions, "share_of_tissue", lambda *_: shares)
    options = dataclasses.replace(OPTIONS, tissue_min=0.5)
    read, failed = PlainSlide.read_tile, []

    def one_window_damaged(self: PlainSlide, level: int, column: int, row: int) -> np.ndarray:
        if not failed or failed[0] == (column, row):
            failed[:] = [(column, row)]
            raise RegionError("damaged")
        return read(self, level, column, row)

    monkeypatch.setattr(PlainSlide, "read_tile", one_window_damaged)
    report = extract_cohort(section, tmp_path / "f.zarr", TINY, (0.5,), options)
    assert "of 8 windows" in report.failed["A1"]


def test_windows_that_could_not_be_read_do_not_cost_the_others(
    section: Cohort, tmp_path: Path, monkeypatch
) -> None:
    read = PlainSlide.read_tile

    def damaged(self: PlainSlide, level: int, column: int, row: int) -> np.ndarray:
        if column == 2:
            raise RegionError("damaged")
        return read(self, level, column, row)

    monkeypatch.setattr(PlainSlide, "read_tile", damaged)
    report = extract_cohort(section, tmp_path / "f.zarr", TINY, (0.5,), OPTIONS)
    assert "cannot be read" in report.failed["A1"]
    monkeypatch.undo()
    again = extract_cohort(section, tmp_path / "f.zarr", TINY, (0.5,), OPTIONS)
    assert 0 < again.windows < 36
    assert magnification(tmp_path / "f.zarr", "A1", 0.5).valid().all()


def test_an_image_that_is_changed_under_a_run_fails_its_slide(
    section: Cohort, tmp_path: Path, monkeypatch
) -> None:
    image = section["A1"].image
    assert image is not None
    opened = sessions.open_slide

    def changed(path: Path) -> Any:
        with path.open("ab") as file:
            file.write(b"more")
        return opened(path)

    monkeypatch.setattr(sessions, "open_slide", changed)
    report = extract_cohort(section, tmp_path / "f.zarr", TINY, (0.5,), OPTIONS)
    assert "was changed during the run" in report.failed["A1"]


def test_a_defect_on_one_slide_is_said_and_the_others_are_done(
    write_section, tmp_path: Path, monkeypatch
) -> None:
    root = write_section("A1")
    write_section("B1", seed=1)
    find = sessions.find_tissue
    calls: list[int] = []

    def defect(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError("a defect")
        return find(*args)

    monkeypatch.setattr(sessions, "find_tissue", defect)
    report = extract_cohort(open_cohort(f"her2st:{root}"), tmp_path / "f.zarr", TINY, (0.5,), OPTIONS)
    assert report.done == ["B1"]
    assert report.failed == {
        "A1": "the program failed on it (ZeroDivisionError: a defect); please report this with the log."
    }


def test_no_more_than_two_slides_are_open(write_section, tmp_path: Path, monkeypatch) -> None:
    for seed, name in enumerate(("A1", "B1", "C1", "D1", "E1", "F1")):
        root = write_section(name, seed=seed)
    opened, closed, most = [0], [0], [0]
    open_session, close = engines.open_session, sessions.SlideSession.close

    def opening(*args: Any) -> Any:
        opened[0] += 1
        most[0] = max(most[0], opened[0] - closed[0])
        return open_session(*args)

    def closing(self: sessions.SlideSession) -> None:
        close(self)
        closed[0] += 1

    monkeypatch.setattr(engines, "open_session", opening)
    monkeypatch.setattr(sessions.SlideSession, "close", closing)
    options = ExtractOptions(batch_size=64, workers=8)  # a whole slide is one batch
    report = extract_cohort(open_cohort(f"her2st:{root}"), tmp_path / "f.zarr", TINY, (0.5,), options)
    assert len(report.done) == 6
    # The third is one that is read to its end and still being written.
    assert most[0] <= 3


def test_the_order_of_slides_changes_nothing(write_section, tmp_path: Path) -> None:
    for seed, name in enumerate(("A1", "B1", "C1")):
        root = write_section(name, seed=seed)
    cohort = open_cohort(f"her2st:{root}")
    stores = []
    for number, slides in enumerate((cohort.slides, cohort.slides[::-1])):
        path = tmp_path / f"{number}.zarr"
        extract_cohort(Cohort(tuple(slides), "test"), path, TINY, (0.5, 2.0), OPTIONS)
        stores.append([magnification(path, s, m).embedding() for s in ("A1", "B1", "C1") for m in (0.5, 2.0)])
    assert all(np.array_equal(a, b) for a, b in zip(*stores, strict=True))


def test_a_result_that_comes_while_the_waiting_is_renewed_is_not_lost() -> None:
    class JustInTime(Future):  # type: ignore[type-arg]
        def result(self, timeout: float | None = None) -> str:
            if timeout is not None:
                self.set_result("there")
                raise TimeoutError
            return super().result()

    assert wait_for(JustInTime(), lambda: False) == "there"


def test_a_kill_before_the_last_mark_costs_that_mark_alone(
    section: Cohort, tmp_path: Path, monkeypatch
) -> None:
    read = PlainSlide.read_tile

    def damaged(self: PlainSlide, level: int, column: int, row: int) -> np.ndarray:
        if (column, row) == (0, 0):
            raise RegionError("damaged")
        return read(self, level, column, row)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PlainSlide, "read_tile", damaged)
    with monkeypatch.context() as patch:
        patch.setattr(MagnificationWriter, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            extract_cohort(section, tmp_path / "f.zarr", TINY, (0.5,), OPTIONS)
    report = extract_cohort(section, tmp_path / "f.zarr", TINY, (0.5,), OPTIONS)
    assert (report.done, report.windows) == (["A1"], 0)


def test_jobs_that_start_together_make_one_store(tmp_path: Path) -> None:
    # The lock holds between threads as between processes: each takes it on a file of its own.
    with ThreadPoolExecutor(4) as pool:
        for number in range(20):
            assert len(list(pool.map(FeatureStore.create, [tmp_path / f"{number}.zarr"] * 4))) == 4


def test_what_a_kill_left_while_the_store_was_made_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "f.zarr").mkdir()
    (tmp_path / "f.zarr" / "zarr.0123456789abcdef0123456789abcdef.partial").write_bytes(b"{")
    assert FeatureStore.create(tmp_path / "f.zarr").slides == ()
    assert [file.name for file in (tmp_path / "f.zarr").iterdir()] == ["zarr.json"]


def test_nothing_is_drafted_in_the_root_that_a_kill_could_leave_there(
    section: Cohort, tmp_path: Path, monkeypatch
) -> None:
    drafted: list[Path] = []
    opened = Path.open

    def noting(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.suffix == ".partial":
            drafted.append(self.parent)
        return opened(self, *args, **kwargs)

    store = FeatureStore.create(tmp_path / "f.zarr")
    monkeypatch.setattr(Path, "open", noting)
    extract_cohort(section, store.path, TINY, (0.5,), OPTIONS)
    build_all(store, TINY.spec.name, None, CandidateSettings())
    assert store.path / "A1" in drafted
    assert store.path not in drafted


def test_steps_need_no_more_tiles_than_there_is_memory_for() -> None:
    levels = levels_of([(20_000, 20_000)])
    xy = np.random.default_rng(0).uniform(0, 20_000, (200, 2))
    wanted = {1.0: np.arange(200), 4.0: np.arange(200)}

    def most(plan: ReadPlan) -> int:
        return plan.most_tiles * plan.tile_bytes

    assert most(plan_reading(levels, xy, 1.0, 224, wanted, 64)) > 32 << 20
    bounded = plan_reading(levels, xy, 1.0, 224, wanted, 64, 32 << 20)
    assert most(bounded) <= 32 << 20
    assert bounded.windows == 400
    # Less than one window needs is not to be had.
    assert np.diff(plan_reading(levels, xy, 1.0, 224, wanted, 64, 1).step_windows).max() == 1


def test_memory_is_bounded_whatever_the_slides_size(tmp_path: Path, monkeypatch) -> None:
    """A slide of 100,000 x 80,000 px, by the benchmark's own program, which does it with 50,000 spots.

    The tiles of 300 windows at 5x take 3.5 GB.
    """
    benchmarks = Path(mmap_st.__file__).parent / "benchmarks"
    monkeypatch.syspath_prepend(benchmarks)
    from pyramid import PICTURE, write_pyramid

    # What is painted takes seconds, and nothing of memory depends on it.
    noise = np.random.default_rng(0).integers(0, 256, (PICTURE // 32, PICTURE // 32, 3), np.uint8)
    picture = Image.fromarray(noise).resize((PICTURE, PICTURE), Image.Resampling.BICUBIC)
    write_pyramid(tmp_path / "large.tif", 100_000, 80_000, repeat_bytes=True, picture=picture)
    program = benchmarks / "memory.py"
    words = ["--out", str(tmp_path), "--spots", "300", "--magnifications", "20,5"]
    shown = subprocess.run(
        [sys.executable, str(program), *words], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    figures = json.loads(shown.stdout.splitlines()[-1])
    assert figures["windows"] == 600
    assert figures["above_model_gb"] < 2


def test_embeddings_that_are_not_finite_fail_the_slide(section: Cohort, tmp_path: Path, monkeypatch) -> None:
    forward = Encoder.forward

    def overflow(self: Encoder, pixels: Any, step: int) -> Any:
        return forward(self, pixels, step) * np.inf

    monkeypatch.setattr(Encoder, "forward", overflow)
    report = extract_cohort(section, tmp_path / "f.zarr", TINY, (0.5,), OPTIONS)
    assert "are not finite" in report.failed["A1"]
    assert "precision fp32; look at its weights" in report.failed["A1"]


def test_a_batch_is_read_in_steps_and_has_the_same_bits(section: Cohort, tmp_path: Path, monkeypatch) -> None:
    read, sizes = WindowReader.read, []

    def counted(self: WindowReader, step: int, out: Any = None) -> Any:
        found = read(self, step, out)
        sizes.append(len(found))
        return found

    extract_cohort(
        section, tmp_path / "whole.zarr", TINY, (0.5, 2.0), dataclasses.replace(OPTIONS, batch_size=40)
    )
    monkeypatch.setattr(sessions, "_STEP_WINDOWS", 16)
    monkeypatch.setattr(WindowReader, "read", counted)
    options = dataclasses.replace(OPTIONS, batch_size=40, workers=4)
    extract_cohort(section, tmp_path / "steps.zarr", TINY, (0.5, 2.0), options)
    assert sorted(sizes) == [2, 14, 14, 14, 14, 14]  # batches of 42 and 30 windows
    for mpp in (0.5, 2.0):
        whole, steps = (magnification(tmp_path / f"{name}.zarr", "A1", mpp) for name in ("whole", "steps"))
        assert np.array_equal(whole.embedding(), steps.embedding())


def test_a_step_that_cannot_be_read_fails_its_slide_and_the_image_stays_open_for_the_others(
    section: Cohort, tmp_path: Path, monkeypatch
) -> None:
    read, close = WindowReader.read, WindowReader.close
    under_way: list[int] = []
    at_close: list[int] = []

    def failing(self: WindowReader, step: int, out: Any = None) -> Any:
        under_way.append(step)
        try:
            if step == 0:
                raise ImageError("it cannot be decoded.")
            time.sleep(0.2)
            return read(self, step, out)
        finally:
            under_way.remove(step)

    def closing(self: WindowReader) -> None:
        at_close.append(len(under_way))
        close(self)

    monkeypatch.setattr(sessions, "_STEP_WINDOWS", 16)
    monkeypatch.setattr(WindowReader, "read", failing)
    monkeypatch.setattr(WindowReader, "close", closing)
    options = dataclasses.replace(OPTIONS, batch_size=40, workers=4)
    report = extract_cohort(section, tmp_path / "f.zarr", TINY, (0.5, 2.0), options)
    assert report.failed == {"A1": "it cannot be decoded."}
    assert at_close == [0]


def test_the_tiles_of_all_threads_fit_unless_memory_is_short(monkeypatch) -> None:
    step, mib = 80 << 20, 1 << 20
    monkeypatch.setattr(options_module, "free_memory", lambda: 64 << 30)
    assert ExtractOptions(workers=2).cache_bytes(step) == 256 * mib
    assert ExtractOptions(workers=16).cache_bytes(step) == 17 * step
    assert ExtractOptions(workers=16, cache_mb=100).cache_bytes(step) == 100 * mib
    monkeypatch.setattr(options_module, "free_memory", lambda: 4 << 30)
    assert ExtractOptions(workers=16).cache_bytes(step) == 512 * mib
    monkeypatch.setattr(options_module, "free_memory", lambda: 1 << 30)
    assert ExtractOptions(workers=16).cache_bytes(step) == 256 * mib
