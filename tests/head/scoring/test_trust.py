"""Trusted genes: chance is judged right on maps that are smooth, and found genes are real ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mmap_st.data.targets import Targets
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import HeldOut
from mmap_st.head.scoring.trust import distance_classes, fit_trust, map_variance, saved_trust

SIDE = 16
XY = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2) * 200.0


def smooth_maps(rng: np.random.Generator, number: int, width: float) -> np.ndarray:
    """(n, number) maps of mean 0 and variance 1 whose neighbours are alike."""
    fields = gaussian_filter(rng.standard_normal((number, 3 * SIDE, 3 * SIDE)), (0, width, width))
    maps = fields[:, SIDE : 2 * SIDE, SIDE : 2 * SIDE].reshape(number, -1).T
    return (maps - maps.mean(axis=0)) / maps.std(axis=0)


def held_out(name: str, patient: str, predicted: np.ndarray, measured: np.ndarray) -> HeldOut:
    slide = HeadSlide(
        name=name,
        patient=patient,
        ids=tuple(map(str, range(len(XY)))),
        xy=XY,
        embedding=np.zeros((len(XY), 1, 1), np.float32),
        valid=np.ones(len(XY), np.bool_),
        target=Targets.of_dense(measured.astype(np.float32)),
    )
    return HeldOut(slide, np.arange(len(XY)), predicted.astype(np.float32))


@pytest.mark.parametrize("width", [0.3, 1.0, 2.0])
def test_smooth_maps_that_have_nothing_in_common_are_chance(width: float) -> None:
    rng = np.random.default_rng(1)
    predicted, measured = smooth_maps(rng, 2000, width), smooth_maps(rng, 2000, width)
    found = fit_trust([held_out("A1", "A", predicted, measured)], {}, of_patients=True)
    assert found is not None
    assert (found.p_value <= 0.05).mean() == pytest.approx(0.05, abs=0.02)
    assert (found.p_value <= 0.001).mean() <= 0.004
    assert found.trusted.mean() < 0.002
    real = np.corrcoef(predicted.T, measured.T)[:50, 2000:2050].diagonal()
    assert found.pcc[:50] == pytest.approx(real, abs=1e-5)
    variance = map_variance(predicted, measured, distance_classes(XY))
    assert variance.mean() == pytest.approx(found.pcc.var(), rel=0.15)


def test_taking_spots_for_independent_would_find_what_is_not_there() -> None:
    rng = np.random.default_rng(1)
    predicted, measured = smooth_maps(rng, 2000, 2.0), smooth_maps(rng, 2000, 2.0)
    found = fit_trust([held_out("A1", "A", predicted, measured)], {}, of_patients=True)
    assert found is not None
    assert (found.pcc > 1.645 / np.sqrt(len(XY))).mean() > 0.2


def test_of_the_trusted_genes_few_are_chance_and_the_real_ones_are_found() -> None:
    rng = np.random.default_rng(2)
    real, null = 60, 240
    false, power = [], []
    for _ in range(5):
        parts = []
        for patient in "ABCD":
            predicted = smooth_maps(rng, real + null, 1.0)
            measured = smooth_maps(rng, real + null, 1.0)
            measured[:, :real] = 0.6 * predicted[:, :real] + 0.8 * measured[:, :real]
            parts.append(held_out(f"{patient}1", patient, predicted, measured))
        found = fit_trust(parts, {}, of_patients=True)
        assert found is not None
        false.append(found.trusted[real:].sum() / max(found.trusted.sum(), 1))
        power.append(found.trusted[:real].mean())
        assert ((found.low <= found.pcc) & (found.pcc <= found.high)).all()
    assert np.mean(false) <= 0.05
    assert np.mean(power) > 0.9


def test_patients_count_the_same_and_a_gene_that_suits_one_patient_alone_is_not_trusted() -> None:
    rng = np.random.default_rng(3)
    parts = []
    for name, patient, share in (("A1", "A", 0.9), ("A2", "A", 0.9), ("A3", "A", 0.9), ("B1", "B", -0.3),
                                 ("C1", "C", -0.3)):  # fmt: skip
        predicted, noise = smooth_maps(rng, 4, 0.5), smooth_maps(rng, 4, 0.5)
        parts.append(held_out(name, patient, predicted, share * predicted + np.sqrt(1 - share**2) * noise))
    found = fit_trust(parts, {"A1": np.full(4, 0.81), "B1": np.full(4, 0.25)}, of_patients=True)
    assert found is not None
    assert found.pcc == pytest.approx(np.full(4, 0.1), abs=0.1)
    assert (found.p_value < 0.05).any()
    assert not found.trusted.any()
    assert found.ceiling == pytest.approx(np.full(4, np.sqrt(0.53)))
    of_one = fit_trust(parts[:3], {}, of_patients=False)
    assert of_one is not None
    assert of_one.above_chance.all()
    assert not of_one.trusted.any()
    assert np.isnan(of_one.ceiling).all()


def test_genes_that_are_missing_or_constant_are_not_trusted() -> None:
    rng = np.random.default_rng(4)
    predicted = smooth_maps(rng, 3, 1.0)
    measured = predicted.copy()
    measured[:, 1] = np.nan
    predicted[:, 2] = 1.0
    first = held_out("A1", "A", predicted, measured)
    found = fit_trust([first], {}, of_patients=True)
    assert found is not None
    assert found.trusted.tolist() == [True, False, False]
    assert np.isnan(found.pcc[1])
    assert found.pcc[2] == 0
    assert fit_trust([], {}, of_patients=True) is None
    assert (
        fit_trust([replace(first, rows=np.arange(2), predicted=first.predicted[:2])], {}, of_patients=True)
        is None
    )


def test_it_is_saved_and_read() -> None:
    rng = np.random.default_rng(5)
    found = fit_trust(
        [held_out("A1", "A", smooth_maps(rng, 5, 1.0), smooth_maps(rng, 5, 1.0))], {}, of_patients=True
    )
    assert found is not None
    again = saved_trust({"weight": np.zeros(3), **found.tensors()})
    assert again is not None
    for key, value in vars(found).items():
        assert np.array_equal(getattr(again, key), value, equal_nan=True)
    assert saved_trust({"weight": np.zeros(3)}) is None
