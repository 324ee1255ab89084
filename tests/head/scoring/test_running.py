"""Scores that are summed up block by block are those of the whole."""

from __future__ import annotations

import anndata
import numpy as np
import pytest

from mmap_st.data.targets import Targets
from mmap_st.head.scoring.gene_sets import SCORE, GeneSets
from mmap_st.head.scoring.metrics import gene_scores, slide_metrics
from mmap_st.head.scoring.running import RunningCoverage, RunningMoments, RunningScores
from mmap_st.head.scoring.uncertainty import Spread, coverage

GENES = 7


def both_sides(kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and measured values (n, GENES) of one kind of slide."""
    rng = np.random.default_rng(seed)
    spots = {"one spot": 1, "two spots": 2}.get(kind, 57)
    measured = rng.normal(2.0, 1.0, (spots, GENES)).astype(np.float32)
    predicted = (0.5 * measured + rng.normal(1.0, 0.4, measured.shape)).astype(np.float32)
    if kind == "spots without predictions":
        predicted[rng.random(spots) < 0.3] = np.nan
        predicted[:9] = np.nan  # a whole block of them
    elif kind == "none predicted":
        predicted[:] = np.nan
    elif kind == "constant genes":
        predicted[:, 1], measured[:, 2] = 0.1, 0.3
        predicted[:, 3] = measured[:, 3] = 1e6
    elif kind == "far from 0":
        predicted[:, ::2] += 1e4
        measured[:, ::2] += 1e4
    elif kind == "genes and spots not measured":
        measured[:, [0, 4]] = np.nan
        measured[rng.random(spots) < 0.4] = np.nan
    elif kind == "measured later on":
        measured[:30] = np.nan
    return predicted, measured


KINDS = (
    "plain",
    "one spot",
    "two spots",
    "spots without predictions",
    "none predicted",
    "constant genes",
    "far from 0",
    "genes and spots not measured",
    "measured later on",
)
SIZES = (1, 5, 8, 57, 1000)


def blocks(spots: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, spots, size)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_blocks_are_those_of_the_whole(kind: str, size: int) -> None:
    predicted, measured = both_sides(kind)
    running = RunningScores(GENES)
    for rows in blocks(len(predicted), size):
        running.add(predicted[rows], measured[rows])
    found, whole = running.scores(), gene_scores(predicted, Targets.of_dense(measured))
    assert found.n_spots == whole.n_spots
    np.testing.assert_array_equal(found.count, whole.count)
    np.testing.assert_array_equal(np.isnan(found.pcc), np.isnan(whole.pcc))
    for name in ("pcc", "squared", "absolute"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-9, atol=1e-9)
    summary, expected = found.summary(), slide_metrics(predicted, measured)
    assert (summary.n_spots, summary.undefined_genes) == (expected.n_spots, expected.undefined_genes)
    for name in ("pcc", "mse", "mae"):
        assert getattr(summary, name) == pytest.approx(getattr(expected, name), rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_coverage_of_blocks_is_that_of_the_whole(kind: str, size: int) -> None:
    predicted, measured = both_sides(kind)
    rng = np.random.default_rng(1)
    parts = rng.uniform(0.2, 1.0, (4, GENES)).astype(np.float32)
    spread = Spread(*parts, by_distance=np.array([1, 0.5], np.float32))
    distance = rng.uniform(0.5, 3.0, len(predicted)).astype(np.float32)
    running = RunningCoverage()
    for rows in blocks(len(predicted), size):
        reach = spread.factor * spread.of(predicted[rows], distance=distance[rows])
        running.add(predicted[rows], measured[rows], reach)
    whole = coverage(spread, {"S": predicted}, {"S": Targets.of_dense(measured)}, {"S": distance})
    assert running.share == whole.slides.get("S")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_gene_sets_of_blocks_score_as_the_whole(kind: str, size: int) -> None:
    predicted, _ = both_sides(kind)
    sets = GeneSets({"A": np.array([1, 3, 6]), "B": np.array([0, 1]), "C": np.array([2, 3, 4])})
    table = anndata.AnnData(predicted)
    sets.add_scores(table)
    moments = RunningMoments(len(sets.used))
    for rows in blocks(len(predicted), size):
        block = predicted[rows]
        moments.add(block[np.ix_(np.isfinite(block).all(axis=1), sets.used)])
    parts = [sets.scores_of_block(predicted[rows], moments) for rows in blocks(len(predicted), size)]
    assert [*parts[0]] == [f"{SCORE}{name}" for name in sets.columns]
    for column in parts[0]:
        found = np.concatenate([part[column] for part in parts])
        assert found.dtype == table.obs[column].dtype
        np.testing.assert_allclose(found, table.obs[column], rtol=1e-5, atol=1e-5)
