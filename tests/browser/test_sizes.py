"""Pages of a real section, and of 5,000 spots by 1,000 genes, in a browser."""

from __future__ import annotations

import base64
import importlib.util
import io
import re
from pathlib import Path
from types import ModuleType

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from selenium import webdriver

import mmap_st as mm
from mmap_st.data.readers import read_counts, read_spots
from mmap_st.report import draw_page
from tests.browser.test_page import Page
from tests.browser.test_viewer import View

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "page.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """What makes the predictions that pages are measured on."""
    spec = importlib.util.spec_from_file_location("page_benchmark", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def real(benchmark: ModuleType, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a made prediction of the real section C2."""
    row = mm.read_cohort(f"her2st:{shared / 'data' / 'her2st'}")["C2"]
    counts, spots = read_counts(row), read_spots(row)
    genes = [gene for gene in ("FASN", "ERBB2", "COX6C", "IGKC") if gene in counts.genes]
    columns = [counts.genes.index(gene) for gene in genes]
    measured = np.log1p(np.asarray(counts.matrix[:, columns].todense(), np.float32))
    rng = np.random.default_rng(0)
    table = anndata.AnnData(
        (measured + rng.normal(0, 0.3, measured.shape)).astype(np.float32),
        obs=pd.DataFrame(index=list(counts.ids)),
        var=pd.DataFrame(index=genes),
        obsm={"spatial": spots.xy, "attention": benchmark.attention_of(spots.xy, 9000, rng, 40)},
        layers={"measured": measured},
        uns={"mmap": {"slide": "C2", "units": "log1p", "encoder": "made", "image": str(row.image)}},
    )
    folder = tmp_path_factory.mktemp("real")
    table.write_h5ad(folder / "C2.h5ad")
    return folder


def test_a_real_section_lies_on_its_tissue(browser: webdriver.Chrome, real: Path, tmp_path: Path) -> None:
    draw_page(real, tmp_path / "page.html")
    page = Page(browser, tmp_path / "page.html")
    picture = browser.execute_script(
        "const p = Bokeh.documents[0].get_model_by_name('map_predicted').renderers[0].data_source.data;"
        "return [p.url[0], p.w[0]]"
    )
    drawn = Image.open(io.BytesIO(base64.b64decode(picture[0].split(",")[1]))).convert("L")
    scale = drawn.width / picture[1]
    x, y = (np.asarray(page.values(axis)) * scale for axis in ("x", "y"))
    at_spots = np.asarray(drawn)[y.astype(int), x.astype(int)]
    assert at_spots.mean() < np.asarray(drawn).mean() - 30  # tissue is darker than glass
    page.wait(lambda: len(page.find("figure img")) == 12)
    assert not page.errors()


def test_a_real_section_in_the_viewer(browser: webdriver.Chrome, real: Path) -> None:
    table = anndata.read_h5ad(real / "C2.h5ad")
    with mm.view(real, open_browser=False) as viewer:
        view = View(browser, viewer.url)
        view.choose("gene", "ERBB2")
        view.wait(lambda: view.words().startswith("ERBB2, predicted, on C2; "))
        assert np.allclose(view.values(), table[:, "ERBB2"].X.ravel())
        view.wait(view.tiles)
        assert not view.errors()


def test_five_thousand_spots_by_a_thousand_genes(
    browser: webdriver.Chrome, benchmark: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "p").mkdir()
    benchmark.write_prediction(tmp_path / "p" / "made.h5ad", 5000, 1000)
    (path,) = draw_page(tmp_path / "p", tmp_path / "page.html").written
    assert path.stat().st_size < 15e6
    assert re.search("1 slide, 1,?000 genes", path.read_text("utf-8"))
    page = Page(browser, path)
    assert len(page.values("predicted")) == 5000
    browser.execute_script("Bokeh.documents[0].get_model_by_name('gene').value = 'GENE999'")
    page.wait(lambda: page.words().startswith("GENE999 on made"))
    assert not page.errors()
