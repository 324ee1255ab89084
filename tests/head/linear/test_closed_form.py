"""Ridge on any choice of folds, and what it is fed with."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from mmap_st.head.basis import fit_components
from mmap_st.head.interface import best_of
from mmap_st.head.linear.closed_form import FoldedRidge, RidgeBuilder
from mmap_st.head.mmap.features import TEMPERATURE, block_scales, prototype_attention, slide_features
from mmap_st.head.mmap.trained_head import fit_slide_level, slide_descriptor
from mmap_st.head.neighbourhood import SpatialNeighbours, spot_pitch


@dataclass
class Rows:
    """Rows of one group, whole."""

    features: np.ndarray
    target: np.ndarray
    fold: int


def folded(made: list[Rows], size: int = 7) -> FoldedRidge:
    """Fitted on rows that come in parts."""
    builder = RidgeBuilder()
    for g in made:
        builder.start_group(g.fold, np.isfinite(g.target).any(axis=0))
        for i in range(0, len(g.target), size):
            builder.add(g.features[i : i + size], g.target[i : i + size])
    return builder.build()


def groups(rows: int, width: int, genes: int = 3) -> list[Rows]:
    rng = np.random.default_rng(0)
    return [
        Rows(
            rng.normal(1.0, 1.0, (rows, width)).astype(np.float32),
            rng.normal(index, 1.0, (rows, genes)).astype(np.float32),
            index // 2,
        )
        for index in range(6)
    ]


def reference(kept: list[Rows], alpha: float, genes: list[int]) -> np.ndarray:
    x = np.concatenate([g.features - g.features.mean(0) for g in kept]).astype(np.float64)
    y = np.concatenate([g.target[:, genes] - g.target[:, genes].mean(0) for g in kept]).astype(np.float64)
    return Ridge(alpha, fit_intercept=False).fit(x, y).coef_.reshape(len(genes), -1).T


@pytest.mark.parametrize("rows", [3, 20])  # by the rows' Gram matrix, and by moments
@pytest.mark.parametrize("without", [(), (1,), (0, 2)])
def test_any_folds_at_any_strength_are_sklearns_ridge(rows: int, without: tuple[int, ...]) -> None:
    made = groups(rows, 30)
    ridge = folded(made)
    kept = [g for g in made if g.fold not in without]
    for alpha in (0.5, 40.0):
        expected = reference(kept, alpha, [0, 1, 2])
        np.testing.assert_allclose(ridge.weight(alpha, without), expected, atol=1e-4)


@pytest.mark.parametrize("rows", [3, 20])
@pytest.mark.parametrize("without", [(), (1,)])
def test_weighted_rows_are_sklearns_weighted_ridge(rows: int, without: tuple[int, ...]) -> None:
    made, rng = groups(rows, 30), np.random.default_rng(1)
    weights = [rng.uniform(0.2, 3.0, rows) for _ in made]
    builder = RidgeBuilder()
    for g, weight in zip(made, weights, strict=True):
        builder.start_group(g.fold, np.ones(3, np.bool_))
        for i in range(0, rows, 7):
            builder.add(g.features[i : i + 7], g.target[i : i + 7], weight[i : i + 7])
    kept = [(g, w) for g, w in zip(made, weights, strict=True) if g.fold not in without]
    x = np.concatenate([g.features - np.average(g.features, axis=0, weights=w) for g, w in kept])
    y = np.concatenate([g.target - np.average(g.target, axis=0, weights=w) for g, w in kept])
    expected = Ridge(2.0, fit_intercept=False).fit(x, y, np.concatenate([w for _, w in kept])).coef_.T
    np.testing.assert_allclose(builder.build().weight(2.0, without), expected, atol=1e-4)


@pytest.mark.parametrize("rows", [3, 20])
def test_each_target_has_its_own_strength_and_an_infinite_one_gives_0(rows: int) -> None:
    ridge = folded(groups(rows, 30))
    found = ridge.weight(np.array([0.5, np.inf, 40.0]), (1,))
    np.testing.assert_array_equal(found[:, 0], ridge.weight(0.5, (1,))[:, 0])
    assert (found[:, 1] == 0).all()
    np.testing.assert_array_equal(found[:, 2], ridge.weight(40.0, (1,))[:, 2])


@pytest.mark.parametrize("rows", [3, 20])
@pytest.mark.parametrize("weighted", [False, True])
def test_groups_that_come_centred_are_not_centred_again(rows: int, weighted: bool) -> None:
    made = groups(rows, 30)
    weight = np.linspace(0.5, 2.0, rows) if weighted else None
    builder = RidgeBuilder()
    for g in made:
        builder.start_group(g.fold, np.ones(3, np.bool_), centred=True)
        builder.add(g.features, g.target, weight)
    x, y = np.concatenate([g.features for g in made]), np.concatenate([g.target for g in made])
    every = None if weight is None else np.tile(weight, len(made))
    expected = Ridge(2.0, fit_intercept=False).fit(x, y, every).coef_.T
    np.testing.assert_allclose(builder.build().weight(2.0), expected, atol=1e-4)


@pytest.mark.parametrize("rows", [3, 20])
def test_genes_that_groups_lack_are_fitted_on_the_others(rows: int) -> None:
    made = groups(rows, 30)
    for group in made[:2]:
        group.target[:, 1] = np.nan
    for group in made:
        group.target[:, 2] = np.nan
    weight = folded(made).weight(2.0, (2,))
    np.testing.assert_allclose(weight[:, :1], reference(made[:4], 2.0, [0]), atol=1e-4)
    np.testing.assert_allclose(weight[:, 1:2], reference(made[2:4], 2.0, [1]), atol=1e-4)
    assert (weight[:, 2] == 0).all()


def test_components_are_those_of_sklearns_pca_up_to_scale(head_slides) -> None:
    slides = head_slides(slides=3, width=12)
    axes = fit_components(slides, 4).axes
    assert axes.shape == (2, 12, 4)
    rows = np.concatenate([s.standardised(np.arange(60)) for s in slides])
    for m in range(2):
        expected = PCA(4).fit(rows[:, m]).components_.T
        ours = axes[m] / np.linalg.norm(axes[m], axis=0)
        np.testing.assert_allclose(np.abs((ours * expected).sum(0)), 1.0, atol=1e-4)
        spread = (rows[:, m] @ axes[m]).std(0)
        np.testing.assert_allclose((spread**2).mean(), 1.0, rtol=1e-3)
        assert (np.diff(spread) < 1e-6).all()  # whitened in part: still the greatest first


def test_more_axes_than_spots_or_dimensions_are_cut(head_slides) -> None:
    assert fit_components(head_slides(slides=1, spots=7, width=12), 128).axes.shape == (2, 12, 7)
    few = fit_components(head_slides(slides=1, spots=7, width=40), 128)
    assert np.isfinite(few.axes).all()
    assert fit_components(head_slides(slides=3, width=12), 128).axes.shape == (2, 12, 12)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), width=st.floats(0.3, 2.0), seed=st.integers(0, 99))
def test_neighbours_are_the_plain_gaussian_average(n: int, width: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, 5, (n, 2))
    use = rng.random(n) < 0.8
    rows = rng.permutation(n)[: max(1, n // 2)]
    found = SpatialNeighbours(xy, use, 1.0).gaussian(rows, width).toarray()
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    plain = np.exp(-(distance**2) / (2 * width**2)) * (distance <= 2.5 * width) * use[None] * use[:, None]
    total = plain.sum(1, keepdims=True)
    expected = np.divide(plain, total, out=plain, where=total > 0)[rows]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_pitch_is_the_distance_of_neighbours() -> None:
    grid = np.stack(np.meshgrid(np.arange(5), np.arange(4)), -1).reshape(-1, 2) * 287.5
    assert spot_pitch(grid) == 287.5
    assert spot_pitch(grid[:1]) == 1.0
    assert spot_pitch(np.zeros((4, 2))) == 1.0


def test_attention_is_the_softmax_over_selected_candidates() -> None:
    rng = np.random.default_rng(0)
    own, centre = (rng.normal(size=(n, 2, 5)).astype(np.float32) for n in (4, 6))
    selected = rng.random((4, 6)) < 0.5
    selected[0] = False
    found = prototype_attention(own, centre, selected)
    assert (found[0] == 0).all()
    for i in range(1, 4):
        cosine = [
            np.mean([own[i, m] @ c[m] / np.linalg.norm(own[i, m]) / np.linalg.norm(c[m]) for m in range(2)])
            for c in centre
        ]
        weight = np.exp(np.array(cosine) / TEMPERATURE) * selected[i]
        np.testing.assert_allclose(found[i], weight / weight.sum(), rtol=1e-4)


def test_blocks_share_their_length_as_asked(head_slides) -> None:
    slides = head_slides(slides=3)
    features = [slide_features(s, fit_components(slides, 6)) for s in slides]
    blocks = np.concatenate([f.blocks() for f in features])
    scale = block_scales((blocks**2).sum((0, 2)), len(blocks))
    joined = blocks * scale[:, None]
    np.testing.assert_allclose((joined**2).sum(2).mean(0), [0.2, 0.2, 0.2, 0.4], rtol=1e-4)


def test_slide_levels_are_told_from_prototypes_where_they_can_be() -> None:
    rng = np.random.default_rng(0)
    descriptors = list(rng.normal(size=(12, 8)).astype(np.float32))
    told = np.stack([np.tanh(d[:3]) for d in descriptors]).astype(np.float32)
    fitted, chosen = fit_slide_level(descriptors, 3 * told, [i % 4 for i in range(12)])
    assert fitted is not None
    assert chosen["error_left"] < 0.9
    assert np.abs(fitted.of(descriptors[0]) - 3 * told[0]).max() < 0.5
    assert np.abs(fitted.of(descriptors[0] + 100)).max() < 1e-6  # unlike all: the training mean
    nothing, _ = fit_slide_level(descriptors, rng.normal(size=(12, 3)).astype(np.float32), list(range(12)))
    assert nothing is None
    assert fit_slide_level(descriptors[:2], told[:2], [0, 1])[0] is None
    assert fit_slide_level([descriptors[0]] * 4, told[:4], [0, 1, 2, 3])[0] is None


def test_a_descriptor_is_the_mean_of_the_candidates() -> None:
    centre = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    np.testing.assert_array_equal(slide_descriptor(centre), centre.mean(0).ravel())


def test_the_choice_is_the_least_error_among_the_best_correlated() -> None:
    rows = [
        {"n": 0, "validation_pcc": 0.100, "validation_mse": 0.1},
        {"n": 1, "validation_pcc": 0.196, "validation_mse": 0.3},
        {"n": 2, "validation_pcc": 0.200, "validation_mse": 0.4},
        {"n": 3, "validation_pcc": 0.197, "validation_mse": 0.3},
    ]
    assert best_of(rows)["n"] == 1
    assert best_of([{"validation_pcc": -0.2, "validation_mse": 1.0}])["validation_mse"] == 1.0


def test_a_gene_that_a_slide_does_not_have_counts_as_the_training_mean() -> None:
    rng = np.random.default_rng(1)
    descriptors = list(rng.normal(size=(12, 4)).astype(np.float32))
    levels = np.stack([3 * d[:3] for d in descriptors])
    zero, unknown = levels.copy(), levels.copy()
    zero[2, 1], unknown[2, 1] = 0.0, np.nan
    (one, chosen), (other, _) = (
        fit_slide_level(descriptors, v, [i % 4 for i in range(12)]) for v in (zero, unknown)
    )
    assert chosen["error_left"] < 0.9
    np.testing.assert_array_equal(one.weight, other.weight)
