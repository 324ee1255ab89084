"""Figures as a paper needs them: one scale, a bar in a free corner, no dead space, formats that journals take."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from PIL import Image

import mmap_st as mm
from mmap_st.data import Thumbnail
from mmap_st.errors import RequestError
from mmap_st.report.figure import corners, new_figure, relative_height, scale_bar
from mmap_st.report.maps import SlideMap, expression_map
from tests.conftest import Tiny

Mmap = Callable[..., "subprocess.CompletedProcess[str]"]


def slide_of(side: int = 6, *, measured: bool = True, spread: bool = True) -> SlideMap:
    rng = np.random.default_rng(0)
    place = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2) * 100.0 + 300
    values = rng.normal(size=(2, len(place), 1)).astype(np.float32)
    picture = Thumbnail(np.full((60, 80, 3), 220, np.uint8), 0.05)
    return SlideMap(
        "S", place, ("G",), values[0], values[1] * 3 if measured else None, picture, 0.5, "units",
        spread=np.abs(values[0]) if spread else None,
    )  # fmt: skip


def limits(figure: Figure) -> list[tuple[float, float]]:
    """What the colours of each map end at, from top to bottom."""
    maps = [axes for axes in figure.axes if any(isinstance(c, EllipseCollection) for c in axes.collections)]
    return [axes.collections[0].get_clim() for axes in maps]


def test_measured_and_predicted_have_one_scale() -> None:
    slide = slide_of()
    assert slide.measured is not None
    both = np.percentile(np.concatenate([slide.measured, slide.predicted]), [1, 99])
    shared = limits(expression_map(slide, ["G"]))
    assert np.allclose(shared, [both, both])
    own = limits(expression_map(slide, ["G"], scale="own"))
    assert np.allclose(own, [np.percentile(of, [1, 99]) for of in (slide.measured, slide.predicted)])


def test_the_title_says_which_scale() -> None:
    for slide, scale, said in (
        (slide_of(), "shared", "one scale for measured and predicted"),
        (slide_of(), "own", "each map's scale"),
        (slide_of(measured=False), "shared", "each map's scale"),
    ):
        assert said in expression_map(slide, ["G"], scale=scale).get_suptitle().replace("\n", " ")


@pytest.mark.parametrize(("measured", "rows"), [(True, 3), (False, 2)])
def test_spreads_are_a_row(measured: bool, rows: int) -> None:
    slide = slide_of(measured=measured)
    figure = expression_map(slide, ["G"], spread=True)
    assert len(limits(figure)) == rows
    assert slide.spread is not None
    assert np.allclose(limits(figure)[-1], np.percentile(slide.spread, [1, 99]))
    assert (
        len(limits(expression_map(slide_of(measured=measured, spread=False), ["G"], spread=True))) == rows - 1
    )


@given(
    xy=hnp.arrays(np.float64, st.tuples(st.integers(2, 20), st.just(2)), elements=st.floats(0, 1000)),
    picture=st.booleans(),
)
def test_all_spots_are_shown_and_of_the_picture_no_more_than_there_is(xy: np.ndarray, picture: bool) -> None:
    background = Thumbnail(np.zeros((50, 100, 3), np.uint8), 0.1) if picture else None
    low, high = corners(xy, background)
    assert (low <= xy.min(axis=0)).all()
    assert (high >= xy.max(axis=0)).all()
    assert 0.5 <= relative_height(xy, background) <= 2.0 or not np.ptp(xy)
    if picture and (xy > 200).all() and (xy < (800, 300)).all():
        assert (low >= 0).all()
        assert (high <= (1000, 500)).all()


@pytest.mark.parametrize("corner", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_the_scale_bar_is_in_the_free_corner(corner: tuple[int, int]) -> None:
    x, y = np.meshgrid(np.linspace(0, 1, 30), np.linspace(0, 1, 30))
    free = (np.abs(x - corner[0]) < 0.5) & (np.abs(y - corner[1]) < 0.4)
    xy = np.column_stack([x[~free], y[~free]]) * 4000
    axes = new_figure(3, 3).subplots()
    axes.set_xlim(0, 4000)
    axes.set_ylim(4000, 0)  # y points down
    scale_bar(axes, 1.0, xy)
    (bar,) = axes.lines
    at = float(np.mean(bar.get_xdata())), 1 - float(np.mean(bar.get_ydata()))
    assert (at[0] > 0.5, at[1] > 0.5) == (corner[0] == 1, corner[1] == 1)
    assert np.ptp(bar.get_xdata()) == pytest.approx(1000 / 4000)


def test_formats(tiny: Tiny, tmp_path: Path, mmap: Mmap) -> None:
    out = tmp_path / "figures"
    gene = mm.load_head(tiny.run).panel[0]
    words = ("--format", "png,SVG,pdf", "--genes", gene, "--spread", "--scale", "own")
    shown = mmap("report", tiny.run, "--out", out, *words)
    assert shown.returncode == 0, shown.stderr
    files = {path.suffix: path for path in out.glob("B1_maps.*")}
    assert set(files) == {".png", ".svg", ".pdf"}
    assert Image.open(files[".png"]).format == "PNG"
    assert f">{gene}<" in files[".svg"].read_text("utf-8")  # text is text
    assert files[".pdf"].read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--format", "gif"), "give png, svg or pdf, or several"),
        (("--scale", "log"), "give shared or own"),
        (("--spread", "--out", "page.html"), "which a page does not hold"),
    ],
)
def test_what_cannot_be_drawn(
    words: tuple[str, ...], said: str, tiny: Tiny, tmp_path: Path, mmap: Mmap
) -> None:
    out = () if "--out" in words else ("--out", tmp_path / "r")
    shown = mmap("report", tiny.run, *words, *out)
    assert shown.returncode == 2
    assert said in shown.stderr
    assert not (tmp_path / "r").exists()


def test_in_a_notebook(tiny: Tiny) -> None:
    adata = mm.load_head(tiny.run).predict(tiny.store, "B1", cohort=f"her2st:{tiny.her2st}", progress=False)
    figure = mm.pl.genes(adata, number=1, spread=True)
    assert len(limits(figure)) == 3
    with pytest.raises(RequestError, match="give shared or own"):
        mm.pl.genes(adata, number=1, scale="none")


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("width_um", [1000.0, 2400.0, 9000.0])
def test_the_label_of_a_scale_bar_stays_inside_the_map(width_um: float, corner: tuple[int, int]) -> None:
    figure = Figure(figsize=(1.8, 2.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width_um), ylim=(width_um, 0))
    # Spots in every corner but one.
    xy = np.array([(x, y) for x in (0, 1) for y in (0, 1) if (x, y) != corner]) * width_um
    scale_bar(axes, 1.0, xy)
    (label,) = axes.texts
    renderer = FigureCanvasAgg(figure).get_renderer()
    box, frame = label.get_window_extent(renderer), axes.get_window_extent(renderer)
    assert frame.x0 <= box.x0 < box.x1 <= frame.x1
    assert frame.y0 <= box.y0 < box.y1 <= frame.y1
