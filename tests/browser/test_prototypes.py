"""Prototypes in a browser: a spot is chosen, and what it attends to is shown."""

from __future__ import annotations

import contextlib
from pathlib import Path

import anndata
import numpy as np
import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.support.ui import WebDriverWait

import mmap_st as mm
from mmap_st.report import draw_page
from mmap_st.workflows import HeadRun
from tests.browser.test_page import FIND, HOSTILE, Page
from tests.conftest import Tiny


@pytest.fixture(scope="module")
def predictions(tiny: Tiny, attending: HeadRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    mm.predict(attending, tiny.store, folder / "p", cohort=f"her2st:{tiny.her2st}", progress=False)
    return folder / "p"


class Prototypes(Page):
    """The part of a page about prototypes."""

    def said(self) -> str:
        return "".join(text for text in self.texts("[role=status]") if "attends" in text)

    def data(self, column: str) -> list[object]:
        return list(
            self.browser.execute_script(
                "const d = Bokeh.documents[0].get_model_by_name('spots_attention').data_source.data;"
                "return Array.from(d[arguments[0]])",
                column,
            )
        )

    def click_on(self, spot: int) -> None:
        """Click on a spot where it is drawn."""
        x, y, canvas = self.browser.execute_script(
            FIND.replace("return found", "")
            + """
            const view = Bokeh.index.find((v) => v.model.name === "prototypes")
            const plot = [...Bokeh.documents[0]._all_models.values()].find((m) => m.name === "map_prototypes")
            const find = (v) => v.model === plot ? v : (v.child_views ?? []).map(find).find((f) => f)
            const shown = [...Bokeh.index.roots].map(find).find((f) => f)
            const data = plot.renderers[1].data_source.data
            const at = [shown.frame.x_scale.compute(data.x[arguments[1]]), shown.frame.y_scale.compute(data.y[arguments[1]])]
            return [...at, shown.el]
            """.replace('const view = Bokeh.index.find((v) => v.model.name === "prototypes")\n', ""),
            "*",
            spot,
        )
        size = canvas.size
        webdriver.ActionChains(self.browser).move_to_element_with_offset(
            canvas, x - size["width"] / 2, y - size["height"] / 2
        ).click().perform()

    def click_until(self, spot: int, said: str) -> None:
        """Click until something is said: a click that a busy machine stretches to 0.3 s is a long press to Bokeh."""
        for _ in range(5):
            self.click_on(spot)
            with contextlib.suppress(TimeoutException):
                WebDriverWait(self.browser, 4).until(lambda _: said in self.said())
                return
        pytest.fail(f"five clicks, and not yet said: {said}")


@pytest.fixture
def page(browser: webdriver.Chrome, predictions: Path, tmp_path: Path) -> Prototypes:
    draw_page(predictions, tmp_path / "page.html")
    page = Prototypes(browser, tmp_path / "page.html")
    page.wait(page.said)
    return page


def test_it_shows_what_a_spot_attends_to(page: Prototypes, predictions: Path) -> None:
    attention = anndata.read_h5ad(predictions / "A1.h5ad").obsm["attention"].astype(np.float32)
    spots = [str(spot) for spot in page.data("id")]
    chosen = spots.index(page.said().split("the spot ")[1].split(" ")[0])
    shares = attention[chosen, attention.argmax(axis=1)]
    assert np.allclose(np.array(page.data("attention"), float), 100 * shares, atol=1.0)
    pictures = page.find("figure img")
    assert 0 < len(pictures) <= 12
    assert all(
        page.browser.execute_script("return arguments[0].naturalWidth", one) == 112 for one in pictures
    )
    assert all("prototype" in one.get_attribute("alt") for one in pictures)
    assert not page.errors()


def test_a_click_chooses_a_spot(page: Prototypes) -> None:
    spots = [str(spot) for spot in page.data("id")]
    for number in (0, len(spots) // 2):
        page.click_until(number, f"the spot {spots[number]} attends")
    assert not page.errors()


def test_a_spot_is_chosen_by_its_name_and_slides_change(page: Prototypes) -> None:
    spots = [str(spot) for spot in page.data("id")]
    page.browser.execute_script("Bokeh.documents[0].get_model_by_name('spot').value = arguments[0]", spots[3])
    page.wait(lambda: f"A1: the spot {spots[3]} attends" in page.said())
    (select,) = page.find("select")
    select.send_keys("B1")
    page.wait(lambda: page.said().startswith("B1: the spot "))
    assert not page.errors()


def test_names_are_text(browser: webdriver.Chrome, predictions: Path, tmp_path: Path) -> None:
    table = anndata.read_h5ad(predictions / "B1.h5ad")
    table.var_names = [f"{HOSTILE}{number}" for number in range(table.n_vars)]
    table.obs_names = [f"{HOSTILE}{number}" for number in range(table.n_obs)]
    table.uns["mmap"]["slide"] = HOSTILE
    (tmp_path / "p").mkdir()
    table.write_h5ad(tmp_path / "p" / "x.h5ad")
    draw_page(tmp_path / "p", tmp_path / "page.html")
    page = Prototypes(browser, tmp_path / "page.html")
    page.wait(page.said)
    assert HOSTILE in page.said()
    assert HOSTILE in "".join(page.texts("figcaption"))
    assert not browser.execute_script("return window.attacked")


def test_a_slide_of_a_head_without_prototypes_says_so(
    browser: webdriver.Chrome, predictions: Path, tiny: Tiny, tmp_path: Path
) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "A1.h5ad").write_bytes((predictions / "A1.h5ad").read_bytes())
    (tmp_path / "p" / "B1.h5ad").write_bytes((tiny.run / "predictions" / "B1.h5ad").read_bytes())
    draw_page(tmp_path / "p", tmp_path / "page.html")
    page = Prototypes(browser, tmp_path / "page.html")
    page.wait(page.said)
    (select,) = page.find("select")
    select.send_keys("B1")
    page.wait(lambda: "B1 was predicted by a head without prototypes" in page.texts("[role=status]"))
    assert page.find("figure") == []
    assert not page.errors()
