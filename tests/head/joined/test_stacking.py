"""The weights of several predictions: those of least error, unless another encoder has the better pattern."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from mmap_st.data import Targets
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import HeldOut
from mmap_st.head.joined.stacking import _Products, best_weights, least_on_simplex
from mmap_st.head.scoring.metrics import slide_metrics

SPOTS, GENES = 60, 80


def held_out(target: np.ndarray, *predictions: np.ndarray, name: str = "S0") -> list[HeldOut]:
    """Predictions (n, G) of each member for all spots of a slide with targets (n, G)."""
    n = len(target)
    slide = HeadSlide(
        name=name,
        patient=None,
        ids=tuple(map(str, range(n))),
        xy=np.zeros((n, 2)),
        embedding=np.zeros((n, 1, 1), np.float32),
        valid=np.ones(n, np.bool_),
        target=Targets.of_dense(target.astype(np.float32)),
    )
    return [HeldOut(slide, np.arange(n), predicted.astype(np.float32)) for predicted in predictions]


def weights_of(*slides: list[HeldOut]) -> np.ndarray:
    return best_weights(list(zip(*slides, strict=True)))


def mean_error(weights: np.ndarray, target: np.ndarray, predictions: list[np.ndarray]) -> float:
    mean = sum(weight * one for weight, one in zip(weights, predictions, strict=True))
    return float(np.nanmean((mean - target) ** 2))


def made(seed: int, noise: tuple[float, ...]) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(SPOTS, GENES))
    target = truth + 0.2 * rng.normal(size=truth.shape)
    return target, [truth + size * rng.normal(size=truth.shape) for size in noise]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("members", [2, 3, 4])
def test_no_other_weights_have_less_error(seed: int, members: int) -> None:
    root = np.random.default_rng(seed).normal(size=(members + 1, members))
    products = root.T @ root
    found = least_on_simplex(products)
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(1)
    steps = 10 if members == 4 else 20
    others = [np.array(w) / steps for w in product(range(steps + 1), repeat=members) if sum(w) == steps]
    assert found @ products @ found <= min(w @ products @ w for w in others) * (1 + 1e-6)


@pytest.mark.parametrize("members", [2, 3])
def test_who_makes_the_same_errors_shares(members: int) -> None:
    assert least_on_simplex(np.ones((members, members))) == pytest.approx(1 / members)
    assert least_on_simplex(np.zeros((members, members))) == pytest.approx(1 / members)
    target, (good, noise) = made(0, (0.3, 30.0))
    found = weights_of(held_out(target, good, noise, good))
    assert found == pytest.approx([0.5, 0.0, 0.5], abs=0.01)


def test_independent_errors_weigh_by_their_size() -> None:
    target, predictions = made(1, (0.5, 1.0))
    found = weights_of(held_out(target, *predictions))
    assert found == pytest.approx([0.8, 0.2], abs=0.02)  # 1 / variance, of 1 / 0.25 and 1 / 1
    errors = [mean_error(np.array([w, 1 - w]), target, predictions) for w in (0.7, 0.9)]
    assert mean_error(found, target, predictions) < min(errors)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_noise_weighs_next_to_nothing(place: int) -> None:
    noise = [0.4, 0.5, 0.6]
    noise[place] = 8.0
    slides = [
        held_out(target, *predicted) for target, predicted in (made(seed, tuple(noise)) for seed in (2, 3))
    ]
    found = weights_of(*slides)
    assert found[place] < 0.01
    assert found.sum() == pytest.approx(1)


def test_targets_that_are_not_defined_do_not_count() -> None:
    target, (one, two) = made(4, (0.5, 0.8))
    lacking = target.copy()
    lacking[:10] = np.nan
    lacking[:, 3] = np.nan
    kept = np.delete(np.arange(GENES), 3)
    far = one.copy()
    far[:10] = 1e3
    far[:, 3] = -1e3
    found = weights_of(held_out(lacking, far, two))
    assert found == pytest.approx(
        weights_of(held_out(target[10:, kept], one[10:, kept], two[10:, kept])), abs=1e-9
    )


def test_all_slides_are_looked_at() -> None:
    target, (good, bad) = made(5, (0.3, 0.9))
    first, second = held_out(target, good, bad), held_out(target, bad, good, name="S1")
    assert weights_of(first)[0] > 0.8
    assert weights_of(second)[1] > 0.8
    assert weights_of(first, second) == pytest.approx([0.5, 0.5], abs=0.02)


def test_least_error_must_not_cost_the_pattern() -> None:
    """One encoder knows a gene of great variance and calms the errors of the rest, which it knows nothing of."""
    rng = np.random.default_rng(6)
    scale = np.where(np.arange(GENES) == 0, 20.0, 0.5)
    truth = rng.normal(size=(SPOTS, GENES))
    pattern = truth + 1.2 * rng.normal(size=truth.shape)
    pattern[:, 0] = rng.normal(size=SPOTS)
    loud = rng.normal(size=truth.shape)
    loud[:, 0] = truth[:, 0]
    target, one, two = truth * scale, pattern * scale, loud * scale
    (errors,) = [part.errors for part in [_Products.of(held_out(target, one, two))]]
    least = least_on_simplex(errors)
    found = weights_of(held_out(target, one, two))

    def pcc(weights: np.ndarray) -> float:
        return slide_metrics((weights[0] * one + weights[1] * two).astype(np.float32), target).pcc

    assert least[1] > 0.9
    assert found[0] > 0.5
    assert pcc(found) > 1.5 * pcc(least)
    best = max(pcc(np.array([w, 1 - w])) for w in np.linspace(0, 1, 101))
    assert pcc(found) >= 0.97 * best


@pytest.mark.parametrize("seed", range(3))
def test_the_pattern_is_judged_as_it_is_scored(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target, predictions = made(seed, (0.7, 1.5, 3.0))
    target[:, 6] = 1.0  # constant: its correlation is undefined, and counts 0
    target[:4] = np.nan
    target[:, 5] = np.nan
    for predicted in predictions:
        predicted[:, 8] = 2.5
    weights = rng.dirichlet(np.ones(3))
    mean = sum(weight * one for weight, one in zip(weights, predictions, strict=True))
    found = _Products.of(held_out(target, *predictions)).pcc(weights)
    assert found == pytest.approx(slide_metrics(mean, target).pcc, abs=1e-6)


def test_predictions_that_never_vary_have_weights_too() -> None:
    target, _ = made(7, ())
    constant = [np.full_like(target, value) for value in (0.0, 4.0)]
    assert weights_of(held_out(target, *constant)) == pytest.approx([1.0, 0.0], abs=0.02)
