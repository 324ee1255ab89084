"""Slides that are copied to a local disk while they are embedded: the same bits, bounded, and nothing left."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from mmap_st.data.cohort import Cohort
from mmap_st.data.readers import open_cohort
from mmap_st.errors import ImageError, RequestError, StoppedError
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.engine import session as sessions
from mmap_st.extract.engine.device import DeviceQueue
from mmap_st.extract.engine.encoder_request import EncoderRequest
from mmap_st.extract.engine.extraction import extract_cohort
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.slides import staging
from mmap_st.extract.slides.staging import Stage, stage_of, staged
from mmap_st.extract.store.reader import FeatureStore

ENCODER = "timm:test_efficientnet"
REQUEST = EncoderRequest(encoder_spec(ENCODER), random_weights=True, device="cpu", precision="fp32")
MPPS = (0.5, 2.0)
OPTIONS = ExtractOptions(batch_size=8, workers=2)
GUARD = "mmap-stage.lock"


@pytest.fixture
def cohort(write_section) -> Cohort:
    for seed, name in enumerate(("A1", "B1", "C1")):
        root = write_section(name, seed=seed, side=4)
    return open_cohort(f"her2st:{root}")


def rows(path: Path, cohort: Cohort) -> list[bytes]:
    store = FeatureStore.open(path)
    return [store.slide(s).complete(ENCODER)[m].embedding().tobytes() for s in cohort.names for m in MPPS]


def left_on(stage: Path) -> list[str]:
    return sorted(path.name for path in stage.iterdir() if path.name != GUARD)


def bytes_on(stage: Path) -> int:
    """Of files of slides; they come and go meanwhile."""
    sizes = []
    for path in stage.rglob("*"):
        try:
            sizes.append(path.stat().st_size if path.is_file() else 0)
        except FileNotFoundError:
            continue
    return sum(sizes)


def test_the_same_bits_from_a_stage_with_room_for_one(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract_cohort(cohort, tmp_path / "1.zarr", REQUEST, MPPS, OPTIONS)
    most = int(1.5 * max(row.image.stat().st_size for row in cohort.slides))
    opened, seen = [], [0]
    stage = Stage(tmp_path / "stage", most)
    stage.folder.mkdir()
    open_slide = sessions.open_slide

    def opening(path: Path):
        opened.append(path)
        seen.append(bytes_on(stage.folder))
        return open_slide(path)

    monkeypatch.setattr(sessions, "open_slide", opening)
    for device in ("cpu", "cpu,cpu"):
        path = tmp_path / f"{device}.zarr"
        report = extract_cohort(
            cohort, path, replace(REQUEST, device=device), MPPS, replace(OPTIONS, stage=stage)
        )
        assert not report.failed
        assert rows(path, cohort) == rows(tmp_path / "1.zarr", cohort)
        assert left_on(stage.folder) == []
    assert len(opened) == 3
    assert all(stage.folder in path.parents for path in opened)
    assert 0 < max(seen) <= most


def test_what_cannot_be_there_is_read_where_it_lies(tmp_path: Path) -> None:
    small = Stage(tmp_path, 10)
    large = tmp_path / "large.svs"
    large.write_bytes(bytes(11))
    with staged(large, small) as path:
        assert path == large
    stage = Stage(tmp_path / "stage", 1 << 30)
    stage.folder.mkdir()
    alone = tmp_path / "a.mrxs"
    dicom = tmp_path / "no_suffix"
    dicom.write_bytes(bytes(128) + b"DICM")
    for file in (tmp_path / "a.dcm", tmp_path / "a.vms", alone, dicom, tmp_path / "gone.svs"):
        if file.suffix:
            file.write_bytes(b"x") if file.stem == "a" else None
        with staged(file, stage) as path:
            assert path == file
    several = tmp_path / "b.ome.tif"
    names = "".join(f'<UUID FileName="{n}.ome.tif">urn:uuid:1</UUID>' for n in "bc")
    tifffile.imwrite(
        several,
        np.zeros((8, 8), np.uint8),
        metadata=None,
        description=f'<?xml version="1.0"?><OME><Image ID="Image:0"><Pixels>{names}</Pixels></Image></OME>',
    )
    with staged(several, stage) as path:
        assert path == several
    assert left_on(stage.folder) == []


def test_folders_and_files_that_belong_together_are_copied_whole(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "stage", 1 << 20)
    stage.folder.mkdir()
    image = tmp_path / "in" / "a.mrxs"
    (tmp_path / "in" / "a" / "deep").mkdir(parents=True)
    image.write_bytes(b"head")
    (tmp_path / "in" / "a" / "deep" / "data.dat").write_bytes(b"data")
    with staged(image, stage) as path:
        assert path != image
        assert path.read_bytes() == b"head"
        assert (path.with_suffix("") / "deep" / "data.dat").read_bytes() == b"data"
    with staged(tmp_path / "in", stage) as path:
        assert sorted(p.name for p in path.rglob("*") if p.is_file()) == ["a.mrxs", "data.dat"]
    assert left_on(stage.folder) == []


def test_a_folder_of_dicom_files_is_embedded_from_its_copy(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "wsi" / "cmu_dicom"
    stage = Stage(tmp_path, 1 << 30)
    slide = sessions.open_slide(folder)
    with staged(folder, stage) as path:
        copy_ = sessions.open_slide(path)
        assert (path != folder, copy_.size) == (True, slide.size)
        copy_.close()
    slide.close()


def test_waiting_for_room_ends_when_another_leaves_and_when_it_is_to_stop(tmp_path: Path) -> None:
    first, second = tmp_path / "1.svs", tmp_path / "2.svs"
    first.write_bytes(bytes(60))
    second.write_bytes(bytes(60))
    stage = Stage(tmp_path / "stage", 100)
    stage.folder.mkdir()
    arrived = threading.Event()

    def come() -> None:
        with staged(second, stage):
            arrived.set()

    with staged(first, stage):
        with pytest.raises(StoppedError), staged(second, stage, lambda: True):
            pass
        waiting = threading.Thread(target=come)
        waiting.start()
        assert not arrived.wait(0.5)
    assert arrived.wait(10)
    waiting.join()
    assert left_on(stage.folder) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    image = tmp_path / "1.svs"
    image.write_bytes(bytes(60))
    stage = Stage(tmp_path / "stage", 100)
    stage.folder.mkdir()
    killed = (
        "import os, sys; from pathlib import Path; from mmap_st.extract.slides.staging import Stage, staged\n"
        "with staged(Path(sys.argv[1]), Stage(Path(sys.argv[2]), 100)) as copy:\n"
        "    assert copy.stat().st_size == 60; os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", killed, image, stage.folder], check=False)
    assert done.returncode == -9
    assert len(left_on(stage.folder)) == 2
    with staged(image, stage) as path:
        assert path.stat().st_size == 60
        assert len(left_on(stage.folder)) == 2
    assert left_on(stage.folder) == []


def test_a_full_disk_costs_nothing(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path / "stage", 1 << 30)
    stage.folder.mkdir()

    def full(*_: object) -> None:
        raise staging._StageFullError(os.strerror(errno.ENOSPC))

    monkeypatch.setattr(staging, "_copy", full)
    report = extract_cohort(cohort, tmp_path / "f.zarr", REQUEST, MPPS, replace(OPTIONS, stage=stage))
    assert report.done == list(cohort.names)
    assert "is read where it lies: --stage" in caplog.text
    assert "No space left on device" in caplog.text
    assert left_on(stage.folder) == []


def test_a_write_that_fails_is_a_full_disk_and_a_read_that_fails_is_the_slides(tmp_path: Path) -> None:
    image = tmp_path / "1.svs"
    image.write_bytes(bytes(60))
    with pytest.raises(staging._StageFullError):
        staging._copy(image, Path("/dev/full"), lambda: False)
    with pytest.raises(ImageError, match="gone cannot be read"):
        list(staging._pieces(tmp_path / "gone"))


def test_a_damaged_slide_is_named_by_its_own_path(cohort: Cohort, tmp_path: Path) -> None:
    image = cohort["B1"].image
    stage = Stage(tmp_path / "stage", 1 << 30)
    stage.folder.mkdir()
    before = image.read_bytes()

    open_slide = sessions.open_slide

    def truncated(path: Path):
        if path.name == image.name:
            path.write_bytes(before[: len(before) // 3])
        return open_slide(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "open_slide", truncated)
        report = extract_cohort(cohort, tmp_path / "f.zarr", REQUEST, MPPS, replace(OPTIONS, stage=stage))
    assert list(report.failed) == ["B1"]
    assert str(image) in report.failed["B1"]
    assert "stage" not in report.failed["B1"]
    assert left_on(stage.folder) == []


@pytest.mark.parametrize("error", [RuntimeError("the device broke"), KeyboardInterrupt()])
def test_a_run_that_breaks_does_not_wait_for_a_slide_that_waits_for_it(
    error: BaseException, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path / "stage", int(1.5 * max(row.image.stat().st_size for row in cohort.slides)))
    stage.folder.mkdir()

    def broken(*_: object) -> None:
        time.sleep(0.5)  # the next slide waits for room by now
        raise error

    monkeypatch.setattr(DeviceQueue, "put", broken)
    began = time.monotonic()
    with pytest.raises(type(error)):
        extract_cohort(cohort, tmp_path / "f.zarr", REQUEST, MPPS, replace(OPTIONS, stage=stage))
    assert time.monotonic() - began < 60
    assert left_on(stage.folder) == []


def test_options(tmp_path: Path, mmap: Callable) -> None:
    assert stage_of(None, None) is None
    found = stage_of(tmp_path / "new", None)
    assert found is not None
    free = shutil.disk_usage(tmp_path).free
    assert 0.3 * free < found.most_bytes < 0.7 * free
    assert stage_of(tmp_path, 2.5) == Stage(tmp_path, 2_500_000_000)
    (tmp_path / "file").write_text("")
    for folder, gigabytes, said in (
        (None, 1.0, "give --stage DIR too"),
        (tmp_path, 0.0, "--stage-gb 0: give gigabytes"),
        (tmp_path, float("nan"), "--stage-gb nan"),
        (tmp_path, float("inf"), "--stage-gb inf"),
        (tmp_path / "file", None, "--stage"),
    ):
        with pytest.raises(RequestError, match=said):
            stage_of(folder, gigabytes)
    done = mmap("extract", "x.csv", "y.zarr", "--encoder", "uni", "--mpp", 1, "--stage-gb", 1)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
