from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, mean_squared_error
from sklearn.preprocessing import StandardScaler

from mmap_st.data.targets import Targets
from mmap_st.head.scoring import metrics
from mmap_st.head.scoring.metrics import (
    gene_table,
    mean_pcc,
    most_variable,
    pearson_per_gene,
    pooled_errors,
    score_slides,
    slide_metrics,
)
from mmap_st.head.scoring.results import SlideScores

RNG = np.random.default_rng(0)


@given(st.integers(0, 1000), st.integers(3, 40))
def test_correlation_is_that_of_scipy_with_gaps_left_out(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 4)) * 10 + 100, rng.normal(size=(n, 4))
    gaps = rng.random((n, 4)) < 0.2
    gaps[:3] = False
    y[gaps] = np.nan
    for gene, found in enumerate(pearson_per_gene(x, y)):
        use = ~gaps[:, gene]
        assert found == pytest.approx(pearsonr(x[use, gene], y[use, gene]).statistic, abs=1e-9)


def test_constant_genes_and_single_spots_are_undefined_and_count_zero() -> None:
    y = RNG.normal(size=(10, 3))
    x = y.copy()
    x[:, 1] = 0.1 + 0.2  # constant, though not exactly after arithmetic
    y[:, 2] = 7.0
    found = pearson_per_gene(x, y)
    assert found[0] == pytest.approx(1.0)
    assert np.isnan(found[1:]).all()
    assert mean_pcc(found) == pytest.approx(1 / 3)
    assert np.isnan(pearson_per_gene(x[:1], y[:1])).all()
    metrics = slide_metrics(x[:1], y[:1])
    assert (metrics.pcc, metrics.undefined_genes, metrics.n_spots) == (0.0, 3, 1)


def test_a_spread_that_is_mere_rounding_is_no_spread() -> None:
    x = np.full((50, 1), 1e6, np.float32)
    x[::2] += 0.0625
    assert np.isnan(pearson_per_gene(x, RNG.normal(size=(50, 1)))).all()


def test_missing_genes_and_spots_are_left_out_not_zero() -> None:
    y = RNG.normal(size=(20, 3)).astype(np.float32)
    x = (y + RNG.normal(size=(20, 3))).astype(np.float32)
    full = slide_metrics(x[2:][:, :2], y[2:][:, :2])
    y[:2] = np.nan  # two spots without a library
    y[:, 2] = np.nan  # a gene that the slide lacks
    assert replace(slide_metrics(x, y), pcc_hvg50=0) == replace(full, pcc_hvg50=0)
    assert full.n_spots == 18


def test_the_summary_by_hand() -> None:
    measured = {"a": np.array([[1.0, 5], [2, 5], [3, 5]]), "b": np.array([[4.0, 1], [3, 2], [2, 3]])}
    predicted = {"a": np.array([[2.0, 5], [4, 5], [6, 5]]), "b": np.array([[3.0, 1], [3, 1], [3, 1]])}
    found = score_slides(predicted, measured, hvg50=[0])
    assert found.slides["a"] == SlideScores(
        n_spots=3, pcc=pytest.approx(0.5), pcc_hvg50=pytest.approx(1.0),
        mse=pytest.approx(14 / 6), mae=1.0, undefined_genes=1,
    )  # fmt: skip
    assert found.slides["b"].pcc == 0.0
    assert found.slides["b"].undefined_genes == 2
    assert found.pcc_slide == pytest.approx(0.25)
    assert found.pcc_slide_hvg50 == pytest.approx(0.5)
    assert found.mse == pytest.approx((14 / 6 + (1 + 0 + 1 + 0 + 1 + 4) / 6) / 2)
    assert found.mae == pytest.approx((1.0 + 5 / 6) / 2)
    pooled = [
        pearsonr([2, 4, 6, 3, 3, 3], [1, 2, 3, 4, 3, 2]).statistic,
        pearsonr([5, 5, 5, 1, 1, 1], [5, 5, 5, 1, 2, 3]).statistic,
    ]
    assert found.pcc_pooled == pytest.approx(np.mean(pooled))


def test_the_table_of_genes_is_the_summary_gene_by_gene() -> None:
    measured = {"a": RNG.normal(size=(9, 3)), "b": RNG.normal(size=(7, 3))}
    predicted = {name: values + RNG.normal(size=values.shape) for name, values in measured.items()}
    predicted["a"][4] = np.nan
    measured["b"][:, 1] = np.nan
    table = gene_table(predicted, measured)
    assert table["slides"] == [2, 1, 2]
    for gene in range(3):
        here = {name: values[:, [gene]] for name, values in measured.items() if name == "a" or gene != 1}
        alone = score_slides({name: predicted[name][:, [gene]] for name in here}, here, hvg50=[0])
        assert table["pcc"][gene] == pytest.approx(alone.pcc_slide)
        assert table["mse"][gene] == pytest.approx(alone.mse)
        assert table["mae"][gene] == pytest.approx(alone.mae)


def test_a_slide_that_lacks_all_hvg_genes_does_not_count_there() -> None:
    y = RNG.normal(size=(10, 3))
    lacking = y.copy()
    lacking[:, 0] = np.nan
    found = score_slides({"a": y, "b": y}, {"a": y, "b": lacking}, hvg50=[0])
    assert found.pcc_slide_hvg50 == pytest.approx(1.0)


def test_invalid_predictions_are_left_out() -> None:
    y = RNG.normal(size=(10, 2))
    x = y + 1
    x[3] = np.nan
    found = score_slides({"a": x}, {"a": y}, hvg50=[0, 1])
    assert found.slides["a"].n_spots == 9
    assert found.mse == pytest.approx(1.0)


def test_the_most_variable_genes_are_those_of_all_spots_pooled() -> None:
    small, large = RNG.normal(size=(30, 3)), RNG.normal(size=(20, 3)) + np.array([0, 10, 0])
    large[:, 2] *= 3
    large[5] = np.nan
    assert most_variable([Targets.of_dense(small), Targets.of_dense(large)], 2) == [1, 2]
    assert most_variable([Targets.of_dense(small)], 50) == sorted(range(3), key=lambda i: -small[:, i].var())


def test_pooled_errors_are_those_of_sklearn() -> None:
    rng = np.random.default_rng(0)
    x = {name: rng.normal(size=(n, 4)) for name, n in (("a", 20), ("b", 30))}
    y = {name: rng.normal(1.0, 2.0, values.shape) for name, values in x.items()}
    found = pooled_errors(x, y)
    px, py = (np.concatenate(list(v.values())) for v in (x, y))
    zx, zy = (StandardScaler().fit_transform(v) for v in (px, py))
    assert found.mse_pooled == pytest.approx(mean_squared_error(py, px))
    assert found.mae_pooled == pytest.approx(mean_absolute_error(py, px))
    assert found.mse_zscored == pytest.approx(mean_squared_error(zy, zx))
    assert found.mae_zscored == pytest.approx(mean_absolute_error(zy, zx))
    y["a"][3] = np.nan
    kept = np.isfinite(np.concatenate(list(y.values()))).all(1)
    py = np.concatenate(list(y.values()))[kept]
    assert pooled_errors(x, y).mse_pooled == pytest.approx(mean_squared_error(py, px[kept]))
    zx, zy = (StandardScaler().fit_transform(v) for v in (px[kept], py))
    assert pooled_errors(x, y).mse_zscored == pytest.approx(mean_squared_error(zy, zx))


def test_zscores_of_columns_that_hardly_vary_are_zero_whatever_their_size() -> None:
    """The threshold is absolute: 1e-5 around 1,000 is scaled though it is a tiny share of it; 1e-7 is not."""
    spread = np.array([1e-5, 1e-7])
    values = np.array([1000.0, 0.0]) + spread * np.array([[1.0], [-1.0]])
    scaled = metrics._zscored(values, np.zeros(values.shape, np.bool_))
    np.testing.assert_allclose(scaled, [[1, 0], [-1, 0]], atol=1e-4)
