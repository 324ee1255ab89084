"""Sparse targets say what dense ones would."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mmap_st.data.targets as targets_module
from mmap_st.data.counts import make_counts
from mmap_st.data.targets import NORMALISATIONS, Targets, pooled_moments, targets_from_counts


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


@pytest.mark.parametrize("normalisation", sorted(NORMALISATIONS))
@pytest.mark.parametrize("spots", [1, 7, 29, 30, 64])
def test_targets_of_many_spots_are_made_in_blocks(
    spots: int, normalisation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    values = rng.poisson(0.7, (30, 8)).astype(np.float32)
    values[[4, 9]] = 0
    ids = [f"{i % 6}x{i // 6}" for i in range(30)]
    counts = make_counts(ids, [f"G{g}" for g in range(8)], values).rows_of([*ids[::-1][:20], "9x9", *ids[:9]])
    xy = np.array([[float(x) for x in name.split("x")] for name in counts.ids])
    panel = ["G5", "MISSING", "G0", "G7"]
    whole = targets_from_counts(counts, panel, normalisation, xy)
    monkeypatch.setattr(targets_module, "_BLOCK_SPOTS", spots)
    found = targets_from_counts(counts, panel, normalisation, xy)
    np.testing.assert_array_equal(found.dense(), whole.dense())
    np.testing.assert_array_equal(found.defined, whole.defined)
    np.testing.assert_array_equal(found.present, whole.present)
    assert found.values.nnz == whole.values.nnz
    assert found.values.indices.dtype == whole.values.indices.dtype


def test_rows_in_their_own_order_are_the_counts_themselves() -> None:
    counts = make_counts(["a", "b", "c"], ["G0", "G1"], np.array([[1, 0], [0, 2], [3, 4]], np.float32))
    same = counts.in_order(("a", "b", "c"))
    assert same.matrix is counts.matrix
    assert same.measured.all()
    other = counts.in_order(("c", "x", "a"))
    np.testing.assert_array_equal(other.matrix.toarray(), [[3, 4], [0, 0], [1, 0]])
    again = other.in_order(("c", "x", "a"))
    np.testing.assert_array_equal(again.measured, [True, False, True])
