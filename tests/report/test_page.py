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
from mmap_st.report.page.page import page_of
from mmap_st.report.page.slide_layers import LEVELS, SPREAD_LEVELS, pack_layer, unpack_layer
from mmap_st.report.run_page import layers_of
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
    whole, half = layers_of(table, 10_000), layers_of(table, -(-len(table) // 2))
    assert half.ids == whole.ids[::2]
    assert np.array_equal(half.predicted, whole.predicted[::2])


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
