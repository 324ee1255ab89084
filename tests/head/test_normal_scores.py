"""Embeddings as normal scores of their ranks within a slide."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm, rankdata

from mmap_st.head.normal_scores import fit_normal_scores


@given(
    arrays(np.float32, st.tuples(st.integers(1, 40), st.just(2), st.just(3)), elements=st.integers(-3, 3)),
    st.randoms(),
)
def test_scores_are_quantiles_of_mean_ranks(embedding: np.ndarray, random) -> None:
    valid = np.array([random.random() < 0.8 for _ in embedding])
    scores = fit_normal_scores(embedding, valid)
    n = int(valid.sum())
    found = scores.transform(embedding[valid])
    if n:
        expected = norm.ppf((rankdata(embedding[valid], axis=0) - 0.5) / n)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_constant_feature_is_0() -> None:
    embedding = np.full((20, 1, 2), 7.0, np.float32)
    scores = fit_normal_scores(embedding, np.ones(20, np.bool_))
    assert (scores.transform(embedding) == 0).all()
    assert (scores.transform(embedding + 1) == 0).all()


def test_values_between_two_spots_lie_between_their_scores_and_those_beyond_keep_the_last() -> None:
    embedding = np.arange(10, dtype=np.float32)[:, None, None]
    scores = fit_normal_scores(embedding, np.ones(10, np.bool_))
    low, middle, high = scores.transform(np.array([-50.0, 4.5, 50.0], np.float32)[:, None, None]).ravel()
    assert low == pytest.approx(norm.ppf(0.05))
    assert middle == pytest.approx(0.0, abs=1e-6)
    assert high == pytest.approx(norm.ppf(0.95))


def test_a_slide_without_valid_spots_is_0() -> None:
    embedding = np.full((3, 1, 2), np.nan, np.float32)
    scores = fit_normal_scores(embedding, np.zeros(3, np.bool_))
    assert (scores.transform(np.zeros((2, 1, 2), np.float32)) == 0).all()


def test_ranks_of_a_large_slide_are_among_some_of_its_spots() -> None:
    embedding = np.random.default_rng(0).normal(size=(5_000, 1, 3)).astype(np.float32)
    scores = fit_normal_scores(embedding, np.ones(5_000, np.bool_))
    assert scores.values.shape[1] <= 1_024
    exact = norm.ppf((rankdata(embedding, axis=0) - 0.5) / 5_000)
    assert np.sqrt(((scores.transform(embedding) - exact) ** 2).mean()) < 0.06


def test_memory_is_for_some_features_at_a_time_and_changes_nothing(monkeypatch) -> None:
    embedding = np.random.default_rng(0).normal(size=(1024, 2, 512)).astype(np.float32)
    scaler = fit_normal_scores(embedding[:64], np.ones(64, np.bool_))
    found = scaler.transform(embedding)
    monkeypatch.setattr("mmap_st.head.normal_scores._MOST_NUMBERS", 3000)
    tracemalloc.start()
    assert np.array_equal(scaler.transform(embedding), found)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # What is returned, what compares it, and little else; whole copies in float64 would be several times as much.
    assert peak < 1.5 * found.nbytes, (peak, found.nbytes)
