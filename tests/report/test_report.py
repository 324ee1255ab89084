from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmap_st.errors import RequestError
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.interface import parse_settings
from mmap_st.head.registry import head_method
from mmap_st.head.runs.fit import fit_head
from mmap_st.head.runs.prediction import predict_slides
from mmap_st.head.runs.prediction_files import read_prediction
from mmap_st.head.runs.request import FitRequest
from mmap_st.report.figure import spot_distance
from mmap_st.report.maps import SlideMap, best_genes, expression_map
from mmap_st.report.run_report import load_map, map_of, report_run

ENCODER = "efficientnet-lite0"


@pytest.fixture(scope="module")
def run(cohort, store: FeatureStore, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("report") / "run"
    method = head_method("ridge")
    request = FitRequest(ENCODER, method, parse_settings(method, ["alpha=1e4"]), genes="all", test="slide=E1")
    fit_head(cohort, store, request, out)
    return out


def test_a_run_is_drawn_over_its_picture(run: Path, store: FeatureStore, tmp_path: Path) -> None:
    paths = report_run(run, tmp_path / "figures", store=store)
    assert [p.name for p in paths] == ["E1_maps.png", "E1_prototypes.png"]
    for path in paths:
        picture = np.asarray(Image.open(path).convert("RGB"))
        assert picture.shape[0] > 500
        assert picture.shape[1] > 500
        # Tissue is there in colour, and spots in many colours.
        assert len(np.unique(picture.reshape(-1, 3)[::97], axis=0)) > 150


def test_the_map_shows_what_was_measured_and_predicted(run: Path) -> None:
    slide = load_map(run / "predictions" / "E1.h5ad")
    assert slide.background is not None
    width = Image.open(str(picture_of(run))).width
    assert slide.background.pixels.shape[1] / slide.background.scale == pytest.approx(width)
    genes = best_genes(slide, 3)
    figure = expression_map(slide, genes)
    maps = [
        axes for axes in figure.axes if axes.collections and axes.collections[0].get_offsets().shape[0] > 3
    ]
    drawn = [np.asarray(axes.collections[0].get_array()) for axes in maps]
    assert len(drawn) == 6
    index = slide.genes.index(genes[0])
    assert any(np.array_equal(d, slide.predicted[:, index]) for d in drawn)
    assert any(np.array_equal(d, slide.measured[:, index]) for d in drawn)
    for axes in maps:  # y points down, as in the picture
        low, high = axes.get_ylim()
        assert low > high


def picture_of(run: Path) -> str:
    from mmap_st.head.runs.prediction_files import read_prediction

    return read_prediction(run / "predictions" / "E1.h5ad").uns["mmap"]["image"]


def test_slides_without_counts_or_picture_are_drawn_too(
    run: Path, store: FeatureStore, tmp_path: Path
) -> None:
    predict_slides(run, store, tmp_path / "p", ["A1"])
    (path,) = report_run(tmp_path / "p", tmp_path / "figures", ["FINE001"])
    assert path.is_file()


def test_nan_spots_are_not_drawn_and_constant_genes_are() -> None:
    xy = np.array([[0, 0], [100, 0], [0, 100], [100, 100.0]])
    predicted = np.array([[1.0], [np.nan], [1.0], [1.0]], np.float32)
    slide = SlideMap("S", xy, ("G",), predicted, None, None, 0.5, "units")
    figure = expression_map(slide, ["G"])
    assert figure.axes[0].collections[0].get_offsets().shape == (3, 2)
    assert spot_distance(xy) == 100


def test_what_cannot_be_drawn(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no predictions"):
        report_run(tmp_path, tmp_path / "figures")
    with pytest.raises(RequestError, match=r"did you mean .*FINE001"):
        report_run(run, tmp_path / "figures", ["FINE01"])
    (tmp_path / "file").touch()
    for name in ("report.html", "maps.PNG", "file"):
        with pytest.raises(RequestError, match="figures are written into a folder"):
            report_run(run, tmp_path / name)


def test_a_folders_name_may_have_dots(run: Path, tmp_path: Path) -> None:
    (tmp_path / "figures.png").mkdir()
    for name in ("hest-v1.1", "figures.png"):
        (path,) = report_run(run, tmp_path / name, ["FINE001"])
        assert path.parent == tmp_path / name
        assert path.is_file()


def test_pictures_of_numbers_from_0_to_1_are_those_of_bytes(run: Path) -> None:
    table = read_prediction(run / "predictions" / "E1.h5ad")
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    for shown in (pixels, (pixels / 255).astype(np.float32)):
        table.uns["spatial"] = {
            "E1": {"images": {"hires": shown}, "scalefactors": {"tissue_hires_scalef": 0.1}}
        }
        background = map_of(table).background
        assert background is not None
        assert np.array_equal(background.pixels, pixels)
