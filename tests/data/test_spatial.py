"""Moran's I, and panels of the genes that vary from place to place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from mmap_st.data.counts import make_counts
from mmap_st.data.panel import choose_panel, morans_i, neighbour_weights


def plain_morans_i(values: np.ndarray, weights: np.ndarray) -> float:
    """The textbook's double sum."""
    n, z = len(values), values - values.mean()
    total = sum(weights[i, j] * z[i] * z[j] for i in range(n) for j in range(n))
    return n / weights.sum() * total / (z**2).sum()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 25), seed=st.integers(0, 99))
def test_it_is_the_double_sum(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.poisson(1.0, (n, 3)) * (rng.random((n, 3)) < 0.7) + rng.normal(0, 1e-3, (n, 3))
    weights = neighbour_weights(rng.uniform(0, 9, (n, 2)))
    expected = [plain_morans_i(values[:, g], weights.toarray()) for g in range(3)]
    np.testing.assert_allclose(
        morans_i(sparse.csr_array(values), weights), expected, atol=1e-6
    )  # sums of squares cancel


def test_each_spot_has_its_six_nearest_and_never_itself() -> None:
    grid = np.stack(np.meshgrid(np.arange(6), np.arange(5)), -1).reshape(-1, 2).astype(float)
    weights = neighbour_weights(grid).toarray()
    assert (np.diag(weights) == 0).all()
    np.testing.assert_allclose(weights.sum(1), 1)
    assert ((weights > 0).sum(1) == 6).all()
    assert neighbour_weights(grid[:3]).toarray() == pytest.approx((1 - np.eye(3)) / 2)
    assert neighbour_weights(grid[:1]).nnz == 0
    together = neighbour_weights(np.zeros((9, 2))).toarray()
    assert (np.diag(together) == 0).all()
    np.testing.assert_allclose(together.sum(1), 1)


def test_a_gene_that_does_not_vary_has_none() -> None:
    weights = neighbour_weights(np.random.default_rng(0).uniform(0, 9, (20, 2)))
    values = sparse.csr_array(np.stack([np.zeros(20), np.full(20, 3.3)], axis=1))
    assert (morans_i(values, weights) == 0).all()


def test_a_panel_of_spatially_variable_genes_prefers_patterns_to_noise() -> None:
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(12), np.arange(12)), -1).reshape(-1, 2).astype(float)
    left = np.where(grid[:, 0] < 6, 4, 9)
    counts = np.stack([rng.permutation(left), left, rng.poisson(3, 144), np.full(144, 50)], axis=1)
    ids = [f"{i}" for i in range(144)]
    table = make_counts(ids, ["shuffled", "left", "noise", "rest"], counts.astype(np.float32))
    training, xy = {"S": table, "T": table}, {"S": grid, "T": grid}
    assert choose_panel("svg:1", training, xy=xy).genes == ("left",)
    panel = choose_panel("svg:2", training, xy=xy)
    assert panel.how == "svg:2"
    empty = make_counts(ids, ["shuffled", "left", "noise", "rest"], np.vstack([0 * counts[:5], counts[5:]]))
    assert choose_panel("svg:1", {"S": empty}, xy=xy).genes == ("left",)
