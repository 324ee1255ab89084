"""The page of results in a browser: genes are chosen, sorted and searched, and maps follow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import mmap_st as mm
from mmap_st.report import draw_page
from tests.conftest import Tiny

HOSTILE = "<img src=x onerror='window.attacked=1'>"
# Everything that Bokeh shows lies in shadow trees, which selectors do not enter by themselves.
FIND = """
const found = []
const look = (root) => { for (const one of root.querySelectorAll('*')) {
  if (one.matches(arguments[0])) found.push(one)
  if (one.shadowRoot) look(one.shadowRoot)
} }
look(document)
return found
"""


class Page:
    """A page that is open in a browser."""

    def __init__(self, browser: webdriver.Chrome, path: Path) -> None:
        self.browser = browser
        browser.get_log("browser")
        browser.get(path.as_uri())
        self.wait(self.ready)

    def ready(self) -> bool:
        """Whether maps are filled; what is said of them is said last."""
        said = "return (Bokeh.documents[0]?.get_model_by_name('words')?.text ?? '') !== ''"
        return bool(self.browser.execute_script(said) and self.words())

    def wait(self, what: Any) -> None:
        WebDriverWait(self.browser, 20).until(lambda _: what())

    def find(self, selector: str) -> list[Any]:
        return self.browser.execute_script(FIND, selector)

    def texts(self, selector: str) -> list[str]:
        """Of elements from the top of the page to its bottom, read in one go: they are drawn anew at any time."""
        script = FIND.replace(
            "return found",
            "const top = (e) => e.getBoundingClientRect().top;"
            "return found.sort((a, b) => top(a) - top(b)).map((e) => e.innerText)",
        )
        return list(self.browser.execute_script(script, selector))

    def words(self) -> str:
        return "".join(self.texts("[role=status]")[:1])

    def rows(self) -> list[list[str]]:
        return [text.split("\n") for text in self.texts(".slick-row")]

    def colours(self, name: str) -> tuple[float, float]:
        bounds = self.browser.execute_script(
            "const mapper = Bokeh.documents[0].get_model_by_name(arguments[0]).glyph.fill_color.transform;"
            "return [mapper.low, mapper.high]",
            f"spots_{name}",
        )
        return tuple(bounds)

    def values(self, name: str) -> np.ndarray:
        found = self.browser.execute_script(
            "const d = Bokeh.documents[0].get_model_by_name('spots_predicted').data_source.data[arguments[0]];"
            "return Array.from(d).map((v) => Number.isFinite(v) ? v : null)",
            name,
        )
        return np.array(found, np.float64)

    def label(self, field: Any) -> str:
        """What a screen reader calls a field."""
        return str(self.browser.execute_script("return arguments[0].labels[0]?.innerText.trim()", field))

    def errors(self) -> list[str]:
        """What went wrong on this page; a viewer that was open before may still have asked for tiles."""
        said = [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]
        return [text for text in said if not text.startswith("http://127.0.0.1:")]


@pytest.fixture(scope="module")
def predictions(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predictions")
    mm.predict(tiny.run, tiny.store, out, cohort=f"her2st:{tiny.her2st}", progress=False)
    return out


@pytest.fixture
def page(browser: webdriver.Chrome, predictions: Path, tmp_path: Path) -> Page:
    draw_page(predictions, tmp_path / "page.html")
    return Page(browser, tmp_path / "page.html")


def test_it_opens_without_an_error_and_shows_the_best_gene(page: Page, predictions: Path) -> None:
    first = page.rows()[0][0]
    assert page.words().startswith(f"{first} on A1; PCC ")
    table = anndata.read_h5ad(predictions / "A1.h5ad")
    assert np.allclose(page.values("predicted"), table[:, first].X.ravel(), atol=0.02)
    assert np.allclose(page.values("measured"), table[:, first].layers["measured"].ravel(), atol=0.02)
    assert np.allclose(page.values("difference"), page.values("predicted") - page.values("measured"))
    assert not page.errors()


def test_maps_lie_on_the_picture(page: Page) -> None:
    canvases = page.find("canvas")
    assert len([c for c in canvases if c.size["width"] > 200]) >= 4
    picture = page.browser.execute_script(
        "const p = Bokeh.documents[0].get_model_by_name('map_predicted').renderers[0].data_source.data;"
        "return [p.url[0].slice(0, 15), p.w[0], p.h[0]]"
    )
    assert picture[0] == "data:image/jpeg"
    xy = [page.values(axis) for axis in ("x", "y")]
    assert xy[0].max() < picture[1]
    assert xy[1].max() < picture[2]


def test_a_click_on_a_gene_shows_it(page: Page) -> None:
    row = sorted(page.find(".slick-row"), key=lambda row: row.location["y"])[3]
    gene = row.text.split("\n")[0]
    row.find_element(By.CSS_SELECTOR, ".slick-cell").click()
    page.wait(lambda: page.words().startswith(f"{gene} on A1"))
    assert not page.errors()


def test_a_click_on_a_head_sorts(page: Page) -> None:
    (head,) = [head for head in page.find(".slick-header-column") if head.text == "gene"]
    head.click()
    page.wait(lambda: [row[0] for row in page.rows()] == sorted(row[0] for row in page.rows()))
    assert not page.errors()


def test_genes_are_searched_and_chosen_by_the_keyboard(page: Page) -> None:
    genes = [row[0] for row in page.rows()]
    by_label = {page.label(field): field for field in page.find("input[type=text]")}
    search = by_label["search genes"]
    search.send_keys(genes[5][-3:])
    page.wait(lambda: [row[0] for row in page.rows()] == [g for g in genes if genes[5][-3:] in g])
    choose = by_label["gene"]
    choose.send_keys(*[Keys.BACKSPACE] * len(genes[0]), genes[5], Keys.ENTER)
    page.wait(lambda: page.words().startswith(genes[5]))
    assert not page.errors()


def test_another_slide_and_another_scale(page: Page) -> None:
    (select,) = page.find("select")
    select.send_keys("B1")
    page.wait(lambda: " on B1; " in page.words())
    together = page.colours("measured")
    assert together == page.colours("predicted")
    next(box for box in page.find("input[type=checkbox]")).click()
    page.wait(lambda: page.colours("measured") != page.colours("predicted"))
    low, high = page.colours("difference")
    assert low == -high
    assert not page.errors()


def test_a_gene_that_a_slide_lacks_is_not_predicted_there(
    browser: webdriver.Chrome, predictions: Path, tmp_path: Path
) -> None:
    """As where folds chose their own panels."""
    (tmp_path / "p").mkdir()
    for slide, genes in (("A1", slice(0, 6)), ("B1", slice(4, None))):
        table = anndata.read_h5ad(predictions / f"{slide}.h5ad")
        table[:, genes].copy().write_h5ad(tmp_path / "p" / f"{slide}.h5ad")
    gene = str(table.var_names[-1])
    draw_page(tmp_path / "p", tmp_path / "page.html")
    page = Page(browser, tmp_path / "page.html")
    browser.execute_script("Bokeh.documents[0].get_model_by_name('gene').value = arguments[0]", gene)
    page.wait(lambda: page.words().startswith(f"{gene} on A1; not predicted on this slide; "))
    assert np.isnan(page.values("predicted")).all()
    (select,) = page.find("select")
    select.send_keys("B1")
    page.wait(lambda: page.words().startswith(f"{gene} on B1; PCC "))
    assert not page.errors()


def test_names_are_text(browser: webdriver.Chrome, predictions: Path, tmp_path: Path) -> None:
    table = anndata.read_h5ad(predictions / "B1.h5ad")
    table.var_names = [HOSTILE, *list(table.var_names)[1:]]
    table.obs_names = [HOSTILE, *list(table.obs_names)[1:]]
    table.uns["mmap"]["slide"] = HOSTILE
    (tmp_path / "p").mkdir()
    table.write_h5ad(tmp_path / "p" / "x.h5ad")
    draw_page(tmp_path / "p", tmp_path / "page.html", [HOSTILE])
    page = Page(browser, tmp_path / "page.html")
    assert page.words().startswith(f"{HOSTILE} on {HOSTILE}")
    assert page.rows()[0][0] == HOSTILE
    (plot,) = [c for c in page.find("canvas") if c.size["width"] > 200][:1]
    webdriver.ActionChains(browser).move_to_element(plot).perform()  # its tips name the spot
    assert not browser.execute_script("return window.attacked")


def test_it_opens_from_anywhere(page: Page, tmp_path: Path) -> None:
    """As an attachment is: alone, in another folder."""
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "page.html", tmp_path / "elsewhere" / "attached.html")
    again = Page(page.browser, tmp_path / "elsewhere" / "attached.html")
    assert not again.errors()
