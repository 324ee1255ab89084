"""Extraction of slides without spots: a grid on their tissue, kept from run to run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmap_st.data.cohort import Cohort, CohortSlide
from mmap_st.data.readers import open_cohort
from mmap_st.errors import RequestError
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.engine.extraction import EncoderRequest, extract_cohort
from mmap_st.extract.engine.planning import placement
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.engine.preview import preview_cohort
from mmap_st.extract.slides.grid import GridRequest
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.interface import parse_settings
from mmap_st.head.registry import head_method
from mmap_st.head.runs.fit import fit_head
from mmap_st.head.runs.prediction import predict_slides
from mmap_st.head.runs.prediction_files import read_prediction
from mmap_st.head.runs.request import FitRequest
from mmap_st.progress import Silent

TINY = EncoderRequest(encoder_spec("timm:test_efficientnet"), random_weights=True)
LITE0 = EncoderRequest(encoder_spec("efficientnet-lite0"))
GRID = GridRequest("square", 200.0)


class Notes(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, items: int, total: int | None = None) -> None:
        self.windows = total

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def unsequenced(tmp_path: Path) -> CohortSlide:
    """A square of tissue, 1 mm wide, on glass: 1.6 mm at 1 um/px."""
    rng = np.random.default_rng(0)
    pixels = np.full((1600, 1600, 3), 240, np.uint8)
    pixels[400:1400, 400:1400] = (210, 130, 180)
    pixels[400:1400, 400:1400][rng.random((1000, 1000)) < 0.2] = (100, 60, 140)
    Image.fromarray(pixels).save(tmp_path / "new.png")
    return CohortSlide("new", patient="N", image=tmp_path / "new.png", mpp=1.0)


def cohort_of(*rows: CohortSlide) -> Cohort:
    return Cohort(rows, "test")


def test_slides_with_spots_are_not_counted_where_there_are_none(
    unsequenced: CohortSlide, tmp_path: Path
) -> None:
    notes = Notes()
    extract_cohort(cohort_of(unsequenced), tmp_path / "f.zarr", TINY, (1.0,), progress=notes, grid=GRID)
    assert "1 slide gets the spots of grid:200" in notes.notes


def test_slides_without_spots_get_the_grid_and_the_others_keep_theirs(
    write_section, unsequenced: CohortSlide, tmp_path: Path
) -> None:
    sequenced = open_cohort(f"her2st:{write_section('A1')}")["A1"]
    path, notes = tmp_path / "f.zarr", Notes()
    cohort = cohort_of(sequenced, unsequenced, CohortSlide("bare"))
    report = extract_cohort(cohort, path, TINY, (1.0,), progress=notes, grid=GRID)
    assert (report.done, report.gridded, report.skipped_slides) == (["A1", "new"], ["new"], ["bare"])
    assert "1 slide gets the spots of grid:200; 1 has spots of its own" in notes.notes
    stored = FeatureStore.open(path)
    assert stored.slide("A1").spot_ids()[0] == "1x1"
    assert stored.slide("A1").spots_made_by() is None
    new = stored.slide("new")
    assert new.spots_made_by() == {"layout": "square", "pitch_um": 200.0, "tissue": "otsu-darkest-channel-2"}
    assert sorted(set(new.spot_xy().ravel())) == [500.0, 700.0, 900.0, 1100.0, 1300.0]
    assert len(new.complete(TINY.spec.name)[1.0].embedding()) == 25
    # Without a grid the row is skipped, as before.
    plain = extract_cohort(cohort, path, TINY, (1.0,))
    assert (plain.unchanged, plain.skipped_slides) == (["A1"], ["new", "bare"])


def test_a_second_run_takes_the_grid_from_the_store(
    unsequenced: CohortSlide, tmp_path: Path, monkeypatch
) -> None:
    path, cohort = tmp_path / "f.zarr", cohort_of(unsequenced)
    extract_cohort(cohort, path, TINY, (1.0,), grid=GRID)
    looked: list[object] = []
    monkeypatch.setattr(placement, "find_tissue", lambda *args: looked.append(args))
    again = extract_cohort(cohort, path, TINY, (1.0,), grid=GRID)
    assert (again.unchanged, again.windows) == (["new"], 0)
    added = extract_cohort(cohort, path, TINY, (0.5, 1.0), grid=GRID)
    assert (added.done, added.windows) == (["new"], 25)
    replaced = extract_cohort(cohort, path, TINY, (1.0,), ExtractOptions(overwrite=True), grid=GRID)
    assert not replaced.failed
    assert looked == []


def test_another_grid_scale_or_spot_table_is_refused_by_its_name(
    write_section, unsequenced: CohortSlide, tmp_path: Path
) -> None:
    sequenced = open_cohort(f"her2st:{write_section('A1')}")["A1"]
    path = tmp_path / "f.zarr"
    extract_cohort(cohort_of(sequenced, unsequenced), path, TINY, (1.0,), grid=GRID)

    def refusal(row: CohortSlide, grid: GridRequest | None) -> str:
        report = extract_cohort(cohort_of(row), path, TINY, (2.0,), grid=grid)
        assert list(report.failed) == [row.slide]
        assert "\n" not in report.failed[row.slide]
        return report.failed[row.slide]

    hexagonal = GridRequest("hexagonal", 100.0)
    other = refusal(unsequenced, hexagonal)
    assert "with the spots of grid:200, and those of hex:100 are wanted now" in other
    assert "or --spots grid:200" in other
    assert "1600 x 1600 px at 1 um/px, and now it has 1600 x 1600 px at 0.5 um/px" in refusal(
        replace(unsequenced, mpp=0.5), GRID
    )
    bare = replace(sequenced, spots=None, counts=None, reader=None, mpp=1.0)
    assert "16 spots of a spot table, and --spots grid:200 asks for a grid" in refusal(bare, GRID)
    theirs = replace(sequenced, slide="new")
    assert "other spots (25 there, a square grid, 16 now)" in refusal(theirs, GRID)


def test_slides_that_no_grid_fits_fail_with_their_reason(unsequenced: CohortSlide, tmp_path: Path) -> None:
    Image.new("RGB", (900, 900), (240, 240, 242)).save(tmp_path / "blank.png")
    rows = (
        replace(unsequenced, slide="blank", image=tmp_path / "blank.png"),
        replace(unsequenced, slide="scaleless", mpp=None),
        replace(unsequenced, slide="gone", image=tmp_path / "gone.png"),
        unsequenced,
    )
    report = extract_cohort(cohort_of(*rows), tmp_path / "f.zarr", TINY, (1.0,), grid=GRID)
    assert report.done == ["new"]
    assert "no tissue found on it" in report.failed["blank"]
    assert "give them in the cohort's column mpp" in report.failed["scaleless"]
    assert "does not exist" in report.failed["gone"]
    coarse = extract_cohort(
        cohort_of(unsequenced), tmp_path / "g.zarr", TINY, (1.0,), grid=GridRequest("square", 5000.0)
    )
    assert "ask for a finer grid" in coarse.failed["new"]


def test_a_real_slide_without_spots_is_embedded(shared: Path, tmp_path: Path) -> None:
    image = shared / "data" / "wsi" / "CMU-1-Small-Region.svs"
    row = CohortSlide("CMU", image=image)
    path = tmp_path / "f.zarr"
    report = extract_cohort(cohort_of(row), path, LITE0, (0.5, 1.0), grid=GridRequest("square", 100.0))
    assert report.done == ["CMU"]
    stored = FeatureStore.open(path).slide("CMU")
    assert (stored.source_mpp, stored.source_mpp_from) == (0.499, "image metadata")
    step = np.diff(np.unique(stored.spot_xy()[:, 0])) * 0.499
    assert np.allclose(step / 100.0, np.round(step / 100.0))
    assert np.median(step) == pytest.approx(100.0)
    assert 55 <= len(stored.spot_ids()) <= 75
    for magnification in stored.complete("efficientnet-lite0").values():
        assert magnification.valid().all()
        assert np.isfinite(magnification.embedding()).all()


def test_a_head_predicts_a_slide_that_was_never_sequenced(
    cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    """A held-out section without its spots: the prediction at a spot is near that at the grid's nearest."""
    method = head_method("ridge")
    request = FitRequest(
        "efficientnet-lite0", method, parse_settings(method, []), genes="all", train="patient=A,B,C,D"
    )
    fit_head(cohort, store, request, tmp_path / "run")
    mpp = store.slide("E1").source_mpp
    row = CohortSlide("E1-unsequenced", image=cohort["E1"].image, mpp=mpp)
    path = tmp_path / "f.zarr"
    grid = GridRequest("hexagonal", 100.0)
    assert not extract_cohort(cohort_of(row), path, LITE0, (0.5, 1.0), grid=grid).failed
    made = predict_slides(tmp_path / "run", FeatureStore.open(path), tmp_path / "p")
    table = read_prediction(made.written["E1-unsequenced"])
    assert table.n_obs > 100
    assert np.isfinite(table.X).all()
    predict_slides(tmp_path / "run", store, tmp_path / "p", ["E1"])
    own = read_prediction(tmp_path / "p" / "E1.h5ad")
    gap = np.linalg.norm(table.obsm["spatial"][:, None] - own.obsm["spatial"][None], axis=2)
    nearest = gap.argmin(axis=0)
    near = gap.min(axis=0) < 60.0 / mpp
    assert near.sum() > 20
    both = np.stack([table.X[nearest[near]], own.X[near]]).reshape(2, -1)
    assert np.corrcoef(both)[0, 1] > 0.9


def test_previews_are_drawn_for_slides_with_and_without_spots(
    write_section, unsequenced: CohortSlide, tmp_path: Path
) -> None:
    sequenced = open_cohort(f"her2st:{write_section('A1')}")["A1"]
    Image.new("RGB", (90, 90), (240, 240, 242)).save(tmp_path / "blank.png")
    blank = replace(unsequenced, slide="blank/1", image=tmp_path / "blank.png")
    cohort = cohort_of(sequenced, replace(unsequenced, slide="a b"), blank, CohortSlide("bare"))
    store, out = tmp_path / "f.zarr", tmp_path / "look"
    told: list[str] = []
    report = preview_cohort(cohort, store, out, GRID, told.append)
    assert {name: path.name for name, path in report.written.items()} == {"A1": "A1.jpg", "a b": "a%20b.jpg"}
    assert report.skipped_slides == ["bare"]
    assert "no tissue found on it" in report.failed["blank/1"]
    assert told == ["drawing A1", "drawing a b", "drawing blank/1"]
    assert not store.exists()
    picture = np.asarray(Image.open(report.written["a b"])).astype(int)
    assert picture.shape[1] == 1600
    yellow = (np.abs(picture - (255, 214, 0)) < 40).all(axis=2)
    for x in (500, 700, 1300):
        assert yellow[700, x]
    assert yellow[:1600].sum() == pytest.approx(25 * np.pi * 7**2, rel=0.4)
    green = (np.abs(picture - (0, 166, 90)) < 50).all(axis=2)
    assert green[600, 385:415].any()
    assert not green[600, 430:1370].any()
    # After an extraction the picture shows the store's spots; another grid is refused, as it would be there.
    extract_cohort(cohort_of(cohort["a b"]), store, TINY, (1.0,), grid=GRID)
    assert list(preview_cohort(cohort_of(cohort["a b"]), store, out, GRID).written) == ["a b"]
    finer = preview_cohort(cohort_of(cohort["a b"]), store, out, GridRequest("square", 50.0))
    assert "those of grid:50 are wanted now" in finer.failed["a b"]
    with pytest.raises(RequestError, match="is a file; name a folder"):
        preview_cohort(cohort, store, tmp_path / "blank.png", GRID)
