"""The extraction run: exact, the same for any batch and number of workers, and safe to kill."""

import dataclasses
import multiprocessing
import random
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import zarr
from PIL import Image

from mmap_st import cli
from mmap_st.data.cohort import Cohort, CohortSlide, write_cohort
from mmap_st.data.readers import open_cohort
from mmap_st.errors import EncoderError, RecipeMismatchError, RegionError
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.encoders.weights import get_weights
from mmap_st.extract.engine.extraction import EncoderRequest, extract_cohort
from mmap_st.extract.engine.planning import plan as recipes
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.engine.planning.plan import PlanRequest, plan_slide
from mmap_st.extract.slides.formats.plain import PlainSlide
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.extract.store.writing.lock import slide_lock

LITE0 = EncoderRequest(encoder_spec("efficientnet-lite0"))
TINY = EncoderRequest(encoder_spec("timm:test_efficientnet"), random_weights=True)


def contents(path: Path) -> dict[str, bytes]:
    """Every array of a store as bytes, by its path."""
    root = zarr.open_group(path, mode="r")
    return {
        name: np.asarray(member[:]).tobytes()
        for name, member in root.members(max_depth=None)
        if isinstance(member, zarr.Array) and not name.endswith("spots/id")
    }


def decoded(image: Path) -> Image.Image:
    Image.MAX_IMAGE_PIXELS, limit = None, Image.MAX_IMAGE_PIXELS
    slide = Image.open(image).convert("RGB")
    Image.MAX_IMAGE_PIXELS = limit
    return slide


def ten_line_reference(slide: Image.Image, xy: np.ndarray, mpp: float, source_mpp: float) -> np.ndarray:
    """Crop at level 0 with Pillow, white fill, BICUBIC resize antialiased, normalise, timm forward."""
    side, crops = 224 * mpp / source_mpp, []
    for x, y in xy:
        # Eight pixels around the window: the filter reaches over its edge.
        left, top, size = int(x - side / 2) - 8, int(y - side / 2) - 8, int(side) + 18
        crop = Image.new("RGB", (size, size), "white")
        crop.paste(slide, (-left, -top))
        box = (x - side / 2 - left, y - side / 2 - top, x + side / 2 - left, y + side / 2 - top)
        crops.append(np.asarray(crop.resize((224, 224), Image.Resampling.BICUBIC, box=box)))
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    state = list(torch.load(get_weights(LITE0.spec, None), weights_only=True).values())
    model.load_state_dict(dict(zip(model.state_dict(), state, strict=False)))
    with torch.inference_mode():
        images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255
        return model((images - 0.5) / 0.5).numpy()


def check_against_reference(slide: CohortSlide, mpps: tuple[float, ...], path: Path) -> None:
    report = extract_cohort(Cohort((slide,), "test"), path, LITE0, mpps)
    assert not report.failed
    stored = FeatureStore.open(path).slide(slide.slide)
    assert slide.image is not None
    assert stored.source_mpp is not None
    xy = stored.spot_xy()
    # The spots nearest to the border, and others spread over the slide: 30 in all.
    width, height = stored.size_px or (0, 0)
    to_border = np.minimum(xy, np.array([width, height]) - xy).min(axis=1)
    border = np.argsort(to_border)[:10]
    others = np.setdiff1d(np.linspace(0, len(xy) - 1, 31).astype(int), border)[:20]
    rows, picture = np.concatenate([border, others]), decoded(slide.image)
    for mpp in mpps:
        found = stored.complete("efficientnet-lite0")[mpp].embedding()[rows]
        expected = ten_line_reference(picture, xy[rows], mpp, stored.source_mpp)
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-3, mpp
        # Pillow takes boxes in single precision, so another crop turns a few pixels by one grey level,
        # which the network enlarges; no single spot may be further away than that.
        each = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert each.max() < 3e-3, (mpp, each.max())


def test_embeddings_equal_the_ten_line_reference_on_simulated_tissue(cohort: Cohort, tmp_path: Path) -> None:
    check_against_reference(cohort["A1"], (0.25, 2.0), tmp_path / "f.zarr")
    stored = FeatureStore.open(tmp_path / "f.zarr").slide("A1").complete("efficientnet-lite0")[2.0]
    share = np.asarray(stored.group["in_bounds"][:])
    assert share.min() < 0.9  # windows of 448 um reach beyond the border of this small section
    assert share.max() == 1.0


def test_embeddings_equal_the_ten_line_reference_on_a_real_section(shared: Path, tmp_path: Path) -> None:
    slide = open_cohort(f"her2st:{shared / 'data' / 'her2st'}")["C3"]
    # Every fifth spot: 36, of which 30 are compared.
    header, *spots = slide.spots.read_text().splitlines(keepends=True)
    some = tmp_path / slide.spots.name
    some.write_text("".join([header, *spots[::5]]))
    check_against_reference(
        dataclasses.replace(slide, spots=some), (0.25, 0.5, 1.0, 2.0), tmp_path / "f.zarr"
    )


@pytest.mark.parametrize("request_", [TINY, LITE0], ids=["tiny", "lite0"])
def test_any_batch_size_and_number_of_workers_gives_the_same_bits(write_section, tmp_path, request_) -> None:
    root = write_section("A1", side=4)
    cohort = open_cohort(f"her2st:{root}")
    stores = []
    for batch, workers, chunk in ((32, 2, 1024), (1, 1, 1024), (7, 3, 4)):
        path = tmp_path / f"{batch}.zarr"
        extract_cohort(cohort, path, request_, (0.5,), ExtractOptions(batch, workers, chunk))
        stores.append(contents(path))
    assert len(stores[0]) == 5
    assert stores[0] == stores[1] == stores[2]


def test_a_second_run_does_nothing_and_magnifications_can_be_added(write_section, tmp_path: Path) -> None:
    root = write_section("A1")
    write_section("B1", seed=1)
    write_section("C1", image=False)
    cohort = open_cohort(f"her2st:{root}")
    path = tmp_path / "f.zarr"
    first = extract_cohort(cohort, path, TINY, (1.0,))
    assert (first.done, first.skipped_slides, first.windows) == (["A1", "B1"], ["C1"], 32)
    times = {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}
    again = extract_cohort(cohort, path, TINY, (1.0,))
    assert (again.done, again.unchanged, again.windows) == ([], ["A1", "B1"], 0)
    assert times == {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}
    added = extract_cohort(cohort, path, TINY, (0.5, 1.0))
    assert (added.done, added.windows) == (["A1", "B1"], 32)
    assert list(FeatureStore.open(path).slide("A1").complete(TINY.spec.name)) == [0.5, 1.0]


def test_another_precision_is_refused_before_any_work_and_auto_takes_the_stores(
    write_section, tmp_path: Path
) -> None:
    root = write_section("A1")
    path = tmp_path / "f.zarr"
    half = EncoderRequest(TINY.spec, random_weights=True, precision="bf16")
    extract_cohort(open_cohort(f"her2st:{root}"), path, half, (1.0,))
    write_section("B1", seed=1)
    cohort = open_cohort(f"her2st:{root}")
    full = EncoderRequest(TINY.spec, random_weights=True, precision="fp32")
    with pytest.raises(RecipeMismatchError, match="precision: stored bf16, asked fp32"):
        extract_cohort(cohort, path, full, (1.0,))
    assert FeatureStore.open(path).slides == ("A1",)
    assert extract_cohort(cohort, path, TINY, (1.0,)).done == ["B1"]  # auto
    recipe = FeatureStore.open(path).slide("B1").complete(TINY.spec.name)[1.0].recipe
    assert recipe["precision"] == "bf16"
    replaced = extract_cohort(cohort, path, full, (1.0,), ExtractOptions(overwrite=True))
    assert replaced.done == ["A1", "B1"]


def test_a_replaced_image_fails_that_slide_and_the_others_are_done(write_section, tmp_path: Path) -> None:
    root = write_section("A1")
    path = tmp_path / "f.zarr"
    extract_cohort(open_cohort(f"her2st:{root}"), path, TINY, (1.0,))
    write_section("A1", seed=9, counts=None)
    write_section("B1", seed=1)
    report = extract_cohort(open_cohort(f"her2st:{root}"), path, TINY, (1.0,))
    assert report.done == ["B1"]
    assert "image.sha256" in report.failed["A1"]
    assert "--overwrite" in report.failed["A1"]


def test_a_magnification_of_another_picture_is_not_put_beside_the_first(
    write_section, tmp_path: Path
) -> None:
    root = write_section("A1")
    path = tmp_path / "f.zarr"
    extract_cohort(open_cohort(f"her2st:{root}"), path, TINY, (1.0,))
    write_section("A1", seed=9)
    cohort = open_cohort(f"her2st:{root}")
    report = extract_cohort(cohort, path, TINY, (2.0,))
    assert "image.sha256" in report.failed["A1"]
    report = extract_cohort(cohort, path, TINY, (2.0,), ExtractOptions(overwrite=True))
    assert "image.sha256" in report.failed["A1"]
    both = extract_cohort(cohort, path, TINY, (1.0, 2.0), ExtractOptions(overwrite=True))
    assert both.done == ["A1"]


def test_bad_slides_fail_with_their_reason_and_the_others_are_done(write_section, tmp_path: Path) -> None:
    root = write_section("A1")
    whole = next((root / "ST-imgs").rglob("*.jpg")).read_bytes()
    write_section("B1", image=whole[: len(whole) // 2])
    header = "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n"
    write_section("C1", spots=header + "99\t99\t99\t99\t5\t5\t1\n")
    write_section("D1", counts="\tG0\n1x1\t1\n1x1\t1\n")
    write_section("E1")
    write_section("F1")
    found = open_cohort(f"her2st:{root}")
    rows = [
        CohortSlide(**{**vars(s), "mpp": 0.25})
        if s.slide == "E1"
        else CohortSlide(**{**vars(s), "image": root / "gone.jpg"})
        if s.slide == "F1"
        else s
        for s in found.slides
    ]
    report = extract_cohort(Cohort(tuple(rows), "test"), tmp_path / "f.zarr", TINY, (1.0,))
    assert report.done == ["A1"]
    expected = {
        "B1": "is damaged and cannot be decoded",
        "C1": "no spot id is in both",
        "D1": "repeats spots: 1x1",
        "E1": "disagree by more than 5%: 0.25 (given in the cohort) against 1",
        "F1": "does not exist",
    }
    assert report.failed.keys() == expected.keys()
    for name, part in expected.items():
        assert part in report.failed[name]
        assert "\n" not in report.failed[name]


def test_a_slide_that_another_process_writes_fails_alone(write_section, tmp_path: Path) -> None:
    root = write_section("A1")
    write_section("B1", seed=1)
    path = tmp_path / "f.zarr"
    with slide_lock(path, "A1"):
        report = extract_cohort(open_cohort(f"her2st:{root}"), path, TINY, (1.0,))
    assert report.done == ["B1"]
    assert "is writing it" in report.failed["A1"]
    assert extract_cohort(open_cohort(f"her2st:{root}"), path, TINY, (1.0,)).done == ["A1"]


@pytest.mark.parametrize(("unreadable", "passes"), [(1, True), (4, False)])
def test_unreadable_windows_are_nan_and_too_many_fail_the_slide(
    write_section, tmp_path: Path, monkeypatch, unreadable: int, passes: bool
) -> None:
    root = write_section("A1", side=6)  # 36 spots: 5% is one window
    cohort = open_cohort(f"her2st:{root}")
    read, calls = PlainSlide.read, []

    def sometimes(self, box, level=0):
        calls.append(box)
        if len(calls) <= unreadable:
            raise RegionError("tile 7 cannot be decoded")
        return read(self, box, level)

    monkeypatch.setattr(PlainSlide, "read", sometimes)
    path = tmp_path / "f.zarr"
    report = extract_cohort(cohort, path, TINY, (1.0,), ExtractOptions(workers=1))
    if passes:
        stored = FeatureStore.open(path).slide("A1").complete(TINY.spec.name)[1.0]
        assert report.invalid == 1
        assert stored.valid().tolist() == [False] + [True] * 35
        assert np.isnan(stored.embedding()[0]).all()
        assert np.isfinite(stored.embedding()[1:]).all()
        assert np.asarray(stored.group["in_bounds"][:])[0] > 0
    else:
        assert "of 36 windows at 1.0000 um/px cannot be read" in report.failed["A1"]
        monkeypatch.undo()
        again = extract_cohort(cohort, path, TINY, (1.0,))
        assert (again.done, again.invalid) == (["A1"], 0)


def chunk_files(path: Path) -> dict[Path, int]:
    """Bytes on disk of every embedding chunk that the store records as done, with its time of writing."""
    found = {}
    for slide in FeatureStore.open(path).slides if (path / "zarr.json").is_file() else ():
        stored = FeatureStore.open(path).slide(slide)
        for encoder in stored.encoders():
            for magnification in stored.magnifications(encoder):
                folder = path / str(magnification.group.path) / "embedding" / "c"
                for index in magnification.group.attrs["chunks_done"]:
                    file = folder / str(index) / "0"
                    found[file] = file.stat().st_mtime_ns
    return found


@pytest.mark.parametrize("moment", range(4))
def test_kill_9_at_a_random_moment_loses_no_finished_chunk(
    write_section, tmp_path: Path, killed_reference: dict[str, bytes], moment: int
) -> None:
    root = write_section("A1", side=12)
    write_section("B1", side=9, seed=1)
    cohort_file, path = tmp_path / "cohort.csv", tmp_path / "f.zarr"
    write_cohort(open_cohort(f"her2st:{root}"), cohort_file)
    words = ["mmap", "extract", str(cohort_file), str(path), "--encoder", TINY.spec.name,
             "--random-weights", "--mpp", "0.5,1,2", "--chunk", "64"]  # fmt: skip
    # A copy of a process that has imported what it needs: it is the extraction that is to be killed.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pytest", "timm", "torch", "zarr"])
    process = processes.Process(target=run_command, args=(words,))
    process.start()
    while not (path / "A1" / "spots").exists() and process.is_alive():
        time.sleep(0.002)
    time.sleep(random.Random(moment).uniform(0.0, 1.5))
    process.kill()
    process.join()
    before = chunk_files(path)
    report = extract_cohort(read_back(cohort_file), path, TINY, (0.5, 1.0, 2.0), ExtractOptions(chunk=64))
    assert not report.failed
    after = chunk_files(path)
    assert before.items() <= after.items()
    assert len(after) == 3 * (3 + 2)
    assert contents(path) == killed_reference
    assert not list(path.rglob("*.partial"))


def run_command(words: list[str]) -> None:
    sys.argv = words
    cli.main()


def read_back(cohort_file: Path) -> Cohort:
    return open_cohort(str(cohort_file))


@pytest.fixture(scope="module")
def killed_reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same two sections, embedded without a kill; filled in by the first use below."""
    return {}


@pytest.fixture(autouse=True)
def _undisturbed(request: pytest.FixtureRequest) -> None:
    if "killed_reference" not in request.fixturenames:
        return
    reference = request.getfixturevalue("killed_reference")
    if not reference:
        write_section = request.getfixturevalue("write_section")
        folder = request.getfixturevalue("tmp_path") / "undisturbed"
        root = write_section("A1", side=12, root=folder / "her2st")
        write_section("B1", side=9, seed=1, root=folder / "her2st")
        extract_cohort(
            open_cohort(f"her2st:{root}"),
            folder / "f.zarr",
            TINY,
            (0.5, 1.0, 2.0),
            ExtractOptions(chunk=64),
        )
        reference.update(contents(folder / "f.zarr"))


def test_an_encoder_with_a_reserved_name_is_refused_before_any_work(write_section, tmp_path: Path) -> None:
    cohort = open_cohort(f"her2st:{write_section('A1')}")
    spec = replace(encoder_spec("timm:test_efficientnet"), name="spots")
    store = tmp_path / "f.zarr"
    with pytest.raises(EncoderError, match="'spots' cannot be the name of an encoder"):
        extract_cohort(cohort, store, EncoderRequest(spec, random_weights=True), (0.5,))
    assert not store.exists()


def test_spots_and_image_are_hashed_once_a_slide_however_many_magnifications(
    write_section, tmp_path: Path, monkeypatch
) -> None:
    cohort = open_cohort(f"her2st:{write_section('A1')}")
    store = FeatureStore.create(tmp_path / "f.zarr")
    calls: Counter[str] = Counter()

    def counted(name: str):
        original = getattr(recipes, name)

        def call(*args):
            calls[name] += 1
            return original(*args)

        return call

    for name in ("image_fingerprint", "sha256_of_spots"):
        monkeypatch.setattr(recipes, name, counted(name))
    plan = plan_slide(cohort["A1"], store, PlanRequest({"encoder": {"name": "e"}}, (0.25, 0.5, 1.0)))
    assert len(plan.recipes) == 3
    assert calls == {"image_fingerprint": 1, "sha256_of_spots": 1}
