"""A strength for each axis of expression, weights of spots, and what they do to a fit."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmap_st.errors import HeadError
from mmap_st.head.interface import (
    Shape,
    make_settings,
    plan_validation,
    saved_settings,
    settings_to_compare,
    settings_values,
)
from mmap_st.head.mmap.fitting import MMAP, MmapSettings, fit_mmap, load_mmap
from mmap_st.head.mmap.strengths import nondecreasing, row_weights

RIDGE_ALONE = MmapSettings(blend=0.0, device="cpu")
Slides = Callable[..., list]


def fit(slides: list, settings: MmapSettings = RIDGE_ALONE):
    return fit_mmap(slides, plan_validation(slides, ()), settings, 0, lambda text: None)


@given(arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=st.integers(0, 9)))
def test_strengths_are_the_best_that_do_not_fall(errors: np.ndarray) -> None:
    axes, count = errors.shape
    found = nondecreasing(errors)
    assert (np.diff(found) >= 0).all()
    every = itertools.combinations_with_replacement(range(count), axes)
    least = min(errors[range(axes), choice].sum() for choice in every)
    assert errors[range(axes), found].sum() == least


def test_of_equally_good_strengths_the_weakest_is_chosen() -> None:
    assert nondecreasing(np.zeros((3, 4))).tolist() == [0, 0, 0]
    assert nondecreasing(np.array([[1.0, 0.0, 0.0]])).tolist() == [1]


def test_one_bad_axis_does_not_remove_those_after_it() -> None:
    errors = np.array([[0.5, 0.7, 1.0], [1.1, 1.05, 1.0], [0.4, 0.6, 1.0], [1.3, 1.1, 1.0]])
    assert nondecreasing(errors).tolist() == [0, 0, 0, 2]


def test_weights_have_mean_1_over_the_spots_of_all_slides() -> None:
    libraries = [np.array([100.0, 400.0, np.nan]), np.array([900.0, 1600.0])]
    first, second = row_weights(list(libraries), 0.5)
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(np.array([*first[:2], *second]) * 25, [10, 20, 30, 40])
    assert np.isnan(first[2])


@pytest.mark.parametrize(
    ("libraries", "power"),
    [([np.ones(3), None], 0.35), ([np.array([10.0, 99.0])], 0.0), ([], 0.35)],
)
def test_without_library_sizes_or_power_no_spot_is_weighted(libraries: list, power: float) -> None:
    assert row_weights(libraries, power) == [None] * len(libraries)


def test_a_spot_without_counts_has_a_small_weight_and_not_none() -> None:
    (weights,) = row_weights([np.array([0.0, 1000.0])], 0.35)
    assert weights is not None
    assert 0 < weights[0] < weights[1]


def test_axes_of_noise_are_not_fitted(head_slides: Slides) -> None:
    slides = head_slides(slides=4, spots=80, genes=12, noise=0.1)
    rng = np.random.default_rng(1)
    plain = [s.targets.dense() for s in slides]
    # One programme that embeddings tell, in all genes, and noise of each gene's own.
    noisy = [
        replace(s, target=type(s.targets).of_dense(y[:, :1] * np.ones(12, np.float32) + rng.normal(size=y.shape).astype(np.float32)))
        for s, y in zip(slides, plain, strict=True)
    ]  # fmt: skip
    head = fit(noisy)
    assert head.basis.rank < 6
    assert len(head.chosen["alpha"]) == head.basis.rank
    assert head.weight.shape[1] == head.basis.rank
    assert head.chosen["alpha"] == sorted(head.chosen["alpha"])


def test_nothing_to_learn_is_the_training_mean(head_slides: Slides) -> None:
    rng = np.random.default_rng(0)
    slides = [
        replace(s, target=type(s.targets).of_dense(rng.normal(size=(len(s), 5)).astype(np.float32)))
        for s in head_slides(slides=4, spots=60)
    ]
    head = fit(slides)
    measured = np.concatenate([s.targets.dense() for s in slides])
    assert head.predict(slides[0]).std(0).max() < 0.25 * measured.std(0).min()


def test_a_slide_has_the_mean_of_training(head_slides: Slides) -> None:
    slides = head_slides(slides=5)
    head = fit(slides[:4])
    np.testing.assert_allclose(head.predict(slides[4]).mean(0), head.mean, rtol=1e-4)
    uncentred = fit(slides[:4], replace(RIDGE_ALONE, centre=False))
    assert abs(uncentred.predict(slides[4]).mean(0) - head.mean).max() > 1e-3


@pytest.mark.parametrize("change", [np.exp, lambda x: 3 * x + 1, lambda x: x**3])
def test_an_increasing_change_of_a_slides_features_changes_no_prediction(
    head_slides: Slides, change: Callable
) -> None:
    slides = head_slides(slides=4)
    other = replace(slides[0], embedding=change(slides[0].embedding).astype(np.float32))
    # Candidates are means of features, which do not change as ranks do.
    alone = replace(MmapSettings(), blend=0.0, prototypes="none", device="cpu")
    head = fit([replace(s, centre=None, selected=None) for s in slides], alone)
    without = [replace(s, centre=None, selected=None) for s in (slides[0], other)]
    first, second = (head.predict(slide) for slide in without)
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_heavy_spots_count_for_more(head_slides: Slides) -> None:
    slides = head_slides(slides=4, spots=60)
    rng = np.random.default_rng(0)
    damaged, libraries = [], []
    for slide in slides:
        values, poor = slide.targets.dense(), np.arange(60) % 2 == 0
        values[poor] += 4 * rng.normal(size=values[poor].shape)
        damaged.append(replace(slide, target=type(slide.targets).of_dense(values.astype(np.float32))))
        libraries.append(np.where(poor, 10.0, 100_000.0))
    rich = [replace(s, library=library) for s, library in zip(damaged, libraries, strict=True)]
    settings = replace(RIDGE_ALONE, library_power=1.0)

    def error(head) -> float:
        return float(np.mean([(head.predict(s) - s.targets.dense()) ** 2 for s in slides]))

    assert error(fit(rich, settings)) < 0.9 * error(fit(damaged, settings))


def test_settings_of_runs_of_before_are_those_of_before() -> None:
    before = settings_values(MmapSettings())
    for key in MmapSettings.FORMER:
        before.pop(key)
    found = saved_settings(MMAP, before)
    assert {key: getattr(found, key) for key in MmapSettings.FORMER} == MmapSettings.FORMER
    assert saved_settings(MMAP, settings_values(MmapSettings())) == MmapSettings()
    assert settings_to_compare(found) == before
    assert settings_to_compare(MmapSettings()) == settings_values(MmapSettings())


@pytest.mark.parametrize(
    "values", [{"scaling": "rank"}, {"strengths": "many"}, {"library_power": -1.0}, {"library_power": 9.0}]
)
def test_settings_that_are_not_allowed(values: dict) -> None:
    with pytest.raises(HeadError, match=next(iter(values))):
        make_settings(MMAP, values)


@pytest.mark.parametrize("former", [False, True])
def test_a_head_is_the_same_once_loaded(head_slides: Slides, former: bool) -> None:
    slides = head_slides(slides=4)
    settings = make_settings(MMAP, {"blend": 0.0, **(MmapSettings.FORMER if former else {})})
    head = fit(slides, settings)
    loaded = load_mmap(head.tensors(), settings, Shape(2, 12, 5))
    np.testing.assert_array_equal(loaded.predict(slides[1]), head.predict(slides[1]))


def test_one_slide_is_fitted_more_strongly_than_its_parts_ask_for(
    head_slides: Slides, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mmap_st.head.mmap.fitting as fitting

    chosen = []

    def noting(errors: np.ndarray) -> np.ndarray:
        chosen.append(nondecreasing(errors))
        return chosen[-1]

    monkeypatch.setattr(fitting, "nondecreasing", noting)
    head = fit(head_slides(slides=1, spots=90))
    strengths = np.array(fitting.AXIS_ALPHAS)[np.minimum(chosen[0] + 1, len(fitting.AXIS_ALPHAS) - 1)]
    assert head.chosen["alpha"] == strengths[np.isfinite(strengths)].tolist()
