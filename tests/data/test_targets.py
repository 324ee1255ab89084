"""Sparse targets say what dense ones would."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmap_st.data.targets import Targets, pooled_moments


def made(n: int, genes: int, seed: int) -> np.ndarray:
    """Values of which many are 0, with whole spots and whole genes undefined."""
    rng = np.random.default_rng(seed)
    values = rng.poisson(0.5, (n, genes)).astype(np.float32) * rng.random((n, genes)).astype(np.float32)
    values[rng.random(n) < 0.2] = np.nan
    values[:, rng.random(genes) < 0.2] = np.nan
    return values


@given(n=st.integers(1, 30), genes=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_sparse_targets_equal_dense_ones(n: int, genes: int, seed: int) -> None:
    dense = made(n, genes, seed)
    targets = Targets.of_dense(dense)
    rng = np.random.default_rng(seed)
    some, which = rng.random(n) < 0.5, rng.permutation(genes)[: max(1, genes // 2)]
    finite = np.isfinite(dense)
    np.testing.assert_array_equal(targets.dense(), dense)
    np.testing.assert_array_equal(targets.dense(some, which), dense[some][:, which])
    np.testing.assert_array_equal(targets.rows(some).dense(), dense[some])
    np.testing.assert_array_equal(targets.measured, finite.any(1))
    np.testing.assert_allclose(targets.total(some), np.nansum(dense[some], axis=0, dtype=np.float64))
    for width in (1, 5, genes):
        np.testing.assert_array_equal(np.concatenate(list(targets.column_blocks(width)), axis=1), dense)


@given(seed=st.integers(0, 10_000))
def test_moments_are_those_of_all_defined_values(seed: int) -> None:
    parts = [made(n, 6, seed + n) for n in (9, 14)]
    mean, variance = pooled_moments([Targets.of_dense(part) for part in parts])
    joined = np.concatenate(parts).astype(np.float64)
    for gene in range(6):
        values = joined[np.isfinite(joined[:, gene]), gene]
        if len(values):
            np.testing.assert_allclose([mean[gene], variance[gene]], [values.mean(), values.var()], atol=1e-9)
        else:
            assert mean[gene] == variance[gene] == 0


def test_single_entries_cannot_be_undefined() -> None:
    values = np.ones((4, 3), np.float32)
    values[1, 2] = np.nan
    with pytest.raises(ValueError, match="not for single entries"):
        Targets.of_dense(values)
