"""Slides by URL: the numbers of slides on a disk, each fetched once, and nothing left behind."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pytest
import torch

import mmap_st as mm
from mmap_st.data.cohort import Cohort, write_cohort
from mmap_st.errors import ImageError, RequestError, StoppedError
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.engine import session as sessions
from mmap_st.extract.engine.device import DeviceQueue
from mmap_st.extract.engine.encoder_request import EncoderRequest
from mmap_st.extract.engine.extraction import extract_cohort
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.engine.planning.plan import PlanRequest
from mmap_st.extract.engine.planning.sharing_out import Shard, slides_of_shard
from mmap_st.extract.engine.workers import processes
from mmap_st.extract.slides import image_files, local_image, parse_grid
from mmap_st.extract.slides.staging import Stage
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.extract.store.recipe import run_part
from mmap_st.head.runs import UNS
from mmap_st.object_stores import Bucket
from mmap_st.progress import Silent
from mmap_st.report.run_report import image_of
from mmap_st.report.viewer import Answers, open_catalogue
from mmap_st.urls import Url
from tests.s3_server import S3Server

LAB = Url("s3://lab/study")
ENCODER = "timm:test_efficientnet"
REQUEST = EncoderRequest(encoder_spec(ENCODER), random_weights=True, device="cpu", precision="fp32")
MPPS = (1.0, 2.0)
OPTIONS = ExtractOptions(batch_size=8, workers=2)
GUARD = "mmap-stage.lock"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(write_section: Callable[..., Path]) -> Path:
    for seed, name in enumerate(("A1", "B1", "C1")):
        root = write_section(name, seed=seed, side=3)
    return root


@pytest.fixture
def local(root: Path) -> Cohort:
    return mm.read_cohort(f"her2st:{root}")


@pytest.fixture
def lab(server: S3Server, root: Path, local: Cohort) -> S3Server:
    write_cohort(local, root / "cohort.csv")
    for file in sorted(root.rglob("*")):
        if file.is_file():
            Bucket(LAB).put(file.relative_to(root).as_posix(), file)
    server.requests.clear()
    return server


@pytest.fixture
def remote(lab: S3Server) -> Cohort:
    return mm.read_cohort(f"{LAB}/cohort.csv")


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread computes in each process: on a CPU the last bits depend on how many do."""
    monkeypatch.setattr(processes, "usable_cores", lambda: 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    (tmp_path / "stage").mkdir()
    return Stage(tmp_path / "stage", 1 << 30)


def numbers(path: Path, cohort: Cohort) -> list[tuple[bytes, str]]:
    store = FeatureStore.open(path)
    found = [store.slide(name).complete(ENCODER)[mpp] for name in cohort.names for mpp in MPPS]
    return [(one.embedding().tobytes(), one.recipe_sha256) for one in found]


def images(server: S3Server, method: str = "GET") -> list[str]:
    return [path for how, path in server.requests if how == method and path.endswith(".jpg")]


def left_on(stage: Path) -> list[str]:
    return sorted(path.name for path in stage.iterdir() if path.name != GUARD)


def image_key(cohort: Cohort, name: str) -> str:
    return str(cohort[name].image).removeprefix(f"{LAB}/")


def test_the_same_numbers_and_recipes_and_no_second_fetch(
    lab: S3Server, local: Cohort, remote: Cohort, stage: Stage, tmp_path: Path
) -> None:
    extract_cohort(local, tmp_path / "local.zarr", REQUEST, MPPS, OPTIONS)
    options = replace(OPTIONS, stage=stage)
    report = extract_cohort(remote, tmp_path / "1.zarr", REQUEST, MPPS, options)
    assert (report.done, report.failed) == (list(local.names), {})
    assert numbers(tmp_path / "1.zarr", local) == numbers(tmp_path / "local.zarr", local)
    assert left_on(stage.folder) == []
    assert sorted(images(lab)) == sorted(f"/lab/study/{image_key(remote, name)}" for name in remote.names)
    lab.requests.clear()
    again = extract_cohort(remote, tmp_path / "1.zarr", REQUEST, MPPS, options)
    assert (again.unchanged, again.done) == (list(local.names), [])
    assert images(lab) == []
    assert len(images(lab, "HEAD")) == len(remote)
    # What the local run made is recognised by the image itself, once.
    for fetched in (len(remote), 0):
        lab.requests.clear()
        again = extract_cohort(remote, tmp_path / "local.zarr", REQUEST, MPPS, options)
        assert (again.unchanged, again.done) == (list(local.names), [])
        assert len(images(lab)) == fetched
    FeatureStore.open(tmp_path / "local.zarr").slide("A1").complete(ENCODER)[MPPS[0]].verify()
    # Another magnification needs the pixels again, and plans without them.
    lab.requests.clear()
    more = extract_cohort(remote, tmp_path / "1.zarr", REQUEST, (*MPPS, 4.0), options)
    assert more.done == list(local.names)
    assert len(images(lab)) == len(remote)


def test_several_processes_and_a_cache_as_the_stage(
    lab: S3Server, local: Cohort, remote: Cohort, cache: Path, tmp_path: Path, one_thread: None
) -> None:
    extract_cohort(local, tmp_path / "local.zarr", REQUEST, MPPS, OPTIONS)
    totals: list[int] = []

    class Counting(Silent):
        def start(self, items: int, total: int | None = None) -> None:
            totals.append(total or 0)

        def set_total(self, total: int) -> None:
            totals.append(total)

    report = extract_cohort(
        remote, tmp_path / "2.zarr", replace(REQUEST, device="cpu,cpu"), MPPS, OPTIONS, Counting()
    )
    assert (sorted(report.done), report.failed) == (list(local.names), {})
    assert numbers(tmp_path / "2.zarr", local) == numbers(tmp_path / "local.zarr", local)
    assert len(images(lab)) == len(remote)
    assert left_on(cache / "stage") == []
    assert totals[-1] == report.windows == 3 * 9 * len(MPPS)


def test_never_all_slides_at_once(
    lab: S3Server, remote: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = int(1.5 * max(image_files(row.image).size for row in remote.slides))
    stage = Stage(tmp_path / "stage", most)
    seen = []
    open_slide = sessions.open_slide

    def opening(path: Path) -> Any:
        seen.append(sum(file.stat().st_size for file in stage.folder.rglob("*.jpg")))
        return open_slide(path)

    monkeypatch.setattr(sessions, "open_slide", opening)
    report = extract_cohort(remote, tmp_path / "f.zarr", REQUEST, MPPS, replace(OPTIONS, stage=stage))
    assert len(report.done) == 3
    assert 0 < max(seen) <= most
    assert left_on(stage.folder) == []


def test_the_next_is_fetched_while_one_is_embedded(
    lab: S3Server, remote: Cohort, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, fetched = DeviceQueue.put, []

    def slow(*args: Any) -> None:
        time.sleep(0.5)
        put(*args)

    class Watching(Silent):
        def advance(self, amount: int) -> None:
            if amount:  # windows are written
                fetched.append(len(images(lab)))

    monkeypatch.setattr(DeviceQueue, "put", slow)
    options = replace(OPTIONS, stage=stage, batch_size=32)
    report = extract_cohort(remote, tmp_path / "f.zarr", REQUEST, MPPS, options, Watching())
    assert len(report.done) == len(remote)
    assert fetched[0] >= 2


def test_grids_are_laid_on_the_copy_and_counted_when_they_are(
    lab: S3Server, local: Cohort, remote: Cohort, stage: Stage, tmp_path: Path
) -> None:
    grid = parse_grid("grid:200")
    bare = [
        replace(cohort, slides=tuple(replace(row, spots=None, counts=None, mpp=1.0) for row in cohort.slides))
        for cohort in (local, remote)
    ]
    options = replace(OPTIONS, stage=stage)
    wanted = extract_cohort(bare[0], tmp_path / "l.zarr", REQUEST, MPPS, OPTIONS, grid=grid)
    report = extract_cohort(bare[1], tmp_path / "r.zarr", REQUEST, MPPS, options, grid=grid)
    assert report.done == wanted.done == report.gridded == list(local.names)
    assert numbers(tmp_path / "r.zarr", local) == numbers(tmp_path / "l.zarr", local)
    lab.requests.clear()
    again = extract_cohort(bare[1], tmp_path / "r.zarr", REQUEST, MPPS, options, grid=grid)
    assert again.unchanged == again.gridded == list(local.names)
    assert images(lab) == []


def test_faults_of_a_moment_change_nothing(
    lab: S3Server, local: Cohort, remote: Cohort, stage: Stage, tmp_path: Path
) -> None:
    extract_cohort(local, tmp_path / "local.zarr", REQUEST, MPPS, OPTIONS)
    faults: itertools.cycle[Any] = itertools.cycle([503, None, "drop", None, 0.05, None])
    lab.fault = lambda method, path, request: next(faults) if path.endswith(".jpg") else None
    report = extract_cohort(remote, tmp_path / "f.zarr", REQUEST, MPPS, replace(OPTIONS, stage=stage))
    assert report.failed == {}
    assert numbers(tmp_path / "f.zarr", local) == numbers(tmp_path / "local.zarr", local)


def test_one_slide_that_cannot_be_had_fails_alone_and_secrets_are_shown_nowhere(
    lab: S3Server, remote: Cohort, stage: Stage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    Bucket(LAB).delete([image_key(remote, "A1")])
    refused = image_key(remote, "B1")
    lab.fault = lambda method, path, request: 403 if path.endswith(refused) and method == "GET" else None
    report = extract_cohort(remote, tmp_path / "f.zarr", REQUEST, MPPS, replace(OPTIONS, stage=stage))
    assert report.done == ["C1"]
    assert (
        report.failed["A1"]
        == f"the image {remote['A1'].image} does not exist; correct the URL in the cohort."
    )
    assert report.failed["B1"].startswith(f"{remote['B1'].image} cannot be read: the server refuses these")
    assert left_on(stage.folder) == []
    shown = [caplog.text.encode(), *map(str.encode, report.failed.values())]
    shown += [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert all(secret not in text for text in shown for secret in (b"AKIATEST", b"secret-of-the-tests"))
    attributes = FeatureStore.open(tmp_path / "f.zarr").slide("C1").complete(ENCODER)[MPPS[0]].group.attrs
    assert attributes["image_from"]["url"] == str(remote["C1"].image)
    assert "url" not in str(attributes["recipe"])


def test_an_image_that_is_replaced(
    lab: S3Server,
    local: Cohort,
    remote: Cohort,
    stage: Stage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options, path = replace(OPTIONS, stage=stage), tmp_path / "f.zarr"
    one = remote.only(["A1"])
    extract_cohort(one, path, REQUEST, MPPS, options)
    before = numbers(path, one)
    # After it was complete: fetched, compared, and refused as one on a disk is.
    Bucket(LAB).put(image_key(remote, "A1"), local["B1"].image)
    report = extract_cohort(one, path, REQUEST, MPPS, options)
    assert "made with another recipe (image." in report.failed["A1"]
    assert numbers(path, one) == before
    # While it is fetched.
    key = f"/lab/study/{image_key(remote, 'C1')}"

    def replaced(method: str, asked: str, request: Any) -> None:
        if (method, asked) == ("GET", key):
            lab.fault = lambda *_: None
            Bucket(LAB).put(image_key(remote, "C1"), local["A1"].image)

    lab.fault = replaced
    report = extract_cohort(remote.only(["C1"]), path, REQUEST, MPPS, options)
    assert "was changed while it was read; run the same command again" in report.failed["C1"]
    # Between a plan by what was recorded, and its turn.
    extract_cohort(remote.only(["B1"]), path, REQUEST, MPPS, options)
    at_hand = sessions.at_hand

    def late(*args: Any) -> Any:
        Bucket(LAB).put(image_key(remote, "B1"), local["C1"].image)
        return at_hand(*args)

    monkeypatch.setattr(sessions, "at_hand", late)
    report = extract_cohort(remote.only(["B1"]), path, REQUEST, (*MPPS, 4.0), options)
    assert "was changed during the run" in report.failed["B1"]
    assert left_on(stage.folder) == []


def test_a_slide_larger_than_the_stage_or_than_its_disk_fails_with_a_sentence(
    lab: S3Server, remote: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = remote.only(["A1"])
    small = Stage(tmp_path / "stage", 10)
    report = extract_cohort(one, tmp_path / "f.zarr", REQUEST, MPPS, replace(OPTIONS, stage=small))
    assert "give a larger --stage-gb" in report.failed["A1"]
    assert images(lab) == []
    full = replace(OPTIONS, stage=Stage(tmp_path / "stage", 1 << 30))
    monkeypatch.setattr("mmap_st.extract.slides.remote.fetch", _full_disk)
    report = extract_cohort(one, tmp_path / "f.zarr", REQUEST, MPPS, full)
    assert "No space left on device" in report.failed["A1"]
    assert left_on(tmp_path / "stage") == []


def _full_disk(*_: Any) -> None:
    raise OSError(28, os.strerror(28))


def test_a_run_that_was_killed_leaves_a_stage_that_the_next_one_empties(
    lab: S3Server, remote: Cohort, stage: Stage, tmp_path: Path
) -> None:
    lab.fault = lambda method, path, request: 3.0 if method == "GET" and path.endswith(".jpg") else None
    code = (
        "import sys; from mmap_st.extract.slides import image_files; from mmap_st.extract.slides import fetched\n"
        "from mmap_st.extract.slides.staging import Stage; from mmap_st.urls import Url; from pathlib import Path\n"
        "with fetched(image_files(Url(sys.argv[1])), Stage(Path(sys.argv[2]), 1 << 30)): pass"
    )
    killed = subprocess.Popen([sys.executable, "-c", code, str(remote["A1"].image), stage.folder])
    until = time.monotonic() + 30
    while not images(lab) and time.monotonic() < until:
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert len(left_on(stage.folder)) == 2
    lab.fault = lambda method, path, request: None
    report = extract_cohort(
        remote.only(["B1"]), tmp_path / "f.zarr", REQUEST, MPPS, replace(OPTIONS, stage=stage)
    )
    assert report.done == ["B1"]
    assert left_on(stage.folder) == []


def test_a_server_that_does_not_answer_holds_up_nobody_who_stops(
    lab: S3Server, remote: Cohort, stage: Stage, tmp_path: Path
) -> None:
    lab.fault = lambda method, path, request: 40.0 if method == "GET" and path.endswith(".jpg") else None
    began = time.monotonic()
    with pytest.raises(StoppedError):
        extract_cohort(
            remote,
            tmp_path / "f.zarr",
            REQUEST,
            MPPS,
            replace(OPTIONS, stage=stage),
            stop=lambda: len(images(lab)) > 0,
        )
    assert time.monotonic() - began < 30
    assert left_on(stage.folder) == []


def test_jobs_share_slides_by_their_bytes_and_never_by_a_guess(
    lab: S3Server, local: Cohort, remote: Cohort
) -> None:
    shards = [Shard(index, 2) for index in range(2)]
    assert [[row.slide for row in slides_of_shard(remote, shard)] for shard in shards] == [
        [row.slide for row in slides_of_shard(local, shard)] for shard in shards
    ]
    lab.fault = lambda method, path, request: 403
    with pytest.raises(RequestError, match="refuses these credentials"):
        slides_of_shard(remote, shards[0])


def test_claimed_slides_that_others_complete_are_not_fetched(
    lab: S3Server, remote: Cohort, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, options = tmp_path / "f.zarr", replace(OPTIONS, stage=stage)
    extract_cohort(remote.only(["A1"]), path, REQUEST, MPPS, options)
    recipe = FeatureStore.open(path).slide("A1").complete(ENCODER)[MPPS[0]].recipe
    pending = sessions.PendingSlide(remote["A1"], PlanRequest(run_part(recipe), MPPS), 18)
    lab.requests.clear()
    assert sessions._is_complete(pending, FeatureStore.open(path), ENCODER)
    assert images(lab) == []


def test_slides_in_several_files(lab: S3Server, stage: Stage) -> None:
    bucket = Bucket(LAB)
    for key in ("m/a.mrxs", "m/a/deep/Data0001.dat", "m/a/Slidedat.ini", "d/1.dcm", "d/2", "alone.mrxs"):
        bucket.put(key, key.encode())
    with local_image(LAB / "m/a.mrxs") as copy:
        assert sorted(
            p.relative_to(copy.parent).as_posix() for p in copy.parent.rglob("*") if p.is_file()
        ) == [
            "a.mrxs",
            "a/Slidedat.ini",
            "a/deep/Data0001.dat",
        ]
    with local_image(LAB / "d") as copy:
        assert sorted(file.name for file in copy.iterdir()) == ["1.dcm", "2"]
    bucket.put("uid", bytes(128) + b"DICM")
    for key, said in (
        ("alone.mrxs", "lacks the folder alone"),
        ("d/1.dcm", "give the URL of the folder"),
        ("uid", "give the URL of the folder"),
        ("x.vms", "copy them to a disk"),
        ("gone.svs", "does not exist; correct the URL"),
    ):
        with pytest.raises(ImageError, match=said), local_image(LAB / key):
            pass
    with pytest.raises(ImageError, match="copy them to a disk"):
        image_files(Url("https://host/a.mrxs"))


def test_commands_take_urls_wherever_they_take_a_cohort(
    lab: S3Server, root: Path, remote: Cohort, tmp_path: Path, mmap: Callable[..., Any]
) -> None:
    url = f"{LAB}/cohort.csv"
    words = (
        "--encoder",
        ENCODER,
        "--random-weights",
        "--mpp",
        "1,2",
        "--device",
        "cpu",
        "--precision",
        "fp32",
    )
    store = tmp_path / "f.zarr"
    for done in (
        mmap("cohort", url, "--out", tmp_path / "written.csv"),
        mmap("cohort", "check", url, "--pictures", tmp_path / "look"),
        mmap("extract", url, store, *words, "--preview", tmp_path / "preview"),
        mmap("extract", url, store, *words, "--stage", tmp_path / "stage", "--stage-gb", 1),
        mmap("extract", url, store, *words, "--status"),
    ):
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert (
        len(list((tmp_path / "look").glob("*.jpg"))) == len(list((tmp_path / "preview").glob("*.jpg"))) == 3
    )
    assert left_on(tmp_path / "stage") == []
    Bucket(LAB).delete([image_key(remote, "B1")])
    checked = mmap("cohort", "check", url)
    assert (checked.returncode, checked.stdout.count("does not exist")) == (1, 1), checked.stdout
    image = mmap(
        "cohort", f"her2st:{root}", "--image", f"A1={remote['A1'].image}", "--out", tmp_path / "i.csv"
    )
    assert image.returncode == 0, image.stderr
    assert mm.read_cohort(tmp_path / "i.csv")["A1"].image == remote["A1"].image
    shutil.rmtree(store)


def test_what_a_prediction_names_is_not_fetched(
    lab: S3Server, remote: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = SimpleNamespace(uns={UNS: {"image": str(remote["A1"].image)}})
    assert image_of(table) is None
    extract_cohort(remote.only(["A1"]), tmp_path / "f.zarr", REQUEST, MPPS, OPTIONS)
    catalogue = open_catalogue(tmp_path / "f.zarr", remote)
    lab.requests.clear()
    shown = Answers(catalogue, "A1").picture(catalogue["A1"])
    assert shown.grid is None
    assert f"{remote['A1'].image} is not on a disk; copy it there to see it" in shown.note
    assert images(lab) == []


def test_slides_by_url_are_predicted_as_on_a_disk(server: S3Server, tiny: Any, tmp_path: Path) -> None:
    local = mm.read_cohort(f"her2st:{tiny.her2st}")
    picture = local["B1"].image
    assert picture is not None
    bucket = Bucket(LAB)
    for place in (picture, local["B1"].spots, local["B1"].counts):
        bucket.put(place.name, place)
    names = f"{picture.name},{local['B1'].spots.name},{local['B1'].counts.name}"
    bucket.put("cohort.csv", f"slide,patient,image,spots,counts,reader\nB1,B,{names},her2st\n".encode())
    bucket.put("B1.jpg", picture)
    wanted = mm.predict(tiny.run, tiny.store, tmp_path / "0", cohort=local, slides="B1", progress=False)
    report = mm.predict(tiny.run, f"{LAB}/cohort.csv", tmp_path / "1", page=False, progress=False)
    one, other = (anndata.read_h5ad(done.written["B1"]) for done in (wanted, report))
    assert np.array_equal(one.X, other.X)
    assert np.array_equal(one.layers["measured"], other.layers["measured"])
    library = [next(iter(table.uns["spatial"].values()))["images"]["hires"] for table in (one, other)]
    assert np.array_equal(*library)
    assert other.uns["mmap"]["image"] == f"{LAB}/{picture.name}"
    alone = mm.predict(tiny.run, f"{LAB}/B1.jpg", tmp_path / "2", source_mpp=0.7, page=False, progress=False)
    assert list(alone.written) == ["B1"]
    with pytest.raises(RequestError, match="does not have the name of a slide or of a cohort file"):
        mm.predict(tiny.run, f"{LAB}/B1.xyz", tmp_path / "3", progress=False)
