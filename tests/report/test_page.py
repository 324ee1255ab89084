"""The page of results as it is written; `tests/browser` looks at it as people do."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import anndata
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mmap_st as mm
from mmap_st.report import draw_page
from mmap_st.report.page import PagedSlides
from mmap_st.report.page.page import page_of
from mmap_st.report.page.slide_layers import LEVELS, SPREAD_LEVELS, pack_layer, unpack_layer
from mmap_st.report.prediction_layers import layers_of
from mmap_st.report.summary import Summary
from tests.conftest import Tiny

Mmap = Callable[..., "subprocess.CompletedProcess[str]"]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def predictions(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predictions")
    mm.predict(tiny.run, tiny.store, out, cohort=f"her2st:{tiny.her2st}", progress=False)
    return out


class Links(HTMLParser):
    """What a page would load from elsewhere, its text, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for key, value in attributes if key in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@given(
    values=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.one_of(st.just(np.nan), st.floats(-100, 100, width=32)),
    ),
    levels=st.sampled_from([LEVELS, SPREAD_LEVELS]),
)
def test_packed_values_are_within_half_a_step(values: np.ndarray, levels: int) -> None:
    found = unpack_layer(pack_layer(values, levels), len(values))
    assert np.array_equal(np.isnan(found), np.isnan(values))
    known = np.where(np.isnan(values), 0.0, values)
    step = (np.nanmax(np.where(np.isnan(values), -np.inf, values), axis=0, initial=-np.inf)) - (
        np.nanmin(np.where(np.isnan(values), np.inf, values), axis=0, initial=np.inf)
    )
    step = np.where(np.isfinite(step), step, 0.0) / levels
    assert (np.abs(np.nan_to_num(found) - known) <= 0.5 * step + 1e-4).all()


def test_the_page_of_a_run(tiny: Tiny, tmp_path: Path, mmap: Mmap) -> None:
    shown = mmap("report", tiny.run, "--out", tmp_path / "page.html")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1].endswith("page.html")
    page = Links((tmp_path / "page.html").read_text("utf-8"))
    text = " ".join(page.text)
    metrics = mm.load_head(tiny.run).metrics
    assert metrics.test is not None
    for part in ("training mean", f"{metrics.test.pcc_slide:.4f}", "noise ceiling", "1 slide, 10 genes"):
        assert part in text
    assert not page.loaded  # nothing from anywhere
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html"]


def test_a_folder_gets_figures_and_the_page(predictions: Path, tmp_path: Path, mmap: Mmap) -> None:
    shown = mmap("report", predictions, "--out", tmp_path / "r")
    assert shown.returncode == 0, shown.stderr
    names = [f"{slide}_maps.png" for slide in ("A1", "B1", "C1")]
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == [*names, "report.html"]


def test_slides_are_scored_on_the_page(predictions: Path, tmp_path: Path) -> None:
    draw_page(predictions, tmp_path / "p.html")
    cells = [text.strip() for text in Links((tmp_path / "p.html").read_text("utf-8")).text if text.strip()]
    for slide in ("A1", "B1", "C1"):
        scores = anndata.read_h5ad(predictions / f"{slide}.h5ad").uns["mmap"]["scores"]
        row = cells[cells.index(slide) :][:6]
        assert row[2:6] == [
            f"{scores['pcc']:.4f}",
            f"{scores['mse']:.4f}",
            f"{scores['mae']:.4f}",
            f"{scores['coverage_90']:.1%}",
        ]


def test_evaluations_and_comparisons(tiny: Tiny, tmp_path: Path, mmap: Mmap) -> None:
    cohort = f"her2st:{tiny.her2st}"
    words = (cohort, tiny.store, "--genes", "mean:5", "--jobs", 1)
    encoder = "efficientnet-lite0"
    done = mmap("evaluate", *words, "--encoder", encoder, "--head", "mean", "--out", tmp_path / "e")
    assert done.returncode == 0, done.stderr
    done = mmap("compare", *words, "--encoders", encoder, "--heads", "mean,ridge", "--out", tmp_path / "c")
    assert done.returncode == 0, done.stderr
    for run, part in (("e", "leave one patient out"), ("c", "ridge")):
        shown = mmap("report", tmp_path / run, "--out", tmp_path / f"{run}.html")
        assert shown.returncode == 0, shown.stderr
        assert part in " ".join(Links((tmp_path / f"{run}.html").read_text("utf-8")).text)
    shown = mmap("report", tmp_path / "c", "--out", tmp_path / "x.html", "--genes", "FINE001")
    assert shown.returncode == 2
    assert "is a comparison, which has no maps" in shown.stderr


def test_names_are_never_read_as_html() -> None:
    text = page_of(
        HOSTILE, [Summary(HOSTILE, HOSTILE, (HOSTILE, "PCC"), ((HOSTILE, "0.1"),), (HOSTILE,))], None
    )
    page = Links(text)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert sum(HOSTILE in part for part in page.text) >= 5


def test_names_of_slides_and_genes_do_not_end_the_script(predictions: Path, tmp_path: Path) -> None:
    table = anndata.read_h5ad(predictions / "B1.h5ad")
    genes = list(table.var_names)
    table.var_names = [HOSTILE, *genes[1:]]
    table.obs_names = [HOSTILE, *table.obs_names[1:]]
    table.uns["mmap"]["slide"] = HOSTILE
    (tmp_path / "p").mkdir()
    table.write_h5ad(tmp_path / "p" / "x.h5ad")
    draw_page(tmp_path / "p", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "<script>alert" not in text
    assert "<img src=x" not in text


def test_a_page_that_has_no_room_for_all_genes_says_so(
    predictions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmap_st.report import run_page

    spots = sum(len(anndata.read_h5ad(file)) for file in predictions.glob("*.h5ad"))
    monkeypatch.setattr(run_page, "MOST_VALUES", spots * 3 * 4)
    draw_page(predictions, tmp_path / "p.html")
    text = " ".join(Links((tmp_path / "p.html").read_text("utf-8")).text)
    assert re.search(r"3 slides, 4 genes\. 6 more have no room on this page; name them with --genes", text)


def test_of_very_many_spots_every_second_is_shown(predictions: Path) -> None:
    table = anndata.read_h5ad(predictions / "B1.h5ad")
    whole, half = layers_of(table, 10_000, 0), layers_of(table, -(-len(table) // 2), 0)
    assert half.ids == whole.ids[::2]
    assert np.array_equal(half.predicted, whole.predicted[::2])


def rows_of(page: Path) -> dict[str, list[str]]:
    """The tables of a page, by the first cell of a row."""
    lines = re.findall(r"<tr><th[^>]*>([^<]*)</th>(.*?)</tr>", page.read_text("utf-8"))
    return {name: re.findall(r"<t[dh][^>]*>([^<]*)<", cells) for name, cells in lines}


def changed(source: Path, file: Path, change: Callable[[anndata.AnnData], object]) -> None:
    table = anndata.read_h5ad(source)
    other = change(table)
    table = other if isinstance(other, anndata.AnnData) else table
    file.parent.mkdir(exist_ok=True)
    table.write_h5ad(file)


@pytest.mark.parametrize("less", ["genes", "room", "spots"])
def test_scores_are_of_all_genes_and_spots_whichever_are_shown(
    less: str, predictions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmap_st.report import run_page

    genes = None
    if less == "genes":
        genes = [str(anndata.read_h5ad(predictions / "B1.h5ad").var_names[0])]
    else:
        monkeypatch.setattr(run_page, {"room": "MOST_VALUES", "spots": "_MOST_SPOTS"}[less], 24)
    draw_page(predictions, tmp_path / "p.html", genes)
    for slide in ("A1", "B1", "C1"):
        table = anndata.read_h5ad(predictions / f"{slide}.h5ad")
        scores = table.uns["mmap"]["scores"]
        assert rows_of(tmp_path / "p.html")[slide][:3] == [
            f"{len(table):,}", f"{scores['pcc']:.4f}", f"{scores['mse']:.4f}"
        ]  # fmt: skip
    said = "B1: maps show" in (tmp_path / "p.html").read_text("utf-8")
    assert said == (less == "spots")


def test_folds_of_different_panels_and_judgements(predictions: Path, tmp_path: Path) -> None:
    """Each gene is on the page, with an empty map where it was not predicted; no fold speaks for all."""
    folder = tmp_path / "p"

    def first(table: anndata.AnnData) -> anndata.AnnData:
        table.var["cv_pcc"], table.var["trusted"] = 0.2, True
        return table[:, :6].copy()

    def second(table: anndata.AnnData) -> anndata.AnnData:
        table.var["cv_pcc"], table.var["trusted"] = 0.4, False
        return table[:, 4:].copy()

    for slide, change in (("A1", first), ("B1", second)):
        changed(predictions / f"{slide}.h5ad", folder / f"{slide}.h5ad", change)
    found = run_page_slides(folder)
    genes = [str(gene) for gene in anndata.read_h5ad(predictions / "A1.h5ad").var_names]
    shown = found.slides[0].genes
    assert set(shown) == set(genes)
    absent = {slide.name: np.isnan(slide.predicted).all(axis=0) for slide in found.slides}
    assert {gene for gene, none in zip(shown, absent["A1"], strict=True) if none} == set(genes[6:])
    assert {gene for gene, none in zip(shown, absent["B1"], strict=True) if none} == set(genes[:4])
    of_gene = {
        gene: (cv, trusted)
        for gene, cv, trusted in zip(shown, found.columns["cv PCC"], found.columns["trusted"], strict=True)
    }
    assert of_gene[genes[0]] == (pytest.approx(0.2), "yes")
    assert of_gene[genes[5]] == (pytest.approx(0.3), "no")
    assert of_gene[genes[9]] == (pytest.approx(0.4), "no")

    draw_page(folder, tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text("utf-8")
    assert "8 of 10 genes are not on the panel of every slide" in text
    assert "slides were predicted by several heads" in text
    named = draw_page(folder, tmp_path / "named.html", [genes[0], genes[9]])
    assert named.written
    assert "2 of 2 genes are not on the panel of every slide: their maps are empty on the others" in (
        tmp_path / "named.html"
    ).read_text("utf-8")


def run_page_slides(folder: Path) -> PagedSlides:
    from mmap_st.report import run_page

    files = sorted(folder.glob("*.h5ad"))
    found = run_page._slides(files, None, run_page.RunFigures(), run_page.SlideList(), lambda text: None)
    assert found is not None
    return found


def test_two_predictions_of_one_name_are_told_apart(predictions: Path, tmp_path: Path) -> None:
    for name in ("B1", "copy of B1"):
        changed(predictions / "B1.h5ad", tmp_path / "p" / f"{name}.h5ad", lambda table: table)
    draw_page(tmp_path / "p", tmp_path / "p.html")
    assert {"B1", "B1 (copy of B1.h5ad)"} <= set(rows_of(tmp_path / "p.html"))


def without(layer: str) -> Callable[[anndata.AnnData], object]:
    def change(table: anndata.AnnData) -> None:
        table.layers.pop(layer, None)

    return change


def nothing_measured(table: anndata.AnnData) -> None:
    table.layers["measured"] = np.full_like(table.X, np.nan)


def a_gene_without_values(table: anndata.AnnData) -> None:
    table.X[:, 0] = np.nan
    table.layers["measured"][:, 0] = np.nan


def one_spot(table: anndata.AnnData) -> anndata.AnnData:
    return table[:1].copy()


def one_gene(table: anndata.AnnData) -> anndata.AnnData:
    return table[:, :1].copy()


def an_earlier_version(table: anndata.AnnData) -> None:
    del table.uns["spatial"]
    for key in ("spot_diameter_px", "domain", "image"):
        table.uns["mmap"].pop(key, None)


def one_name(table: anndata.AnnData) -> None:
    table.obs_names = ["a%20b"] * len(table)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    "change",
    [
        without("measured"), without("spread"), nothing_measured, a_gene_without_values, one_spot, one_gene,
        an_earlier_version,
        pytest.param(one_name, marks=pytest.mark.filterwarnings("ignore:Observation names")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("alone", [False, True])
def test_unusual_predictions_are_shown(
    change: Callable[[anndata.AnnData], object], alone: bool, predictions: Path, tmp_path: Path
) -> None:
    changed(predictions / "A1.h5ad", tmp_path / "p" / "50% A.h5ad", change)
    if not alone:
        changed(predictions / "B1.h5ad", tmp_path / "p" / "B1.h5ad", lambda table: table)
    drawn = draw_page(tmp_path / "p", tmp_path / "p.html")
    assert not drawn.failed
    for cells in rows_of(tmp_path / "p.html").values():
        assert not any("nan" in cell for cell in cells)


def test_a_damaged_prediction_is_named_on_the_page(predictions: Path, tmp_path: Path, mmap: Mmap) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    for name in ("A1", "B1"):
        (folder / f"{name}.h5ad").write_bytes((predictions / f"{name}.h5ad").read_bytes())
    (folder / "B1.h5ad").write_bytes(b"nothing")
    shown = mmap("report", folder, "--out", tmp_path / "p.html")
    assert shown.returncode == 1
    assert "slides that are not shown" in " ".join(Links((tmp_path / "p.html").read_text("utf-8")).text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--genes", "NOGENE"), "not on the panel"),
        (("--store", "{store}"), "--store adds figures"),
    ],
)
def test_what_no_page_is_made_for(
    words: tuple[str, ...], said: str, tiny: Tiny, tmp_path: Path, mmap: Mmap
) -> None:
    given = [word.format(store=tiny.store) for word in words]
    shown = mmap("report", tiny.run, "--out", tmp_path / "p.html", *given)
    assert shown.returncode == 2
    assert said in shown.stderr
    assert not (tmp_path / "p.html").exists()


def test_a_slide_that_was_not_measured_is_not_said_to_be(
    tiny: Tiny, predictions: Path, tmp_path: Path
) -> None:
    mm.predict(tiny.run, tiny.store, tmp_path / "p", slides="B1", progress=False)
    draw_page(tmp_path / "p", tmp_path / "p.html")
    draw_page(predictions, tmp_path / "m.html")
    without, measured = ((tmp_path / name).read_text("utf-8") for name in ("p.html", "m.html"))
    for text in ("PCC here", "correlation with measured values"):
        assert text not in without
        assert text in measured
