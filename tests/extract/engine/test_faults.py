"""Two hundred faults, one at a time: nothing is lost that was reported done, nothing wrong is marked valid.

After each fault the store and the journals are compared with those of an undisturbed run, row by row; then the
same command goes on, and must end with the same bits without doing anything twice.
"""

import dataclasses
import errno
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zarr.storage import LocalStore

from mmap_st.data.cohort import Cohort
from mmap_st.data.readers import open_cohort
from mmap_st.encoders import CustomModel, EncoderSpec, Pooling, Preprocessing
from mmap_st.errors import ImageError, MmapError, RegionError, StoppedError
from mmap_st.extract.encoders import Encoder
from mmap_st.extract.engine import encoder_request
from mmap_st.extract.engine.extraction import EncoderRequest, extract_cohort
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.slides.formats.plain import PlainSlide
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.extract.store.recipe import encode_name
from mmap_st.extract.store.writing.journal import Journal, journal_path
from mmap_st.extract.windows.geometry import mpp_key
from mmap_st.progress import Silent


def mean_colours() -> torch.nn.Module:
    """A network of next to no time: what is tested is what happens around it."""
    return torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten())


SMALL = EncoderRequest(
    EncoderSpec(
        name="mean-colours",
        model=CustomModel(mean_colours, code="1"),
        input_px=64,
        preprocessing=Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        pooling=Pooling("own"),
    ),
    device="cpu",
    precision="fp32",
)
MPPS = (0.5, 2.0)
OPTIONS = ExtractOptions(batch_size=8, workers=2, chunk=16)
SIDES = {"A1": 5, "B1": 4, "C1": 3}
Rows = dict[tuple[str, float], tuple[np.ndarray, np.ndarray]]
WriteSection = Callable[..., Path]
WINDOWS = len(MPPS) * sum(side**2 for side in SIDES.values())


class Counting(Silent):
    """Counts the windows that are reported as done."""

    def __init__(self) -> None:
        self.done = 0

    def advance(self, amount: int) -> None:
        self.done += amount


@pytest.fixture(scope="module")
def cohort(section_writer: WriteSection, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Three small sections."""
    root = tmp_path_factory.mktemp("faults") / "her2st"
    for seed, (name, side) in enumerate(SIDES.items()):
        section_writer(name, side=side, seed=seed, root=root)
    return open_cohort(f"her2st:{root}")


@pytest.fixture(autouse=True)
def _one_encoder(monkeypatch: pytest.MonkeyPatch, encoder: Encoder) -> None:
    monkeypatch.setattr(encoder_request, "build_encoder", lambda *args, **kwargs: encoder)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return encoder_request.build_encoder(SMALL.spec, device="cpu")


@pytest.fixture(scope="module")
def undisturbed(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    path = tmp_path_factory.mktemp("undisturbed") / "f.zarr"
    assert not extract_cohort(cohort, path, SMALL, MPPS, OPTIONS).failed
    return rows_of(path, whole=True)


def magnifications(path: Path) -> Iterator[tuple[str, Any]]:
    if not (path / "zarr.json").is_file():
        return
    store = FeatureStore.open(path)
    for name in store.slides:
        for magnification in store.slide(name).magnifications(SMALL.spec.name):
            yield name, magnification


def rows_of(path: Path, *, whole: bool) -> Rows:
    """Embedding and validity of every row that a store says is there, complete or, where not `whole`, in part."""
    found: Rows = {}
    for name, magnification in magnifications(path):
        assert magnification.complete or not whole
        embedding = np.asarray(magnification.group["embedding"][:])
        valid = np.asarray(magnification.group["valid"][:])
        chunk = magnification.group["embedding"].chunks[0]
        there = np.isin(np.arange(len(valid)) // chunk, magnification.group.attrs["chunks_done"])
        found[name, magnification.mpp] = (np.where(there[:, None], embedding, np.nan), valid & there)
    return found


def journal_rows(path: Path, undisturbed: Rows) -> int:
    """Check every row that a journal holds; return how many windows store and journals hold together."""
    held = 0
    there = {(name, magnification.mpp): magnification for name, magnification in magnifications(path)}
    for (name, mpp), (expected, _) in undisturbed.items():
        done = np.zeros(len(expected), bool)
        stored = there.get((name, mpp))
        if stored is not None:
            chunk = stored.group["embedding"].chunks[0]
            done = np.isin(np.arange(len(expected)) // chunk, stored.group.attrs["chunks_done"])
        file = journal_path(path, encode_name(name), encode_name(SMALL.spec.name), mpp_key(mpp))
        if file.exists() and stored is not None:
            journal = Journal(file, stored.recipe_sha256, *expected.shape)
            embedding, valid = journal.read(range(len(expected)))
            assert np.array_equal(
                embedding[journal.done & valid].astype(np.float16), expected[journal.done & valid]
            )
            done |= journal.done
            journal.close()
        held += int(done.sum())
    return held


def check_nothing_wrong(path: Path, undisturbed: Rows) -> None:
    for key, (embedding, valid) in rows_of(path, whole=False).items():
        expected, all_valid = undisturbed[key]
        assert not (valid & ~all_valid).any()
        assert np.array_equal(embedding[valid], expected[valid])
        assert np.isnan(embedding[~valid]).all()


def check_goes_on(path: Path, cohort: Cohort, undisturbed: Rows, reported: int | None) -> None:
    """Check a store after a fault, go on, and check it again."""
    check_nothing_wrong(path, undisturbed)
    held = journal_rows(path, undisturbed)
    if reported is not None:
        assert held >= reported  # nothing is lost that was reported done
    report = extract_cohort(cohort, path, SMALL, MPPS, OPTIONS)
    assert not report.failed
    assert report.windows <= WINDOWS - held  # nothing is done twice
    for key, (embedding, valid) in rows_of(path, whole=True).items():
        assert np.array_equal(embedding, undisturbed[key][0], equal_nan=True)
        assert valid.all()
    assert not path.with_name(path.name + ".journals").exists()
    assert not list(path.rglob("*.partial"))


def nth(number: int, error: Callable[[], BaseException], original: Callable[..., Any]) -> Callable[..., Any]:
    """`original`, which raises an error the n-th time, and that time alone."""
    calls, counting = [0], threading.Lock()

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        with counting:
            calls[0] += 1
            mine = calls[0] == number
        if mine:
            raise error()
        return original(*args, **kwargs)

    return sometimes


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


#: Where, and what is raised there.
STAGES: dict[str, tuple[Any, str, Callable[[], BaseException]]] = {
    "image gone": (PlainSlide, "read_tile", lambda: ImageError("the share is gone")),
    "defect in a reader": (PlainSlide, "read_tile", lambda: ZeroDivisionError("a defect")),
    "defect in the network": (Encoder, "forward", lambda: RuntimeError("a defect")),
    "stopped while embedding": (Encoder, "forward", lambda: StoppedError("stop")),
    "Ctrl-C twice": (Encoder, "forward", KeyboardInterrupt),
    "journal: disk full": (Journal, "_write", full_disk),
    "journal: share gone": (Journal, "append", lambda: ImageError("gone")),
    "store: disk full": (LocalStore, "set", full_disk),
    "store: read-only": (LocalStore, "set", lambda: OSError(errno.EROFS, "Read-only file system")),
    "store: share gone": (LocalStore, "set", lambda: OSError(errno.ESTALE, "Stale file handle")),
}


def counted(calls: list[int], original: Callable[..., Any]) -> Callable[..., Any]:
    counting = threading.Lock()

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with counting:
            calls[0] += 1
        return original(*args, **kwargs)

    return wrapped


@pytest.fixture(scope="module")
def passes(
    cohort: Cohort, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[Any, str], int]:
    """How often an undisturbed run passes each place."""
    places = {(where, name) for where, name, _ in STAGES.values()}
    calls = {place: [0] for place in places}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_request, "build_encoder", lambda *args, **kwargs: encoder)
        for where, name in places:
            patch.setattr(where, name, counted(calls[where, name], getattr(where, name)))
        assert not extract_cohort(
            cohort, tmp_path_factory.mktemp("p") / "f.zarr", SMALL, MPPS, OPTIONS
        ).failed
    return {place: number for place, (number,) in calls.items()}


@pytest.mark.parametrize("moment", range(12))
@pytest.mark.parametrize("stage", STAGES)
def test_an_error_at_any_stage_loses_nothing(
    stage: str, moment: int, cohort: Cohort, undisturbed: Rows, passes, tmp_path: Path, monkeypatch
) -> None:
    where, name, error = STAGES[stage]
    # A few less than there are: threads do not pass a place equally often in every run.
    when = random.Random(f"{stage} {moment}").randint(1, max(passes[where, name] - 3, 1))
    counting, raised = Counting(), []

    def fault() -> BaseException:
        raised.append(error())
        return raised[-1]

    with monkeypatch.context() as patch:
        patch.setattr(where, name, nth(when, fault, getattr(where, name)))
        try:
            report = extract_cohort(cohort, tmp_path / "f.zarr", SMALL, MPPS, OPTIONS, counting)
        except (MmapError, ZeroDivisionError, RuntimeError, KeyboardInterrupt):
            pass
        else:
            assert all("\n" not in reason for reason in report.failed.values())
    assert raised
    check_goes_on(tmp_path / "f.zarr", cohort, undisturbed, counting.done)


@pytest.mark.parametrize("moment", range(10))
def test_a_torn_write_of_the_journal_is_cut_off(
    moment: int, cohort: Cohort, undisturbed: Rows, passes, tmp_path: Path, monkeypatch
) -> None:
    """Half of a batch reaches the disk before it is full."""
    rng = random.Random(moment)
    when, write, calls = rng.randint(5, passes[Journal, "_write"] - 3), Journal._write, [0]

    def torn(self: Journal, data: bytes) -> None:
        calls[0] += 1
        if calls[0] == when:
            write(self, data[: rng.randrange(len(data))])
            raise full_disk()
        write(self, data)

    counting = Counting()
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_write", torn)
        report = extract_cohort(cohort, tmp_path / "f.zarr", SMALL, MPPS, OPTIONS, counting)
    assert any("No space left on device" in reason for reason in report.failed.values())
    check_goes_on(tmp_path / "f.zarr", cohort, undisturbed, counting.done)


@pytest.mark.parametrize("moment", range(10))
def test_a_device_without_memory_takes_fewer_windows_and_the_bits_stay(
    moment: int, cohort: Cohort, undisturbed: Rows, tmp_path: Path, monkeypatch
) -> None:
    forward, rng = Encoder.forward, random.Random(moment)
    room = rng.choice([1, 2, 3])

    def little_memory(self: Encoder, pixels: torch.Tensor, step: int) -> torch.Tensor:
        if len(pixels) > room:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        # A GPU rounds alike whatever its step; a CPU does so by filling the step up.
        return forward(self, pixels, self.step)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "forward", little_memory)
        report = extract_cohort(cohort, tmp_path / "f.zarr", SMALL, MPPS, OPTIONS)
    assert not report.failed
    for key, (embedding, _) in rows_of(tmp_path / "f.zarr", whole=True).items():
        assert np.array_equal(embedding, undisturbed[key][0])


@pytest.mark.parametrize("moment", range(10))
def test_a_damaged_tile_invalidates_its_windows_alone(
    moment: int, cohort: Cohort, undisturbed: Rows, tmp_path: Path, monkeypatch
) -> None:
    read, rng = PlainSlide.read_tile, random.Random(moment)
    column, row = rng.randrange(5), rng.randrange(5)

    def damaged(self: PlainSlide, level: int, c: int, r: int) -> np.ndarray:
        if (c, r) == (column, row):
            raise RegionError(f"tile {c}, {r} is damaged")
        return read(self, level, c, r)

    with monkeypatch.context() as patch:
        patch.setattr(PlainSlide, "read_tile", damaged)
        report = extract_cohort(cohort, tmp_path / "f.zarr", SMALL, MPPS, OPTIONS)
    check_nothing_wrong(tmp_path / "f.zarr", undisturbed)
    for name, reason in report.failed.items():
        assert "cannot be read" in reason, name
    check_after_repair(tmp_path / "f.zarr", cohort, undisturbed)


def check_after_repair(path: Path, cohort: Cohort, undisturbed: Rows) -> None:
    """Slides that failed are done by the same command; invalid windows of the others need --overwrite."""
    again = extract_cohort(cohort, path, SMALL, MPPS, dataclasses.replace(OPTIONS, overwrite=True))
    assert not again.failed
    for key, (embedding, valid) in rows_of(path, whole=True).items():
        assert np.array_equal(embedding, undisturbed[key][0])
        assert valid.all()


@pytest.mark.parametrize("moment", range(10))
def test_a_truncated_image_fails_its_slide_and_the_others_are_done(
    moment: int, cohort: Cohort, undisturbed: Rows, tmp_path: Path
) -> None:
    rng = random.Random(moment)
    slides = list(cohort.slides)
    number = rng.randrange(len(slides))
    whole = slides[number].image.read_bytes()
    cut = tmp_path / slides[number].image.name
    cut.write_bytes(whole[: int(len(whole) * rng.uniform(0.01, 0.95))])
    slides[number] = dataclasses.replace(slides[number], image=cut)
    counting = Counting()
    report = extract_cohort(Cohort(tuple(slides), "cut"), tmp_path / "f.zarr", SMALL, MPPS, OPTIONS, counting)
    assert list(report.failed) == [slides[number].slide]
    check_nothing_wrong(tmp_path / "f.zarr", undisturbed)
    cut.write_bytes(whole)
    report = extract_cohort(Cohort(tuple(slides), "whole"), tmp_path / "f.zarr", SMALL, MPPS, OPTIONS)
    assert not report.failed
    assert report.windows <= WINDOWS - counting.done


def _extract(cohort: Cohort, path: str, progress: str) -> None:
    """What a killed process does: it writes down how many windows it was told are done."""

    class Writing(Counting):
        def advance(self, amount: int) -> None:
            super().advance(amount)
            with open(progress, "w") as file:
                json.dump(self.done, file)

    extract_cohort(cohort, Path(path), SMALL, MPPS, OPTIONS, Writing())


#: What an extraction imports, so that it is the extraction that is killed and not its imports.
LOADED = (
    "mmap_st.extract.engine.extraction", "mmap_st.extract.encoders.networks.builders", "mmap_st.extract.windows.kernels",
    "numba.np.npyimpl", "numba.typed.typeddict", "openslide",
    "PIL.ImageCms", "PIL.JpegImagePlugin", "pytest", "scipy.optimize", "timm", "torch",
)  # fmt: skip


@pytest.mark.parametrize("moment", range(40))
def test_kill_9_at_a_random_moment_loses_nothing(
    moment: int, cohort: Cohort, undisturbed: Rows, tmp_path: Path
) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(list(LOADED))
    delay = random.Random(moment).uniform(0.0, 0.4)
    for attempt in range(5):
        path, progress = tmp_path / f"{attempt}.zarr", tmp_path / f"{attempt}.json"
        process = processes.Process(target=_extract, args=(cohort, str(path), str(progress)))
        process.start()
        while not path.exists() and process.is_alive():
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            break
        delay /= 2  # it had ended before
    else:
        pytest.fail("no process was killed before it ended")
    try:
        reported = json.loads(progress.read_text())
    except (FileNotFoundError, ValueError):  # the kill hit this file
        reported = None
    check_goes_on(path, cohort, undisturbed, reported)
