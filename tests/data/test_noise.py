"""The noise ceiling against exact sums, and against simulated tissue, whose true expression is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import poisson

from mmap_st.data.counts import Counts, make_counts
from mmap_st.data.noise import counting_noise, noise_ceiling, signal_share
from mmap_st.data.targets import NORMALISATIONS, targets_from_counts
from mmap_st.head.scoring.metrics import pearson_per_gene
from mmap_st.workflows.simulation.expression import draw_counts, draw_effects, spot_context, true_shares
from mmap_st.workflows.simulation.tissue import grow_tissue

TARGETS = "log1p-10k"


@given(st.floats(0.01, 2000.0), st.floats(0.05, 10.0))
def test_its_mean_is_the_variance_of_the_logarithm(mean: float, factor: float) -> None:
    counts = np.arange(int(mean + 12 * np.sqrt(mean) + 30), dtype=np.float64)
    chance = poisson.pmf(counts, mean)
    logged = np.log1p(factor * counts)
    exact = chance @ logged**2 - (chance @ logged) ** 2
    assert chance @ counting_noise(counts, np.array(factor)) == pytest.approx(exact, rel=0.015)


def counts_of(values: np.ndarray, genes: list[str] | None = None) -> Counts:
    names = [f"g{column}" for column in range(values.shape[1])] if genes is None else genes
    return make_counts(
        [f"s{row}" for row in range(len(values))], names, sparse.csr_array(values, dtype=np.float32)
    )


def simulated(seed: int, mean_library: float, sections: int = 3) -> list[tuple[np.ndarray, Counts]]:
    """True expression (n, g) and counts of sections that share their genes."""
    effects = draw_effects(np.random.default_rng([seed, 0]), 40, coarse=True, slide_factor=True)
    found = []
    for section in range(sections):
        rng = np.random.default_rng([seed, section])
        tissue = grow_tissue(rng, 2600.0, 0.25 + 0.2 * section)
        ticks = np.arange(150.0, 2600.0, 150.0)
        context = spot_context(tissue, np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2))
        shares = true_shares(context, effects)
        drawn = draw_counts(rng, context, effects, mean_library)
        found.append((shares / shares.sum(axis=1, keepdims=True), counts_of(drawn, list(effects.names))))
    return found


@pytest.mark.parametrize("mean_library", [1500.0, 6000.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_correlation_of_simulated_truth_with_what_was_measured(
    seed: int, mean_library: float
) -> None:
    sections = simulated(seed, mean_library)
    genes = sections[0][1].genes
    shares = [signal_share(counts, genes, TARGETS) for _, counts in sections]
    reached = [
        np.nan_to_num(
            pearson_per_gene(np.log1p(1e4 * truth), targets_from_counts(counts, genes, TARGETS).dense())
        )
        for truth, counts in sections
    ]
    ceiling = noise_ceiling([share for share in shares if share is not None])
    assert ceiling.mean() == pytest.approx(np.mean(reached), abs=0.03)
    assert abs(ceiling - np.mean(reached, axis=0)).mean() < 0.09
    for share, truth in zip(shares, reached, strict=True):
        assert share is not None
        assert noise_ceiling([share]).mean() == pytest.approx(truth.mean(), abs=0.06)


def test_pure_counting_has_none_of_it() -> None:
    rng = np.random.default_rng(0)
    mean = np.concatenate([np.geomspace(0.02, 50.0, 60), [2000.0]])
    values = rng.poisson(mean, (3000, 61)).astype(np.float32)
    share = signal_share(counts_of(values), [f"g{column}" for column in range(60)], TARGETS)
    assert share is not None
    # Single genes vary: of a mean of 5, the few zeros are far from the rest.
    assert abs(share).mean() < 0.05
    assert share.mean() == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("name", [name for name, one in NORMALISATIONS.items() if one.factor is not None])
def test_targets_are_the_logarithm_that_it_is_of(name: str) -> None:
    values = np.random.default_rng(1).poisson(3.0, (20, 5)).astype(np.float32)
    counts, genes = counts_of(values), ["g0", "g3"]
    factor = NORMALISATIONS[name].factor
    assert factor is not None
    columns, _ = counts.columns_of(genes)
    logged = np.log1p(factor(counts, columns)[:, None] * columns.toarray())
    targets = targets_from_counts(counts, genes, name).dense().astype(np.float64)
    ratio = targets[logged > 0] / logged[logged > 0]
    assert ratio == pytest.approx(ratio[0], rel=1e-5)
    assert signal_share(counts, genes, name) is not None


def test_targets_that_are_something_else_have_none() -> None:
    values = np.random.default_rng(1).poisson(3.0, (20, 5)).astype(np.float32)
    assert signal_share(counts_of(values), ["g0"], "log10-10k-panel-smoothed") is None
    logged = make_counts([f"s{row}" for row in range(20)], ["g0"], np.log1p(values[:, :1]), kind="lognorm")
    assert signal_share(logged, ["g0"], "lognorm-as-given") is None


def test_genes_that_are_missing_or_constant_and_empty_spots() -> None:
    values = np.random.default_rng(1).poisson(3.0, (40, 3)).astype(np.float32)
    values[:, 1] = 0
    values[5] = 0
    share = signal_share(counts_of(values), ["g0", "g1", "elsewhere"], TARGETS)
    assert share is not None
    assert np.isfinite(share[0])
    assert share[1] == 0
    assert np.isnan(share[2])
    assert np.isnan(noise_ceiling([share])[2])
    # A slide that lacks the gene does not count.
    both = noise_ceiling([np.array([0.25, 0.5]), np.array([np.nan, 0.0])])
    assert both.tolist() == pytest.approx([0.5, 0.5])
    one_spot = signal_share(counts_of(values[:1]), ["g0"], TARGETS)
    assert one_spot is not None
    assert one_spot.tolist() == [0.0]
