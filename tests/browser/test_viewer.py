"""The viewer in a browser: slides at any zoom, genes and layers that are chosen, spots that say what they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import mmap_st as mm
from tests.browser.test_page import HOSTILE
from tests.conftest import Tiny


def write_prediction(path: Path, place: np.ndarray, pitch: float, image: Path | None = None) -> np.ndarray:
    """A prediction of waves, of 20 genes; its values."""
    values = np.sin(place @ np.linspace(0.01, 0.09, 40).reshape(2, 20)).astype(np.float32)
    names = pd.Index([f"s{i}" for i in range(len(place))])
    table = anndata.AnnData(
        values, pd.DataFrame(index=names), pd.DataFrame(index=[f"G{i}" for i in range(20)])
    )
    table.obsm["spatial"] = place * pitch + 50.0
    table.uns["mmap"] = {"slide": "large", "units": "made", "source_mpp": 1.0, "spot_diameter_px": 55.0}
    if image is not None:
        table.uns["mmap"]["image"] = str(image)
    table.write_h5ad(path)
    return values


class View:
    """A viewer that is open in a browser."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser, self.url = browser, url
        browser.get_log("browser")
        browser.get(url)
        self.wait(lambda: " on " in self.words())

    def wait(self, what: Callable[[], object], seconds: float = 20) -> None:
        WebDriverWait(self.browser, seconds, poll_frequency=0.05).until(lambda _: what())

    def run(self, code: str, *arguments: object) -> Any:
        return self.browser.execute_script(f"const {{state, model}} = window.viewer; {code}", *arguments)

    def is_undistorted(self) -> bool:
        """Whether a micrometre is as long upwards as across: Bokeh sees to that after it has laid out a map."""
        x0, x1, y0, y1, width, height = self.run(
            "const [a, u, f] = [model('across'), model('up'), state.view.frame.bbox];"
            " return [a.start, a.end, u.start, u.end, f.width, f.height]"
        )
        return bool((x1 - x0) / width == pytest.approx((y1 - y0) / height, rel=1e-3))

    def words(self) -> str:
        return str(self.browser.execute_script("return document.getElementById('words').textContent"))

    def choose(self, name: str, value: object, event: str = "change") -> None:
        self.run(
            "const it = document.getElementById(arguments[0]); it.value = arguments[1];"
            " it.dispatchEvent(new Event(arguments[2]))",
            name, value, event,
        )  # fmt: skip

    def values(self) -> np.ndarray:
        found = self.run(
            "return Array.from(model('spots').data.value).map((v) => Number.isFinite(v) ? v : null)"
        )
        return np.array(found, np.float64)

    def tiles(self) -> list[list[int]]:
        """Zoom, column and row from the bottom of those that are there."""
        return list(
            self.run(
                "return [...model('tissue').tile_source.tiles.values()].filter((t) => t.loaded)"
                ".map(({tile_coords: [x, y, z]}) => [z, x, y])"
            )
        )

    def zoom(self) -> float:
        """Units of the map to a pixel of the screen."""
        return float(
            self.run("return (model('across').end - model('across').start) / state.view.frame.bbox.width")
        )

    def press(self, *keys: str) -> None:
        self.browser.find_element(By.ID, "map").send_keys(*keys)

    def errors(self) -> list[str]:
        """What went wrong on this page: tiles that one before still fetched when it was closed are not its own."""
        said = [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]
        return [
            text for text in said if text.startswith(self.url) or not text.startswith("http://127.0.0.1:")
        ]

    def asked(self) -> list[str]:
        """All that was fetched."""
        return list(
            self.browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
        )


@pytest.fixture(scope="module")
def predictions(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predictions")
    mm.predict(tiny.run, tiny.store, out, cohort=f"her2st:{tiny.her2st}", progress=False)
    return out


@pytest.fixture(scope="module")
def url(predictions: Path) -> Iterator[str]:
    with mm.view(predictions, open_browser=False) as viewer:
        yield viewer.url


@pytest.fixture
def view(browser: webdriver.Chrome, url: str) -> Iterator[View]:
    shown = View(browser, url)
    yield shown
    assert not shown.errors()
    assert all(name.startswith((url, "data:", "blob:")) for name in shown.asked()), shown.asked()


def test_it_shows_the_slide_and_a_gene(view: View, predictions: Path) -> None:
    gene = view.run("return document.getElementById('gene').value")
    assert view.words().startswith(f"{gene}, predicted, on A1; ")
    table = anndata.read_h5ad(predictions / "A1.h5ad")
    assert np.allclose(view.values(), table[:, gene].X.ravel())
    view.wait(view.tiles)
    view.wait(view.is_undistorted)
    xy = np.array([view.run("return Array.from(model('spots').data[arguments[0]])", axis) for axis in "xy"])
    ends = view.run("const [a, u] = [model('across'), model('up')]; return [a.start, a.end, u.start, u.end]")
    assert ends[0] < xy[0].min() < xy[0].max() < ends[1]
    assert ends[2] < xy[1].min() < xy[1].max() < ends[3]


def test_spots_lie_where_the_slide_has_them(view: View, predictions: Path) -> None:
    """A screenshot without spots, beside the slide's own pixels."""
    import io

    view.choose("opacity", 0, "input")
    view.wait(view.tiles)
    view.run("model('scale_bar').visible = false; model('overview').visible = false")
    view.wait(lambda: view.run("return state.view.root?.has_finished?.() ?? state.view.has_finished()"))
    time.sleep(0.5)
    place = view.run(
        "const f = state.view.frame.bbox, at = document.querySelector('#map').getBoundingClientRect();"
        "const host = state.view.el.getBoundingClientRect();"
        "return [host.left + f.left, host.top + f.top, f.width, f.height,"
        " model('across').start, model('up').end, (model('across').end - model('across').start) / f.width]"
    )
    left, top, width, height, x0, y1, unit = place
    shot = Image.open(io.BytesIO(view.browser.get_screenshot_as_png())).convert("RGB")
    table = anndata.read_h5ad(predictions / "A1.h5ad")
    mpp, slide = float(table.uns["mmap"]["source_mpp"]), Image.open(table.uns["mmap"]["image"])
    box = (x0 / mpp, -y1 / mpp, (x0 + width * unit) / mpp, (-y1 + height * unit) / mpp)
    inside = (max(box[0], 0), max(box[1], 0), min(box[2], slide.width), min(box[3], slide.height))
    part = tuple(
        round(edge + (end - start) * mpp / unit)
        for edge, end, start in zip((left, top) * 2, inside, (box[0], box[1]) * 2, strict=True)
    )
    seen = np.asarray(shot.crop(part), float).mean(axis=2)
    wanted = slide.resize((part[2] - part[0], part[3] - part[1]), Image.Resampling.BOX, box=inside)
    truth = np.asarray(wanted.convert("RGB"), float).mean(axis=2)
    inner = (slice(4, -4), slice(4, -4))
    assert np.corrcoef(seen[inner].ravel(), truth[inner].ravel())[0, 1] > 0.9
    assert np.corrcoef(seen[inner].ravel(), truth[::-1, ::-1][inner].ravel())[0, 1] < 0.7


def test_zooming_brings_sharper_tiles_and_reset_brings_the_slide_back(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    Image.effect_noise((4000, 4000), 60).convert("RGB").save(tmp_path / "large.jpg")
    write_prediction(
        tmp_path / "large.h5ad", np.array([[0, 0], [1, 1], [0, 1]]), 3900.0, tmp_path / "large.jpg"
    )
    with mm.view(tmp_path, open_browser=False) as viewer:
        view = View(browser, viewer.url)
        view.wait(view.tiles)
        # Tiles of the next level are fetched ahead, so that the finest may be there before they are looked at.
        before, coarse = view.zoom(), min(z for z, _, _ in view.tiles())
        finest = view.run("return model('tissue').tile_source.max_zoom")
        assert coarse < finest == 3
        view.press(*"+++++")
        view.wait(lambda: finest in {z for z, _, _ in view.tiles()})
        assert view.zoom() < before / 5
        view.press("0")
        assert view.zoom() == pytest.approx(before)
        view.press(Keys.ARROW_RIGHT, "-")
        assert view.zoom() > before
        view.browser.find_element(By.ID, "reset").click()
        assert view.zoom() == pytest.approx(before)
        time.sleep(0.7)  # tiles that are fetched ahead are of the slide too
        assert not view.errors()


def test_a_wheel_zooms(view: View) -> None:
    before = view.zoom()
    element = view.browser.find_element(By.ID, "map")
    origin = ScrollOrigin.from_element(element)
    webdriver.ActionChains(view.browser).scroll_from_origin(origin, 0, -400).perform()
    view.wait(lambda: view.zoom() < before)


def test_a_gene_is_searched_by_keyboard(view: View, predictions: Path) -> None:
    table = anndata.read_h5ad(predictions / "A1.h5ad")
    gene = str(table.var_names[7])
    field = view.browser.find_element(By.ID, "gene")
    field.clear()
    field.send_keys(gene[:-1].lower())
    offered = view.run("return [...document.getElementById('genes').options].map((o) => o.value)")
    assert gene in offered
    assert all(gene[:-1].lower() in one.lower() for one in offered)
    field.send_keys(gene[-1], Keys.ENTER)
    view.wait(lambda: view.words().startswith(f"{gene}, predicted"))
    assert np.allclose(view.values(), table[:, gene].X.ravel())
    field.clear()
    field.send_keys("NOGENE", Keys.ENTER)
    view.wait(lambda: "there is no gene NOGENE on this slide" in view.words())


@pytest.mark.parametrize("layer", ["measured", "difference", "spread"])
def test_layers(layer: str, view: View, predictions: Path) -> None:
    gene = view.run("return document.getElementById('gene').value")
    view.choose("layer", layer)
    view.wait(lambda: view.words().startswith(f"{gene}, ") and f"{gene}, predicted, " not in view.words())
    of = anndata.read_h5ad(predictions / "A1.h5ad")[:, gene]
    wanted = of.X - of.layers["measured"] if layer == "difference" else of.layers[layer]
    assert np.allclose(view.values(), np.asarray(wanted).ravel(), equal_nan=True)
    low, high, palette = view.run("const c = model('colours'); return [c.low, c.high, c.palette.length]")
    assert low < high
    assert palette > 200
    if layer == "difference":
        assert low == -high


def test_measured_and_predicted_have_one_scale_unless_told(view: View) -> None:
    def ends() -> list[float]:
        return list(view.run("return [model('colours').low, model('colours').high]"))

    together = ends()
    view.choose("layer", "measured")
    view.wait(lambda: ", measured, on" in view.words())
    assert ends() == together
    view.browser.find_element(By.ID, "one_scale").click()
    view.wait(lambda: ends() != together)


def test_size_and_opacity_of_spots(view: View) -> None:
    width = view.run("return state.about.diameter")
    view.choose("size", 0.5, "input")
    assert view.run("return model('drawn').glyph.radius.value") == pytest.approx(width / 4)
    assert view.run("return document.getElementById('width').textContent").endswith("µm")
    view.choose("opacity", 0.25, "input")
    assert view.run("return model('drawn').glyph.fill_alpha.value") == 0.25


def test_a_spot_says_its_name_and_value(view: View, predictions: Path) -> None:
    table = anndata.read_h5ad(predictions / "A1.h5ad")
    view.wait(lambda: view.run("return model('spots').data.id[0]"))
    x, y = view.run(
        "const {x, y} = model('spots').data, f = state.view.frame;"
        "const host = state.view.el.getBoundingClientRect();"
        "return [host.left + f.x_scale.compute(x[5]), host.top + f.y_scale.compute(y[5])]"
    )
    actions = ActionBuilder(view.browser)
    actions.pointer_action.move_to_location(round(x), round(y)).pause(0.2).move_by(1, 1)
    actions.perform()
    script = (
        "const found = []; const look = (r) => { for (const e of r.querySelectorAll('*')) {"
        " if (e.shadowRoot) look(e.shadowRoot); if (e.matches('.bk-tooltip-row-value')) found.push(e.innerText) } };"
        "look(document); return found"
    )
    view.wait(lambda: view.browser.execute_script(script))
    spot, value = view.browser.execute_script(script)[:2]
    assert spot == table.obs_names[5]
    assert float(value.replace("−", "-")) == pytest.approx(view.values()[5], abs=0.006)


def test_another_slide(view: View, predictions: Path) -> None:
    view.choose("slide", "1")
    view.wait(lambda: " on B1; " in view.words())
    gene = view.run("return document.getElementById('gene').value")
    assert np.allclose(view.values(), anndata.read_h5ad(predictions / "B1.h5ad")[:, gene].X.ravel())
    view.wait(view.tiles)
    assert view.run("return document.querySelectorAll('#map canvas').length") == 0  # in shadow trees
    assert view.run("return document.getElementById('map').children.length") == 1


def test_every_control_has_a_name_and_what_is_shown_is_said(view: View) -> None:
    unnamed = view.run(
        "return [...document.querySelectorAll('input, select, button')]"
        ".filter((e) => !(e.labels?.[0]?.textContent ?? e.textContent).trim()).map((e) => e.id)"
    )
    assert unnamed == []
    assert view.run("return document.getElementById('map').getAttribute('aria-label')").startswith("map of")
    assert view.run("return document.getElementById('words').getAttribute('role')") == "status"


def test_it_is_dark_where_the_browser_is(view: View) -> None:
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    view.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
    try:
        view.wait(lambda: view.run("return state.view.model.border_fill_color") == "#1b1b1e")
    finally:
        view.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    view.wait(lambda: view.run("return state.view.model.border_fill_color") == "#ffffff")


def test_names_are_text(browser: webdriver.Chrome, predictions: Path, tmp_path: Path) -> None:
    table = anndata.read_h5ad(predictions / "B1.h5ad")
    table.var_names = [HOSTILE, *list(table.var_names)[1:]]
    table.obs_names = [HOSTILE, *list(table.obs_names)[1:]]
    table.uns["mmap"]["slide"] = table.uns["mmap"]["units"] = HOSTILE
    table.write_h5ad(tmp_path / "x.h5ad")
    with mm.view(tmp_path, genes=[HOSTILE], open_browser=False) as viewer:
        view = View(browser, viewer.url)
        assert view.words().startswith(f"{HOSTILE}, predicted, on {HOSTILE}; {HOSTILE}")
        time.sleep(0.3)
        assert not browser.execute_script("return window.attacked")
        assert not view.errors()


def test_a_store_shows_prototypes_on_white(browser: webdriver.Chrome, tiny: Tiny) -> None:
    mm.pl.prototypes(tiny.store, "A1")
    with mm.view(tiny.store, slide="A1", open_browser=False) as viewer:
        view = View(browser, viewer.url)
        assert "prototypes of efficientnet-lite0" in view.words()
        assert "spots lie on white" in view.run("return document.getElementById('notes').textContent")
        assert view.run("return document.getElementById('of_gene').hidden")
        view.wait(view.is_undistorted)
        assert not view.errors()


def test_fifty_thousand_spots(browser: webdriver.Chrome, tmp_path: Path) -> None:
    place = np.stack(np.meshgrid(np.arange(224), np.arange(224)), axis=-1).reshape(-1, 2)[:50_000]
    values = write_prediction(tmp_path / "large.h5ad", place, 100.0)
    with mm.view(tmp_path, open_browser=False) as viewer:
        view = View(browser, viewer.url)
        assert "50,000 spots" in view.words()
        view.choose("gene", "G7")
        view.wait(lambda: view.words().startswith("G7, "))
        found = view.run("const v = model('spots').data.value; return [v.length, v[0], v[49999]]")
        assert found == [50_000, pytest.approx(values[0, 7]), pytest.approx(values[-1, 7])]
        assert len([name for name in view.asked() if "/values/" in name]) == 2  # a gene at a time
        view.press("+", Keys.ARROW_LEFT)
        assert not view.errors()
