"""Prototypes on a page: their order, colours, genes and pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mmap_st as mm
from mmap_st.extract.slides import close_ups
from mmap_st.report import draw_page
from mmap_st.report.page import find_prototypes
from mmap_st.report.prediction_layers import prototypes_of
from mmap_st.report.prototype_colours import order_by_similarity, prototype_colours
from mmap_st.workflows import HeadRun
from tests.conftest import Tiny

GENES = ("ERBB2", "FASN", "KRT5")


@given(st.permutations(range(9)))
def test_prototypes_on_a_line_are_ordered_along_it(places: list[int]) -> None:
    order = order_by_similarity(np.array(places, np.float32)[:, None] ** 1.5)
    along = [places[number] for number in order]
    assert along in (sorted(along), sorted(along, reverse=True))


@pytest.mark.parametrize("count", [1, 2, 3, 40, 80])
def test_colours_are_told_apart(count: int) -> None:
    colours = prototype_colours(order_by_similarity(np.random.default_rng(0).normal(size=(count, 5))))
    assert colours.shape == (count, 3)
    assert colours.min() >= 0
    assert colours.max() <= 1
    assert len(np.unique((255 * colours).round(), axis=0)) == count


def test_neighbours_on_the_scale_differ_in_lightness() -> None:
    colours = prototype_colours(np.arange(60))
    lightness = colours @ (0.2126, 0.7152, 0.0722)
    assert (np.abs(np.diff(lightness)) > 0.05).all()


def attention_of(nearest: list[int], count: int) -> np.ndarray:
    weights = np.full((len(nearest), count), 0.01, np.float16)
    for spot, number in enumerate(nearest):
        weights[spot] = 0 if number < 0 else weights[spot]
        if number >= 0:
            weights[spot, number] = 0.9
    return weights


def test_what_is_found_of_attention() -> None:
    nearest = [5, 5, 2, 2, 2, -1]
    predicted = np.array([[3, 0, 1], [3, 0, 1], [0, 4, 1], [0, 4, 1], [0, 4, 1], [np.nan] * 3], np.float32)
    found = find_prototypes(attention_of(nearest, 7), predicted, GENES, "uni")
    assert found is not None
    assert found.weights.shape == (6, 2)  # those that no spot attends to most are left out
    large, small = found.largest(2)
    assert found.size[[large, small]].tolist() == [3, 2]
    assert found.nearest.tolist() == [small, small, large, large, large, -1]
    assert found.genes[large][0] == "FASN"
    assert found.genes[small][0] == "ERBB2"
    assert "KRT5" not in found.genes[large] + found.genes[small]  # the same everywhere
    assert found.nearest[found.shown_by].tolist() == list(range(2))
    assert found.windows == {}


def test_no_attention_no_prototypes() -> None:
    assert find_prototypes(np.zeros((3, 4), np.float16), np.zeros((3, 3), np.float32), GENES, "uni") is None


def test_the_order_of_candidates_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    attention = rng.dirichlet(np.full(12, 0.2), 60).astype(np.float16)
    predicted = rng.normal(size=(60, 3)).astype(np.float32)
    turned = rng.permutation(12)
    one = find_prototypes(attention, predicted, GENES, "uni")
    other = find_prototypes(attention[:, turned], predicted, GENES, "uni")
    assert one is not None
    assert other is not None
    # A tree may be read from either end.
    same = [np.array_equal(one.weights, other.weights[:, ::step]) for step in (1, -1)]
    assert any(same)


def test_pictures_are_of_the_spots_that_attend_most(tiny: Tiny, attending: HeadRun, tmp_path: Path) -> None:
    table = attending.predict(tiny.store, "B1", cohort=f"her2st:{tiny.her2st}", progress=False)
    found = prototypes_of(table, 3)
    assert found is not None
    assert sorted(found.windows) == sorted(found.largest(3).tolist())
    number = int(found.largest(1)[0])
    place = table.obsm["spatial"][[found.shown_by[number]]]
    image = Path(table.uns["mmap"]["image"])
    (expected,) = close_ups(image, place, 112.0 / table.uns["mmap"]["source_mpp"], 112)  # type: ignore[misc]
    assert np.array_equal(found.windows[number], expected)
    table.uns["mmap"]["image"] = str(tmp_path / "gone.jpg")
    without = prototypes_of(table, 3)
    assert without is not None
    assert without.windows == {}
    del table.obsm["attention"]  # as predictions of before
    assert prototypes_of(table, 3) is None


def test_the_page_of_a_run_shows_its_prototypes(tiny: Tiny, attending: HeadRun, tmp_path: Path) -> None:
    """It needs no store for it."""
    page = tmp_path / "page.html"
    draw_page(attending.path, page)
    text = page.read_text("utf-8")
    assert "<h2>Prototypes</h2>" in text
    draw_page(tiny.run, page)
    assert "<h2>Prototypes</h2>" not in page.read_text("utf-8")


def test_the_figure_shows_the_largest_as_pictures(tiny: Tiny) -> None:
    cohort = mm.read_cohort(f"her2st:{tiny.her2st}")
    plain = mm.pl.prototypes(tiny.store, "A1", encoder="efficientnet-lite0")
    assert len(plain.axes) == 1
    figure = mm.pl.prototypes(tiny.store, "A1", encoder="efficientnet-lite0", image=cohort["A1"].image)
    pictures = [axis for axis in figure.axes[1:] if axis.images]
    numbers = [int(axis.get_title().split(":")[0]) for axis in pictures]
    assert numbers == sorted(numbers)
    assert 0 < len(pictures) <= 16
    marked = {int(text.get_text()) for text in figure.axes[0].texts if text.get_text().isdigit()}
    assert marked == set(numbers)
