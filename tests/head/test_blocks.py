"""Predictions in blocks of spots are those of the whole slide, whatever the head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest

from mmap_st.head import HeadSlide
from mmap_st.head.attending import Attention, predict_and_attend
from mmap_st.head.blocks import predict_blocks, spot_blocks
from mmap_st.head.interface import FittedHead, plan_validation
from mmap_st.head.joined import JoinedHead
from mmap_st.head.linear.mean import MeanSettings, fit_mean
from mmap_st.head.linear.ridge import RidgeSettings, fit_ridge
from mmap_st.head.mmap import trained_head
from mmap_st.head.mmap.features import feature_blocks, slide_features
from mmap_st.head.mmap.fitting import fit_mmap
from mmap_st.head.mmap.settings import MmapSettings
from mmap_st.head.neighbourhood import SpatialNeighbours

FAST = MmapSettings(width=16, heads=2, epochs=1, members=1, components=6, device="cpu")
HEADS: dict[str, Callable[[list[HeadSlide]], FittedHead]] = {
    "mean": lambda train: fit_mean(train, plan_validation(train, []), MeanSettings(), 0, print),
    "ridge": lambda train: fit_ridge(train, plan_validation(train, []), RidgeSettings(100.0), 0, print),
    "ridge-axes": lambda train: fit_ridge(
        train, plan_validation(train, []), RidgeSettings(100.0, pca=5, rank=2), 0, print
    ),
    **{
        f"mmap-{name}": lambda train, settings=settings: fit_mmap(
            train, plan_validation(train, []), settings, 0, print
        )
        for name, settings in {
            "default": FAST,
            "not-centred": replace(FAST, centre=False, scaling="standard"),
            "axes": replace(FAST, rank=2, blend=0.0),
            "no-prototypes": replace(FAST, prototypes="none"),
        }.items()
    },
}
SPOTS = 230


@pytest.fixture(scope="module")
def fitted() -> dict[str, FittedHead]:
    return {}


def placed(slide: HeadSlide, order: str) -> HeadSlide:
    """The slide on a grid, its spots row by row or in no order, some of them not valid."""
    place = np.arange(len(slide))
    if order == "scattered":
        place = np.random.default_rng(0).permutation(place)
    valid = np.ones(len(slide), np.bool_)
    valid[[0, 5, *range(64, 96), len(slide) - 1]] = False
    embedding = np.array(slide.embedding[:])
    embedding[~valid] = np.nan
    selected = None if slide.selected is None else slide.selected & valid[:, None]
    xy = np.stack([place % 10, place // 10], axis=1) * 100.0
    return replace(slide, xy=xy, valid=valid, embedding=embedding, selected=selected)


@pytest.mark.parametrize("order", ["rows", "scattered"])
@pytest.mark.parametrize("size", [7, 100, 1000])
@pytest.mark.parametrize("name", HEADS)
def test_blocks_are_the_whole(
    name: str,
    size: int,
    order: str,
    fitted: dict[str, FittedHead],
    head_slides: Callable[..., list[HeadSlide]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name not in fitted:
        fitted[name] = HEADS[name](head_slides(slides=3, spots=40))
    head, slide = fitted[name], placed(head_slides(slides=1, spots=SPOTS, seed=5)[0], order)
    # A block of features is 32 spots, or one block of predictions.
    small = partial(feature_blocks, block_bytes=4 * 32 * 2 * 6)
    monkeypatch.setattr(trained_head, "feature_blocks", small)
    whole, attention = predict_and_attend(head, slide)
    found = list(predict_blocks(head, slide, size, attend=True))
    assert [block.rows for block in found] == list(spot_blocks(SPOTS, size))
    predicted = np.concatenate([block.predicted for block in found])
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, whole, atol=2e-5)
    assert np.isnan(predicted).all(axis=1).tolist() == (~slide.valid).tolist()
    if attention is None:
        assert all(block.attention is None for block in found)
    else:
        weights = np.concatenate([block.attention.weights for block in found if block.attention is not None])
        assert weights.dtype == np.float16
        np.testing.assert_allclose(
            weights.astype(np.float32), attention.weights.astype(np.float32), atol=1e-3
        )
        silent = predict_blocks(head, slide, size, attend=False)
        assert all(block.attention is None for block in silent)


@pytest.mark.parametrize(("order", "blocks"), [("rows", 8), ("scattered", 1)])
def test_features_of_a_block_need_few_others(
    order: str, blocks: int, fitted: dict[str, FittedHead], head_slides: Callable[..., list[HeadSlide]]
) -> None:
    head = HEADS["mmap-no-prototypes"](head_slides(slides=3, spots=40))
    slide = placed(head_slides(slides=1, spots=2300, seed=5)[0], order)
    found = feature_blocks(slide, head.components, 100, block_bytes=4 * 300 * 2 * 6)
    # Of spots in no order each block would need all: these are computed once.
    assert len(found.blocks) == blocks
    assert max(map(len, found.needed)) == (2300 if order == "scattered" else 300 + 2 * 30)
    whole = slide_features(slide, head.components)
    for rows, features, places in found:
        np.testing.assert_allclose(features.own[places], whole.own[rows], atol=1e-5)
        expected = whole.blocks(np.arange(rows.start, rows.stop))
        np.testing.assert_allclose(features.blocks(places), expected, atol=1e-5)


@pytest.mark.parametrize("width", [0.4, 0.7, 1.5])
@pytest.mark.parametrize("layout", ["grid", "random", "one place", "one spot"])
def test_the_spots_reached_are_those_of_the_average(layout: str, width: float) -> None:
    rng = np.random.default_rng(0)
    n = 1 if layout == "one spot" else 120
    xy = rng.uniform(0, 12, (n, 2))
    if layout == "grid":
        xy = np.stack(np.divmod(np.arange(n), 12), axis=1) * 1.0
    elif layout == "one place":
        xy = np.zeros((n, 2))
    use = rng.random(n) < 0.8
    places = SpatialNeighbours(xy, use, 1.0)
    for rows in (np.arange(n)[:1], np.arange(n)[20:33], np.arange(n)[::7]):
        if not len(rows):
            continue
        reached = places.reached(rows, width)
        assert set(places.gaussian(rows, width).indices) <= set(reached)
        assert set(rows) <= set(reached)
        inner = places.only(reached).gaussian(np.searchsorted(reached, rows), width)
        whole = places.gaussian(rows, width)
        np.testing.assert_allclose(inner.toarray(), whole[:, reached].toarray(), atol=1e-6)


@dataclass
class Plain:
    """A head that predicts and nothing else, each spot by its first coordinate."""

    times: float
    width: int | None = None
    history: tuple[dict[str, float], ...] = ()

    def predict(self, slide: HeadSlide) -> np.ndarray:
        return (self.times * slide.xy[:, :1] + [0.0, 1.0]).astype(np.float32)


@dataclass
class Attending(Plain):
    """The same, and attends to prototypes."""

    def predict_and_attend(self, slide: HeadSlide) -> tuple[np.ndarray, Attention | None]:
        assert self.width is not None
        weights = np.repeat(slide.xy[:, :1].astype(np.float16), self.width, axis=1)
        return self.predict(slide), Attention(weights)


def slide_of(spots: int) -> HeadSlide:
    xy = np.stack([np.arange(spots), np.zeros(spots)], axis=1) * 1.0
    return HeadSlide(
        "S", None, tuple(map(str, range(spots))), xy, np.zeros((spots, 1, 1), np.float32), xy[:, 0] >= 0
    )


@pytest.mark.parametrize("spots", [1, 6, 7])
@pytest.mark.parametrize(
    ("members", "encoder"),
    [
        ((Plain(1.0),), None),
        ((Attending(1.0, 3),), 0),
        ((Plain(1.0), Plain(3.0)), None),
        ((Attending(1.0, 3), Attending(3.0, 4)), 1),
        ((Attending(1.0, 3), Plain(3.0)), 0),
    ],
)
def test_heads_that_know_no_blocks(members: tuple[Plain, ...], encoder: int | None, spots: int) -> None:
    slide, head = slide_of(spots), members[0]
    if len(members) > 1:
        slide = replace(slide, others=(slide,))
        head = JoinedHead(("a", "b"), members, np.array([0.25, 0.75]))
    whole, attention = predict_and_attend(head, slide)
    found = list(predict_blocks(head, slide, 3, attend=True))
    assert [len(block.predicted) for block in found] == [
        rows.stop - rows.start for rows in spot_blocks(spots, 3)
    ]
    np.testing.assert_array_equal(np.concatenate([block.predicted for block in found]), whole)
    if encoder is None:
        assert attention is None
        assert all(block.attention is None for block in found)
        return
    assert {block.attention.encoder for block in found if block.attention} == {encoder}
    weights = np.concatenate([block.attention.weights for block in found if block.attention])
    np.testing.assert_array_equal(weights, attention.weights)
    assert all(block.attention is None for block in predict_blocks(head, slide, 3, attend=False))
